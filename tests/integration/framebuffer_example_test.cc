// examples/framebuffer: a driver and its clients, as a reader of the example would run them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <png.h>
#include <signal.h>

#include <cstdint>
#include <string>
#include <vector>

#include "examples/framebuffer/frame.h"
#include "tests/integration/daemon.h"

namespace mapbroker::testing {
namespace {

using ::testing::HasSubstr;

constexpr std::uint32_t kWidth = 70, kHeight = 40;

class FramebufferExample : public ::testing::Test {
 protected:
  std::vector<std::string> Driver() const {
    return {
        FRAMEBUFFER_DRIVER, "--runtime-dir", daemon_.runtime_dir(), "--width", "70", "--height", "40", "--rate", "200"};
  }
  static void ExpectDrives(Child& driver) { EXPECT_THAT(driver.ReadLine(), HasSubstr("dev:/movie 70x40")); }
  std::vector<std::string> Watch(const std::string& frames) const {
    return {FRAMEBUFFER_WATCH, "--runtime-dir", daemon_.runtime_dir(), "--frames", frames};
  }
  static std::uint64_t NumberIn(const std::string& line) { return std::stoull(line.substr(line.find(' ') + 1)); }

  Daemon daemon_;
};

// The picture in the file, as 0xffRRGGBB.
std::vector<std::uint32_t> Decode(const std::string& png) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  EXPECT_NE(png_image_begin_read_from_file(&image, png.c_str()), 0) << image.message;
  EXPECT_EQ(image.width, kWidth);
  EXPECT_EQ(image.height, kHeight);
  image.format = PNG_FORMAT_BGRA;
  std::vector<std::uint32_t> pixels(kWidth * kHeight);
  EXPECT_NE(png_image_finish_read(&image, nullptr, pixels.data(), 0, nullptr), 0) << image.message;
  return pixels;
}

TEST_F(FramebufferExample, ClientsTakeWholeFramesAndKeepOne) {
  Child driver(Driver());
  ExpectDrives(driver);
  const std::string png = daemon_.files().Path("frame.png");
  Child other(Watch("20"));
  std::vector<std::string> command = Watch("5");
  command.insert(command.end(), {"-o", png});
  const Finished watched = testing::Run(command);
  ASSERT_EQ(watched.status, 0) << watched.errors;
  EXPECT_EQ(other.Wait(), 0) << other.Errors();
  const std::string last = watched.output.substr(watched.output.rfind("frame"));
  const std::vector<std::uint32_t> pixels = Decode(png);
  for (std::uint32_t i = 0; i < kWidth * kHeight; ++i) {
    ASSERT_EQ(pixels[i], framebuffer::PixelAt(NumberIn(last), i % kWidth, i / kWidth)) << "pixel " << i;
  }
}

TEST_F(FramebufferExample, AScreenshotOfADriversDevice) {
  Child driver(Driver());
  ExpectDrives(driver);
  const std::string png = daemon_.files().Path("shot.png");
  const Finished shot = Mapctl(daemon_.runtime_dir(), {"screenshot", "movie", "-o", png});
  ASSERT_EQ(shot.status, 0) << shot.errors;
  EXPECT_EQ(driver.ReadLine(), "mapped 12288 bytes from 0");
  EXPECT_EQ(driver.ReadLine(), "closed 12288 bytes from 0");
  // Perhaps of two frames, since it takes no notice of the sequence; reds grow along the row in both.
  const std::vector<std::uint32_t> pixels = Decode(png);
  EXPECT_EQ(pixels[1] >> 16 & 0xff, ((pixels[0] >> 16) + 1) & 0xff);
}

TEST_F(FramebufferExample, AClientSeesTheSuccessorsFrames) {
  Child driver(Driver());
  ExpectDrives(driver);
  Child watch(Watch("1000000"));
  const std::uint64_t first = NumberIn(watch.ReadLine());
  driver.Signal(SIGKILL);
  driver.Wait();
  Child successor(Driver());
  ExpectDrives(successor);
  // It does not begin anew: the frame's number is in the device's memory.
  std::uint64_t last = first;
  for (int i = 0; i < 100; ++i) {
    const std::uint64_t number = NumberIn(watch.ReadLine());
    ASSERT_GT(number, last);
    last = number;
  }
  EXPECT_TRUE(watch.Running()) << watch.Errors();
}

}  // namespace
}  // namespace mapbroker::testing
