// Devices and images between real processes, and those that configuration declares.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <png.h>

#include <cerrno>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "mapbroker/error.h"
#include "tests/integration/connect.h"
#include "tests/integration/daemon.h"
#include "tests/integration/peer.h"

namespace mapbroker::testing {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;

const char kRomfs[] = FIXTURES "/romfs.img";

class Devices : public ::testing::Test {
 protected:
  Finished Run(const std::vector<std::string>& arguments) { return Mapctl(daemon_.runtime_dir(), arguments); }
  void Done(const std::vector<std::string>& arguments) {
    const Finished finished = Run(arguments);
    EXPECT_EQ(finished.status, 0) << finished.errors;
  }

  Daemon daemon_;
};

TEST_F(Devices, TwoProcessesDrawIntoOneFramebuffer) {
  Done({"device", "create", "fb0", "framebuffer", "width=64", "height=32", "--mode", "0660"});
  EXPECT_THAT(Run({"device", "info", "fb0"}).output,
              AllOf(HasSubstr("stride      256"), HasSubstr("bytes       8192")));
  EXPECT_THAT(Run({"device", "ls"}).output, ContainsRegex("0660 .*framebuffer .*8192 .*direct,read,write .*dev:/fb0"));
  Client one = Connect(daemon_), two = Connect(daemon_);
  const auto a = one.Open("dev:/fb0", O_RDWR), b = two.Open("dev:/fb0", O_RDONLY);
  ASSERT_TRUE(a.ok() && b.ok()) << a.status() << b.status();
  auto draws = one.Map({.length = 8192, .prot = PROT_READ | PROT_WRITE, .flags = MAP_SHARED, .file = &*a});
  auto sees = two.Map({.length = 8192, .prot = PROT_READ, .flags = MAP_SHARED, .file = &*b});
  ASSERT_TRUE(draws.ok() && sees.ok()) << draws.status() << sees.status();
  draws->bytes()[5000] = std::byte{0x5a};
  EXPECT_EQ(sees->bytes()[5000], std::byte{0x5a});
  EXPECT_EQ(draws->address(), sees->address());
  Done({"device", "rm", "fb0"});
  EXPECT_EQ(Run({"device", "info", "fb0"}).status, 1);
  EXPECT_EQ(sees->bytes()[5000], std::byte{0x5a});
}

TEST_F(Devices, AScreenshotShowsWhatIsDrawn) {
  const std::string png = daemon_.files().WriteFile("shot.png", "");
  for (const auto& [format, bytes] : {std::pair("xrgb8888", 4), {"rgb565", 2}, {"gray8", 1}}) {
    Done({"device", "create", format, "framebuffer", "width=8", "height=4", std::string("format=") + format});
    Client client = Connect(daemon_);
    const auto device = client.Open(std::string("dev:/") + format, O_WRONLY);
    ASSERT_TRUE(device->Pwrite(std::vector<std::byte>(8 * bytes, std::byte{0xff}), 8 * bytes).ok());  // the second row
    Done({"screenshot", format, "-o", png});
    png_image image{};
    image.version = PNG_IMAGE_VERSION;
    ASSERT_NE(png_image_begin_read_from_file(&image, png.c_str()), 0) << image.message;
    EXPECT_EQ(image.width, 8u);
    EXPECT_EQ(image.height, 4u);
    image.format = PNG_FORMAT_RGB;
    std::vector<std::uint8_t> pixels(PNG_IMAGE_SIZE(image));
    ASSERT_NE(png_image_finish_read(&image, nullptr, pixels.data(), 0, nullptr), 0) << image.message;
    for (std::size_t at = 0; at < pixels.size(); ++at) {
      ASSERT_EQ(pixels[at], at / 24 == 1 ? 0xff : 0) << format << ", byte " << at;
    }
  }
  EXPECT_EQ(Run({"screenshot", "none", "-o", png}).status, 1);
}

TEST_F(Devices, FlashIsProgrammedErasedAndDumped) {
  Done({"device", "create", "nor", "flash", "size=64K", "erase_size=16K"});
  const std::string file = daemon_.files().MakeFile("file", 20'000);
  Done({"flash", "program", "nor", file, "--offset", "16K"});
  EXPECT_EQ(Bytes(Run({"flash", "dump", "nor", "--offset", "16K", "--length", "20000"}).output), ReadFile(file));
  Done({"flash", "erase", "nor", "--offset", "16K", "--length", "16K"});
  EXPECT_EQ(Run({"flash", "dump", "nor", "--offset", "16K", "--length", "1"}).output, "\xff");
  EXPECT_EQ(Run({"flash", "erase", "nor", "--offset", "1"}).status, 1);
  EXPECT_EQ(Run({"device", "create", "bad", "flash", "size"}).status, 2);
}

TEST_F(Devices, AnImageIsMountedListedReadAndMapped) {
  Done({"device", "create", "rom", "flash", "chip=rom", "size=1M", "--contents", kRomfs});
  Done({"mount", "dev:/rom", "rom"});
  EXPECT_THAT(Run({"ls", "mnt:/rom/"}).output, HasSubstr("mnt:/rom/big"));
  Client client = Connect(daemon_);
  const auto big = client.Open("mnt:/rom/big", O_RDONLY);
  ASSERT_TRUE(big.ok()) << big.status();
  auto text = client.Map({.length = 8192, .prot = PROT_READ | PROT_EXEC, .file = &*big});
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(text->kind(), MappingKind::kDirect);
  EXPECT_EQ(text->bytes()[0], std::byte{0x41});
  EXPECT_EQ(text->bytes()[8191], std::byte{0x42});
  EXPECT_EQ(ErrnoOf(client.Open("mnt:/rom/big", O_RDWR).status()), EROFS);
  Done({"umount", "rom"});
  EXPECT_EQ(ErrnoOf(client.Open("mnt:/rom/big", O_RDONLY).status()), ENOENT);
}

TEST_F(Devices, WhatIsConfiguredIsThereFromTheStart) {
  const std::string file = daemon_.files().MakeFile("model", 10'000);
  const std::string config = daemon_.files().WriteFile("config.toml", std::string(R"([[ram_file]]
name = "ram:/model"
contents = ")") + file + R"("
mode = "0644"

[[device]]
name = "dev:/rom"
kind = "flash"
chip = "rom"
size = "1M"
contents = ")" + kRomfs + R"("

[[mount]]
name = "mnt:/rom"
device = "dev:/rom"
)");
  Daemon configured({"--config", config});
  const auto run = [&](std::vector<std::string> arguments) { return Mapctl(configured.runtime_dir(), arguments); };
  EXPECT_EQ(run({"ram", "get", "model"}).output.size(), 10'000u);
  EXPECT_THAT(run({"ls"}).output, AllOf(HasSubstr("mnt:/rom/big"), HasSubstr("ram:/model"), HasSubstr("dev:/rom")));
}

TEST_F(Devices, AMistakeInTheConfigurationNamesItsLine) {
  const auto complaint = [&](const std::string& text) {
    const std::string config = daemon_.files().WriteFile("bad.toml", text);
    const Finished finished =
        RunDaemon({"--runtime-dir", daemon_.files().Path("run"), "--pool-size", "1M", "--config", config});
    EXPECT_EQ(finished.status, 2);
    return finished.errors;
  };
  EXPECT_THAT(complaint("\n[[device]]\nname = \"dev:/d\"\nkind = \"teapot\"\n"),
              HasSubstr("bad.toml:2: there is no kind"));
  EXPECT_THAT(complaint("[[device]]\nname = \"dev:/d\"\n"), HasSubstr("bad.toml:1: [[device]] needs the key kind"));
  EXPECT_THAT(complaint("[device]\nname = \"dev:/d\"\n"), HasSubstr("bad.toml:1: write [[device]]"));
  EXPECT_THAT(complaint("[[mount]]\nname = \"mnt:/m\"\ndevice = \"dev:/none\"\n"), HasSubstr("there is no device"));
  EXPECT_THAT(complaint("[[ram_file]]\nname = \"ram:/f\"\ncontents = \"/none\"\n"),
              HasSubstr("bad.toml:1: contents /none"));
}

}  // namespace
}  // namespace mapbroker::testing
