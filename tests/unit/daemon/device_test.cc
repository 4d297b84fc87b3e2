// Devices through the broker: what each kind holds, and how it may be mapped.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cerrno>
#include <memory>
#include <string>
#include <vector>

#include "daemon/backing/devices.h"
#include "daemon/broker.h"
#include "daemon/nommu/refusal.h"

namespace mapbroker {
namespace backing {
extern const DeviceKind kRampDevice;  // examples/backing/
}
namespace {

using nommu::ErrnoOf;
using nommu::MappingKind;
using Options = std::map<std::string, std::string>;

constexpr std::uint64_t kPage = nommu::kPageSize;
constexpr std::uint64_t kPoolPages = 256;

class DeviceTest : public ::testing::Test {
 protected:
  explicit DeviceTest(const nommu::Profile& profile = nommu::kClassic)
      : memory_(kPoolPages * kPage),
        pages_(memory_, /*prefault=*/false),
        broker_(std::make_unique<Broker>(profile, pages_, memory_)) {
    for (const uid_t uid : {0u, 1001u}) {
      sessions_.push_back(std::make_shared<session::Session>(uid, Credentials{static_cast<pid_t>(uid) + 1, uid, uid},
                                                             false, broker_->OpenSpace(uid + 1)));
    }
  }
  ~DeviceTest() override {
    for (const auto& session : sessions_) {
      while (!broker_->LeaveSpace(session->space(), session->peer().pid)) {
      }
    }
    sessions_.clear();
    broker_.reset();
    pages_.WaitUntilIdle();
    EXPECT_EQ(pages_.statistics().free, kPoolPages * kPage) << "memory has leaked";
  }

  session::Session& root() { return *sessions_[0]; }
  session::Session& user() { return *sessions_[1]; }
  int Create(const std::string& kind, const Options& options = {}, const std::string& name = "dev:/d",
             mode_t mode = 0666) {
    backing::DeviceSpec spec;
    spec.name = name;
    spec.kind = kind;
    spec.options = options;
    spec.mode = mode;
    return ErrnoOf(broker_->devices().Create(spec));
  }
  int Open(session::Session& session, int flags = O_RDWR, const std::string& name = "dev:/d") {
    const auto fd = broker_->OpenFile(session, name, flags, 0);
    EXPECT_TRUE(fd.ok()) << fd.status();
    return fd.ok() ? *fd : -1;
  }
  absl::StatusOr<nommu::Grant> Map(session::Session& session, int fd, int flags, std::uint32_t prot,
                                   std::uint64_t pages = 1, std::uint64_t first = 0) {
    return broker_->Mmap(
        session,
        {.length = pages * kPage, .prot = prot, .flags = static_cast<std::uint32_t>(flags), .offset = first * kPage},
        fd);
  }
  absl::Status Write(session::Session& session, int fd, std::uint64_t offset, const std::string& text) {
    return session.File(fd)->Write(offset, std::as_bytes(std::span(text)));
  }
  std::string Read(session::Session& session, int fd, std::uint64_t offset, std::size_t count) {
    std::string text(count, '?');
    text.resize(*session.File(fd)->Read(offset, std::as_writable_bytes(std::span(text))));
    return text;
  }
  int Erase(std::uint64_t offset, std::uint64_t length) {
    return ErrnoOf(broker_->devices().Erase("dev:/d", offset, length, root().peer()));
  }

