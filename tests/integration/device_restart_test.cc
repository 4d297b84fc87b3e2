// What a daemon takes over of devices, images and drivers from one that was killed.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <cerrno>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "mapbroker/error.h"
#include "tests/integration/connect.h"
#include "tests/integration/daemon.h"
#include "tests/integration/peer.h"

namespace mapbroker::testing {
namespace {

using ::testing::HasSubstr;

constexpr std::uint64_t kPage = 4096;
constexpr char kRomfs[] = FIXTURES "/romfs.img";

class DeviceRestart : public ::testing::Test {
 protected:
  DeviceRestart() { Start(); }
  std::string RuntimeDir() const { return home_.Path("run"); }
  void Start(std::vector<std::string> options = {}) { daemon_.emplace(std::move(options), RuntimeDir()); }
  void KillAndStart(std::vector<std::string> options = {}) {
    daemon_->Kill();
    Start(std::move(options));
  }
  std::string Tool(const std::vector<std::string>& arguments) {
    const Finished finished = Mapctl(RuntimeDir(), arguments);
    EXPECT_EQ(finished.status, 0) << finished.errors;
    return finished.output;
  }
  File Open(Client& client, const std::string& name, int flags = O_RDWR) {
    absl::StatusOr<File> file = client.Open(name, flags);
    EXPECT_TRUE(file.ok()) << file.status();
    return *std::move(file);
  }
  Mapping Map(Client& client, const File& file, int prot, int flags, std::uint64_t length = kPage) {
    absl::StatusOr<Mapping> mapping = client.Map({.length = length, .prot = prot, .flags = flags, .file = &file});
    EXPECT_TRUE(mapping.ok()) << mapping.status();
    return *std::move(mapping);
  }

