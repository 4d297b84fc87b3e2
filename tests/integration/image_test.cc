// Images as the tools of the field make them, and a block device of the kernel's.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "mapbroker/error.h"
#include "shm_backend/unique_fd.h"
#include "tests/integration/connect.h"
#include "tests/integration/daemon.h"

namespace mapbroker::testing {
namespace {

using ::testing::HasSubstr;

constexpr std::uint64_t kPage = 4096;

class Images : public ::testing::Test {
 protected:
  // A directory tree with files of many sizes, among them one that two names have.
  Images() {
    namespace fs = std::filesystem;
    fs::create_directories(root_ + "/sub/deep");
    for (const std::size_t size : {0, 1, 15, 16, 17, 4095, 4096, 4097, 100'000}) {
      Put("size-" + std::to_string(size), size);
      Put("sub/size-" + std::to_string(size), size + 1);
    }
    Put("sub/deep/a name with spaces", 5000);
    fs::create_hard_link(root_ + "/size-4097", root_ + "/sub/linked");
    files_["sub/linked"] = files_["size-4097"];
    fs::create_symlink("size-4096", root_ + "/symbolic");
  }

  void Put(const std::string& name, std::size_t size) {
    std::string contents(size, '\0');
    for (std::size_t i = 0; i < size; ++i) contents[i] = static_cast<char>('a' + (i + i / kPage + size) % 23);
    daemon_.files().WriteFile("root/" + name, contents);
    files_[name] = contents;
  }

  // Makes a device that holds the image and mounts it.
  void Mount(const std::string& image) {
    for (const std::vector<std::string>& arguments :
         {std::vector<std::string>{"device", "create", "rom", "flash", "chip=rom", "size=4M", "--contents", image},
          {"mount", "dev:/rom", "rom"}}) {
      const Finished finished = Mapctl(daemon_.runtime_dir(), arguments);
      ASSERT_EQ(finished.status, 0) << finished.errors;
    }
  }

  // Reads and maps every file, and compares all bytes. `kinds` gets what the mappings are made of.
  void Compare(std::map<std::string, MappingKind>& kinds) {
    const std::string listing = Mapctl(daemon_.runtime_dir(), {"ls", "mnt:/rom/"}).output;
    for (const auto& [name, contents] : files_) {
      SCOPED_TRACE(name);
      EXPECT_THAT(listing, HasSubstr("mnt:/rom/" + name + "\n"));
      const auto file = client_.Open("mnt:/rom/" + name, O_RDONLY);
      ASSERT_TRUE(file.ok()) << file.status();
      EXPECT_EQ(file->Stat()->size, contents.size());
      Bytes read(std::string(contents.size() + 1, '\0'));
      ASSERT_EQ(*file->Pread(std::as_writable_bytes(std::span(read.data(), read.size())), 0), contents.size());
      read.resize(contents.size());
      EXPECT_EQ(read, Bytes(contents));

      if (contents.empty()) continue;
      const auto mapping = client_.Map({.length = contents.size(), .prot = PROT_READ | PROT_EXEC, .file = &*file});
      ASSERT_TRUE(mapping.ok()) << mapping.status();
      EXPECT_EQ(std::memcmp(mapping->bytes().data(), contents.data(), contents.size()), 0);
      kinds[name] = mapping->kind();
    }
  }

  Daemon daemon_;
  Client client_ = Connect(daemon_);
  const std::string root_ = daemon_.files().Path("root");
  std::map<std::string, std::string> files_;
};

TEST_F(Images, GenromfsMakesFilesThatAreMappedWhereTheyLie) {
  const std::string image = daemon_.files().Path("image");
  const Finished made = testing::Run({"/usr/bin/genromfs", "-f", image, "-d", root_, "-A", "4096,/*"});
  ASSERT_EQ(made.status, 0) << "is genromfs installed? " << made.errors;
  Mount(image);
  const std::uint64_t before = client_.Statistics()->used;
  const auto file = client_.Open("mnt:/rom/size-100000", O_RDONLY);
  const auto text = client_.Map({.length = 98'304, .prot = PROT_READ | PROT_EXEC, .file = &*file});
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(client_.Statistics()->used, before) << "a byte was copied";
  std::map<std::string, MappingKind> kinds;
  Compare(kinds);
  EXPECT_EQ(kinds["size-4096"], MappingKind::kDirect);
}

TEST_F(Images, MkfsCramfsMakesFilesThatAreInflated) {
  const std::string image = daemon_.files().Path("image");
  const Finished made = testing::Run({"/sbin/mkfs.cramfs", root_, image});
  ASSERT_EQ(made.status, 0) << made.errors;
  Mount(image);
  std::map<std::string, MappingKind> kinds;
  Compare(kinds);
  EXPECT_EQ(kinds["size-100000"], MappingKind::kSharedCopy);
}

TEST_F(Images, ADamagedImageIsRefused) {
  const std::string image = daemon_.files().Path("image");
  ASSERT_EQ(testing::Run({"/sbin/mkfs.cramfs", root_, image}).status, 0);
  const shm::UniqueFd file(open(image.c_str(), O_WRONLY | O_CLOEXEC));
  ASSERT_EQ(pwrite(file.get(), "damage", 6, 300), 6);
  ASSERT_EQ(Mapctl(daemon_.runtime_dir(), {"device", "create", "rom", "flash", "size=4M", "--contents", image}).status,
            0);
  const Finished mounted = Mapctl(daemon_.runtime_dir(), {"mount", "dev:/rom", "rom"});
  EXPECT_EQ(mounted.status, 1);
  EXPECT_THAT(mounted.errors, HasSubstr("checksum"));
}

// Detached at the end of the test.
class LoopDevice {
 public:
  explicit LoopDevice(const std::string& file) {
    const Finished attached = Run({"/sbin/losetup", "--find", "--show", "--read-only", file});
    if (attached.status == 0) path_ = attached.output.substr(0, attached.output.find('\n'));
  }
  ~LoopDevice() {
    if (!path_.empty()) Run({"/sbin/losetup", "--detach", path_});
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

TEST(LoopDevices, AreCopiedSharedAndNotMappedShared) {
  if (geteuid() != 0) GTEST_SKIP() << "only root may attach a loop device";
  Daemon daemon;
  constexpr std::uint64_t kLength = 20 * 512;  // two and a half pages
  const std::string file = daemon.files().MakeFile("disk", kLength);
  const LoopDevice loop(file);
  if (loop.path().empty()) GTEST_SKIP() << "this machine gives no loop device";
  const shm::UniqueFd device(open(loop.path().c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(device) << loop.path();
  Client one = Connect(daemon), two = Connect(daemon);
  const MapOptions options{.length = 3 * kPage, .prot = PROT_READ, .flags = MAP_PRIVATE, .fd = device.get()};
  const auto a = one.Map(options), b = two.Map(options);
  ASSERT_TRUE(a.ok() && b.ok()) << a.status() << b.status();
  EXPECT_EQ(a->kind(), MappingKind::kSharedCopy);
  EXPECT_EQ(a->address(), b->address());
  const Bytes contents = ReadFile(file);
  EXPECT_EQ(std::memcmp(a->bytes().data(), contents.data(), kLength), 0);
  for (std::uint64_t at = kLength; at < 3 * kPage; ++at) ASSERT_EQ(a->bytes()[at], std::byte{0}) << at;
  auto own = one.Map({.length = kPage, .prot = PROT_READ | PROT_WRITE, .fd = device.get(), .offset = kPage});
  ASSERT_TRUE(own.ok()) << own.status();
  own->bytes()[0] = std::byte{1};
  EXPECT_EQ(std::memcmp(b->bytes().data(), contents.data(), kLength), 0);
  const absl::Status refused =
      one.Map({.length = kPage, .prot = PROT_READ, .flags = MAP_SHARED, .fd = device.get()}).status();
  EXPECT_EQ(ErrnoOf(refused), ENODEV);
}

}  // namespace
}  // namespace mapbroker::testing