  std::vector<std::byte> memory_;
  shm::PagePool pages_;
  std::unique_ptr<Broker> broker_;
  std::vector<std::shared_ptr<session::Session>> sessions_;
};

TEST_F(DeviceTest, MistakesInWhatADeviceIsToBeAreRefused) {
  EXPECT_EQ(Create("teapot"), EINVAL);
  EXPECT_EQ(Create("zero", {}, "zero"), EINVAL);
  EXPECT_EQ(Create("zero", {}, "dev:/a/b"), EINVAL);
  EXPECT_EQ(Create("zero", {{"size", "1"}}), EINVAL);
  EXPECT_EQ(Create("ramdisk"), EINVAL);
  EXPECT_EQ(Create("ramdisk", {{"size", "many"}}), EINVAL);
  EXPECT_EQ(Create("ramdisk", {{"size", "0"}}), EINVAL);
  EXPECT_EQ(Create("ramdisk", {{"size", "1T"}}), EINVAL);
  EXPECT_EQ(Create("framebuffer", {{"width", "10"}, {"height", "10"}, {"format", "cmyk"}}), EINVAL);
  EXPECT_EQ(Create("framebuffer", {{"width", "10"}, {"height", "10"}, {"stride", "39"}}), EINVAL);
  EXPECT_EQ(Create("flash", {{"size", "10000"}, {"erase_size", "4096"}}), EINVAL);
  EXPECT_EQ(Create("zero"), 0);
  EXPECT_EQ(Create("null"), EEXIST);
}

TEST_F(DeviceTest, PermissionBitsAndOwnersHold) {
  ASSERT_EQ(Create("ramdisk", {{"size", "4K"}}, "dev:/d", 0640), 0);
  EXPECT_EQ(ErrnoOf(broker_->OpenFile(user(), "dev:/d", O_RDONLY, 0).status()), EACCES);
  EXPECT_EQ(ErrnoOf(broker_->devices().Remove("dev:/d", user().peer())), EPERM);
  EXPECT_EQ(ErrnoOf(broker_->UnlinkFile("dev:/d", root().peer())), EPERM);
  EXPECT_TRUE(broker_->devices().Remove("dev:/d", root().peer()).ok());
  EXPECT_EQ(ErrnoOf(broker_->OpenFile(root(), "dev:/d", O_RDONLY, 0).status()), ENOENT);
}

TEST_F(DeviceTest, ZeroGivesEverybodyZerosOfHisOwn) {
  ASSERT_EQ(Create("zero"), 0);
  const int fd = Open(root());
  const auto one = Map(root(), fd, MAP_PRIVATE, PROT_READ, 2), two = Map(root(), fd, MAP_PRIVATE, PROT_READ, 2, 1);
  const auto own = Map(root(), fd, MAP_PRIVATE, PROT_READ | PROT_WRITE, 2);
  ASSERT_TRUE(one.ok() && two.ok() && own.ok());
  EXPECT_NE(one->address, two->address);
  EXPECT_EQ(memory_[own->address], std::byte{0});
  EXPECT_EQ(ErrnoOf(Map(root(), fd, MAP_SHARED, PROT_READ).status()), ENODEV);
}

TEST_F(DeviceTest, NullCannotBeMapped) {
  ASSERT_EQ(Create("null"), 0);
  EXPECT_EQ(ErrnoOf(Map(root(), Open(root()), MAP_PRIVATE, PROT_READ).status()), ENODEV);
}

TEST_F(DeviceTest, MemIsThePoolForWhomRootAllowsIt) {
  backing::DeviceSpec spec;
  spec.name = "dev:/d";
  spec.kind = "mem";
  spec.owner = user().peer();
  EXPECT_EQ(ErrnoOf(broker_->devices().Create(spec)), EPERM);
  ASSERT_EQ(Create("mem"), 0);
  EXPECT_EQ(ErrnoOf(broker_->OpenFile(user(), "dev:/d", O_RDONLY, 0).status()), EPERM);
  const int fd = Open(root());
  EXPECT_EQ(Map(root(), fd, MAP_SHARED, PROT_READ | PROT_WRITE, 3, 7)->address, 7 * kPage);
  EXPECT_EQ(ErrnoOf(Map(root(), fd, MAP_PRIVATE, PROT_READ).status()), ENODEV);
  EXPECT_EQ(ErrnoOf(Map(root(), fd, MAP_SHARED, PROT_READ, 2, kPoolPages - 1).status()), EINVAL);
  ASSERT_TRUE(broker_->devices().Remove("dev:/d", root().peer()).ok());
  ASSERT_EQ(Create("mem", {{"uid", "1001"}}), 0);
  EXPECT_TRUE(broker_->OpenFile(user(), "dev:/d", O_RDONLY, 0).ok());
}

TEST_F(DeviceTest, ARamdiskIsMappedWhereItLiesWithoutTruncate) {
  ASSERT_EQ(Create("ramdisk", {{"size", "16K"}}), 0);
  const int fd = Open(root());
  const auto shared = Map(root(), fd, MAP_SHARED, PROT_READ | PROT_WRITE, 4);
  ASSERT_TRUE(shared.ok());
  memory_[shared->address + 5000] = std::byte{'m'};
  EXPECT_EQ(Read(root(), fd, 5000, 1), "m");
  ASSERT_TRUE(Write(root(), fd, 0, "w").ok());
  EXPECT_EQ(memory_[shared->address], std::byte{'w'});
  EXPECT_EQ(ErrnoOf(Write(root(), fd, 16384, "w")), ENOSPC);
  EXPECT_EQ(ErrnoOf(broker_->Ftruncate(*root().File(fd), 100)), EINVAL);
  EXPECT_EQ(ErrnoOf(Map(root(), fd, MAP_SHARED, PROT_READ, 5).status()), EINVAL);
  // Who has it mapped keeps it.
  ASSERT_TRUE(broker_->devices().Remove("dev:/d", root().peer()).ok());
  root().CloseFile(fd).IgnoreError();
  EXPECT_EQ(memory_[shared->address + 5000], std::byte{'m'});
}

TEST_F(DeviceTest, ABlockDeviceThatIsNoMemoryIsCopied) {
  ASSERT_EQ(Create("ramdisk", {{"size", "8K"}, {"map", "copy"}}), 0);
  const int fd = Open(root());
  EXPECT_EQ(ErrnoOf(Map(root(), fd, MAP_SHARED, PROT_READ).status()), ENODEV);
  EXPECT_EQ(Map(root(), fd, MAP_PRIVATE, PROT_READ)->kind, MappingKind::kSharedCopy);
}

TEST_F(DeviceTest, AFramebufferIsSharedBlankAndNeverCopied) {
  ASSERT_EQ(Create("framebuffer", {{"width", "40"}, {"height", "30"}, {"format", "rgb565"}}), 0);
  const backing::DeviceInfo info = broker_->devices().Look("dev:/d")->info;
  EXPECT_EQ(info.stat.size, 40u * 30 * 2);
  EXPECT_EQ(info.properties.at("stride"), "80");
  const int fd = Open(root());
  const auto one = Map(root(), fd, MAP_SHARED, PROT_READ | PROT_WRITE);
  const auto two = Map(user(), Open(user()), MAP_SHARED, PROT_READ);
  ASSERT_TRUE(one.ok() && two.ok());
  EXPECT_EQ(one->address, two->address);
  EXPECT_EQ(memory_[one->address + 100], std::byte{0});
  EXPECT_EQ(ErrnoOf(Map(root(), fd, MAP_PRIVATE, PROT_READ).status()), ENODEV);
  EXPECT_EQ(ErrnoOf(Map(root(), fd, MAP_SHARED, PROT_READ | PROT_EXEC).status()), EINVAL);  // M18
}

TEST_F(DeviceTest, ProgrammingClearsBitsAndErasingSetsThem) {
  ASSERT_EQ(Create("flash", {{"chip", "nor"}, {"size", "16K"}, {"erase_size", "4K"}}), 0);
  const int fd = Open(root());
  EXPECT_EQ(Read(root(), fd, 0, 1), "\xff");
  ASSERT_TRUE(Write(root(), fd, 0, "\xf0\x3c").ok());
  ASSERT_TRUE(Write(root(), fd, 0, "\x3c\xff").ok());
  EXPECT_EQ(Read(root(), fd, 0, 2), "\x30\x3c");
  EXPECT_EQ(Erase(0, 100), EINVAL);
  EXPECT_EQ(Erase(16384, 4096), ENOSPC);
  EXPECT_EQ(Erase(0, 4096), 0);
  EXPECT_EQ(Read(root(), fd, 0, 2), "\xff\xff");
}

TEST_F(DeviceTest, NoMappingShowsAFlashThatChanges) {
  ASSERT_EQ(Create("flash", {{"chip", "nor"}, {"size", "16K"}, {"erase_size", "4K"}}), 0);
  const int fd = Open(root());
  ASSERT_TRUE(Write(root(), fd, 0, "data").ok());
  const auto window = Map(root(), fd, MAP_SHARED, PROT_READ | PROT_EXEC);
  ASSERT_TRUE(window.ok());
  EXPECT_EQ(window->kind, MappingKind::kDirect);
  EXPECT_EQ(memory_[window->address], std::byte{'d'});
  EXPECT_EQ(ErrnoOf(Write(root(), fd, 4000, "xx")), EBUSY);
  EXPECT_EQ(Erase(0, 4096), EBUSY);
  EXPECT_EQ(Erase(4096, 4096), 0);
  EXPECT_EQ(ErrnoOf(Map(root(), fd, MAP_SHARED, PROT_READ | PROT_WRITE).status()), EINVAL);  // M18
  ASSERT_TRUE(broker_->Munmap(root(), window->address, window->length).ok());
  EXPECT_EQ(Erase(0, 4096), 0);
}

TEST_F(DeviceTest, ARamChipIsMappedWritableAndARomCannotBeOpenedForWriting) {
  ASSERT_EQ(Create("flash", {{"chip", "ram"}, {"size", "8K"}}), 0);
  EXPECT_TRUE(Map(root(), Open(root()), MAP_SHARED, PROT_READ | PROT_WRITE).ok());
  ASSERT_EQ(Create("flash", {{"chip", "rom"}, {"size", "8K"}}, "dev:/rom"), 0);
  EXPECT_EQ(ErrnoOf(broker_->OpenFile(root(), "dev:/rom", O_RDWR, 0).status()), EACCES);
  const int fd = Open(root(), O_RDONLY, "dev:/rom");
  EXPECT_EQ(Map(root(), fd, MAP_PRIVATE, PROT_READ | PROT_EXEC)->kind, MappingKind::kDirect);
  EXPECT_EQ(ErrnoOf(broker_->devices().Erase("dev:/rom", 0, 8192, root().peer())), EACCES);
}

TEST_F(DeviceTest, TheExampleOfAKindDoesWhatItsPageSays) {
  const backing::DeviceEnvironment environment{nommu::kClassic, pages_, memory_};
  backing::DeviceSpec spec;
  spec.kind = "ramp";
  EXPECT_EQ(ErrnoOf(backing::kRampDevice.make(spec, environment).status()), EINVAL);
  spec.options = {{"size", "10K"}};
  const auto device = backing::kRampDevice.make(spec, environment);
  ASSERT_TRUE(device.ok()) << device.status();
  std::vector<std::byte> bytes(3);
  EXPECT_EQ(*(*device)->Read(255, bytes), 3u);
  EXPECT_EQ(bytes, (std::vector{std::byte{255}, std::byte{0}, std::byte{1}}));
  EXPECT_EQ(*(*device)->Read(10 * 1024 - 1, bytes), 1u);
  EXPECT_EQ(ErrnoOf((*device)->Write(0, bytes)), EINVAL);
  EXPECT_EQ(ErrnoOf((*device)->Erase(0, 1)), ENOTTY);
}

class ModernDeviceTest : public DeviceTest {
 protected:
  ModernDeviceTest() : DeviceTest(nommu::kModern) {}
};

TEST_F(ModernDeviceTest, TheFlashDriverOfTheRecordedKernelMapsNothingPrivate) {
  ASSERT_EQ(Create("flash", {{"chip", "rom"}, {"size", "8K"}}), 0);
  const int fd = Open(root(), O_RDONLY);
  EXPECT_EQ(ErrnoOf(Map(root(), fd, MAP_PRIVATE, PROT_READ).status()), EACCES);
  EXPECT_TRUE(Map(root(), fd, MAP_SHARED, PROT_READ).ok());
}

}  // namespace
}  // namespace mapbroker