  const TempDir home_;
  std::optional<Daemon> daemon_;
};

TEST_F(DeviceRestart, KeepsDevicesWithWhatTheyHoldAndWhoHasThem) {
  Tool({"device", "create", "disk", "ramdisk", "size=16K", "--mode", "0640"});
  Tool({"device", "create", "screen", "framebuffer", "width=16", "height=16"});
  Tool({"device", "create", "zero", "zero"});
  Client client = Connect(*daemon_);
  const File disk = Open(client, "dev:/disk");
  const Mapping mapped = Map(client, disk, PROT_READ | PROT_WRITE, MAP_SHARED, 2 * kPage);
  mapped.bytes()[5] = std::byte{'x'};
  const std::string devices = Tool({"device", "ls"}), maps = Tool({"maps"}), info = Tool({"device", "info", "screen"});
  KillAndStart();
  EXPECT_EQ(Tool({"device", "ls"}), devices);
  EXPECT_EQ(Tool({"device", "info", "screen"}), info);
  EXPECT_EQ(Tool({"maps"}), maps);
  std::byte byte{};
  EXPECT_EQ(*disk.Pread({&byte, 1}, 5), 1u);
  EXPECT_EQ(byte, std::byte{'x'});
  // Who maps it now gets the same memory.
  Client other = Connect(*daemon_);
  const File again = Open(other, "dev:/disk");
  EXPECT_EQ(Map(other, again, PROT_READ, MAP_SHARED).address(), mapped.address());
  // Its number is not given to another.
  Tool({"device", "create", "more", "ramdisk", "size=4K"});
  const File more = Open(other, "dev:/more");
  EXPECT_NE(Map(other, more, PROT_READ, MAP_SHARED).address(), mapped.address());
}

TEST_F(DeviceRestart, ADeviceThatWasRemovedLastsAsLongAsItIsMappedAndNoLonger) {
  Tool({"device", "create", "disk", "ramdisk", "size=16K"});
  Client client = Connect(*daemon_);
  std::optional<Mapping> mapped;
  {
    const File disk = Open(client, "dev:/disk");
    mapped = Map(client, disk, PROT_READ | PROT_WRITE, MAP_SHARED);
  }
  mapped->bytes()[0] = std::byte{'x'};
  Tool({"device", "rm", "disk"});
  KillAndStart();
  EXPECT_EQ(ErrnoOf(client.Open("dev:/disk", O_RDWR).status()), ENOENT);
  EXPECT_EQ(client.Statistics()->used, 4 * kPage);
  EXPECT_EQ(mapped->bytes()[0], std::byte{'x'});
  ASSERT_TRUE(mapped->Unmap().ok());
  WaitUntil("its memory is free", [&] { return client.Statistics()->used == 0; });
  // Nor is there any of it after another restart.
  KillAndStart();
  EXPECT_EQ(client.Statistics()->used, 0u);
  Tool({"device", "create", "disk", "ramdisk", "size=16K"});
}

TEST_F(DeviceRestart, AFlashKnowsWhatIsMappedOfIt) {
  Tool({"device", "create", "chip", "flash", "chip=nor", "size=128K", "erase_size=64K"});
  Client client = Connect(*daemon_);
  const File chip = Open(client, "dev:/chip");
  std::optional<Mapping> window = Map(client, chip, PROT_READ, MAP_SHARED);
  KillAndStart();
  const std::byte byte{0};
  EXPECT_EQ(ErrnoOf(chip.Pwrite({&byte, 1}, 0)), EBUSY);
  ASSERT_TRUE(window->Unmap().ok());
  EXPECT_TRUE(chip.Pwrite({&byte, 1}, 0).ok());
}

TEST_F(DeviceRestart, ImagesAreMountedAgainAndTheirFilesMappedWhereTheyWere) {
  Tool({"device", "create", "rom", "flash", "chip=rom", "size=1M", "--contents", kRomfs});
  Tool({"mount", "dev:/rom", "rom"});
  const std::string files = Tool({"ls", "mnt:/rom"});
  Client client = Connect(*daemon_);
  const std::string name = files.substr(files.rfind("mnt:/"), files.rfind('\n') - files.rfind("mnt:/"));
  const File file = Open(client, name, O_RDONLY);
  const Mapping mapped = Map(client, file, PROT_READ, MAP_PRIVATE);
  Tool({"device", "rm", "rom"});
  KillAndStart();
  EXPECT_EQ(Tool({"ls", "mnt:/rom"}), files);
  EXPECT_EQ(Map(client, file, PROT_READ, MAP_PRIVATE).address(), mapped.address());
  Tool({"umount", "rom"});
  KillAndStart();
  // Open and mapped files stay, as of an image that was unmounted.
  EXPECT_EQ(Tool({"ls", "mnt:/rom"}), "");
  EXPECT_THAT(Tool({"maps"}), HasSubstr(name));
  std::byte byte{};
  EXPECT_EQ(ErrnoOf(file.Pread({&byte, 1}, 0).status()), ESTALE);
  EXPECT_NE(client.Statistics()->used, 0u);
}

// Whoever may write to a device can spoil the image on it, and must not be able to keep the daemon from starting.
TEST_F(DeviceRestart, AnImageThatWasOverwrittenIsNotMountedAgainAndTheDaemonStarts) {
  Tool({"device", "create", "disk", "ramdisk", "size=1M", "--contents", kRomfs});
  Tool({"mount", "dev:/disk", "image"});
  const std::string files = Tool({"ls", "mnt:/image"});
  Client client = Connect(*daemon_);
  const std::string name = files.substr(files.rfind("mnt:/"), files.rfind('\n') - files.rfind("mnt:/"));
  const File file = Open(client, name, O_RDONLY);
  const Mapping mapped = Map(client, file, PROT_READ, MAP_PRIVATE);
  const File disk = Open(client, "dev:/disk");
  const std::vector<std::byte> garbage(4096, std::byte{0xa5});
  ASSERT_TRUE(disk.Pwrite(garbage, 0).ok());
  KillAndStart();
  EXPECT_EQ(Tool({"ls", "mnt:/image"}), "");
  EXPECT_THAT(daemon_->Log(), HasSubstr("mnt:/image is not mounted again"));
  EXPECT_THAT(Tool({"maps"}), HasSubstr(name));
  // Another image under the same name is not taken for the old one.
  Tool({"device", "create", "rom", "flash", "chip=rom", "size=1M", "--contents", kRomfs});
  Tool({"mount", "dev:/rom", "image"});
  const File another = Open(client, name, O_RDONLY);
  EXPECT_NE(Map(client, another, PROT_READ, MAP_PRIVATE).address(), mapped.address());
}

TEST_F(DeviceRestart, WhatIsDeclaredIsNotMadeTwice) {
  const std::string config =
      home_.WriteFile("mapbrokerd.toml",
                      "[[device]]\nname = \"dev:/disk\"\nkind = \"ramdisk\"\nsize = \"1M\"\n"
                      "contents = \"" +
                          std::string(kRomfs) + "\"\n[[mount]]\nname = \"mnt:/disk\"\ndevice = \"dev:/disk\"\n");
  KillAndStart({"--config", config});
  Client client = Connect(*daemon_);
  const File disk = Open(client, "dev:/disk");
  const std::byte byte{'x'};
  ASSERT_TRUE(disk.Pwrite({&byte, 1}, 1'000'000).ok());
  const std::string files = Tool({"ls", ""});
  KillAndStart({"--config", config});
  EXPECT_EQ(Tool({"ls", ""}), files);
  std::byte read{};
  EXPECT_EQ(*disk.Pread({&read, 1}, 1'000'000), 1u);
  EXPECT_EQ(read, byte);
}

TEST_F(DeviceRestart, DriversComeBackByThemselvesAndHearWhatHasGone) {
  Child driver({DRIVER, RuntimeDir(), "dev:/chip", std::to_string(4 * kPage), "serve"});
  ASSERT_EQ(driver.ReadLine(), "driving");
  Client client = Connect(*daemon_);
  const File device = Open(client, "dev:/chip");
  std::optional<Mapping> mapped = Map(client, device, PROT_READ | PROT_WRITE, MAP_SHARED);
  mapped->bytes()[0] = std::byte{'x'};
  const auto closes = [&] {
    driver.WriteLine("close");
    return driver.ReadLine();
  };
  {
    Child dies({MAPCTL, "--runtime-dir", RuntimeDir(), "map", "dev:/chip", "--shared", "--offset", "8192", "--length",
                "4096", "--hold"});
    EXPECT_THAT(dies.ReadLine(), HasSubstr("4096 bytes"));
    daemon_->Kill();
    dies.Signal(SIGKILL);
    dies.Wait();
  }
  Start();
  // Calls wait for the driver, which is expected.
  EXPECT_EQ(Map(client, device, PROT_READ | PROT_WRITE, MAP_SHARED, 4 * kPage).address(), mapped->address());
  std::byte byte{};
  EXPECT_EQ(*device.Pread({&byte, 1}, 0), 1u);
  EXPECT_EQ(byte, std::byte{'r'});
  // Of the whole that was mapped just now, and of what the dead process had.
  WaitUntil("the driver has heard of both", [&] { return closes() == "2"; });
  EXPECT_THAT(Tool({"device", "info", "chip"}), HasSubstr("process " + std::to_string(driver.pid())));
  KillAndStart();
  ASSERT_TRUE(mapped->Unmap().ok());
  WaitUntil("the driver hears of the last one", [&] { return closes() == "3"; });
  driver.WriteLine("unregister");
  EXPECT_EQ(driver.ReadLine(), "done");
  EXPECT_EQ(ErrnoOf(client.Open("dev:/chip", O_RDWR).status()), ENOENT);
}

TEST_F(DeviceRestart, ADriverThatDiedMeanwhileIsWaitedForOneDeadlineOnly) {
  const std::string config = home_.WriteFile("mapbrokerd.toml", "[limits]\ndriver_deadline_ms = 200\n");
  KillAndStart({"--config", config});
  Child driver({DRIVER, RuntimeDir(), "dev:/chip", std::to_string(4 * kPage), "serve"});
  ASSERT_EQ(driver.ReadLine(), "driving");
  Client client = Connect(*daemon_);
  const File device = Open(client, "dev:/chip");
  daemon_->Kill();
  driver.Signal(SIGKILL);
  driver.Wait();
  Start({"--config", config});
  EXPECT_EQ(ErrnoOf(client.Map({.length = kPage, .prot = PROT_READ, .flags = MAP_SHARED, .file = &device}).status()),
            EIO);
  Child successor({DRIVER, RuntimeDir(), "dev:/chip", std::to_string(4 * kPage), "serve"});
  EXPECT_EQ(successor.ReadLine(), "driving");
  EXPECT_TRUE(client.Map({.length = kPage, .prot = PROT_READ, .flags = MAP_SHARED, .file = &device}).ok());
}

}  // namespace
}  // namespace mapbroker::testing
