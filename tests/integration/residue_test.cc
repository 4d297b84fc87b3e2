// No byte of a previous owner in fresh memory: one user fills the whole pool with a pattern and loses it in some way;
// whatever another gets then holds zeros, or his file.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "mapbroker/error.h"
#include "shm_backend/unique_fd.h"
#include "tests/integration/connect.h"
#include "tests/integration/daemon.h"
#include "tests/integration/peer.h"

namespace mapbroker::testing {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kPool = std::uint64_t{8} << 20;
constexpr int kReadWrite = PROT_READ | PROT_WRITE;
// linux/mman.h has it, and a kernel without an MMU may leave such memory as it is (S1).
constexpr int kUninitialized = 0x4000000;

MapOptions Anonymous(std::uint64_t length, int further_flags = 0) {
  return {.length = length, .prot = kReadWrite, .flags = MAP_PRIVATE | MAP_ANONYMOUS | further_flags};
}

// By profile.
class Residue : public ::testing::TestWithParam<const char*> {
 protected:
  Residue() {
    chmod(home_.Path("").c_str(), 0711);
    mkdir(RuntimeDir().c_str(), 0711);
    // What exceeds a request stays with it, so that there is slack to look into.
    home_.WriteFile("mapbrokerd.toml", std::string("profile = \"") + GetParam() +
                                           "\"\n[sockets]\nmode = \"0666\"\n[limits]\nnr_trim_pages = 0\n");
    Start();
  }
  std::string RuntimeDir() const { return home_.Path("run"); }
  void Start() {
    daemon_.emplace(
        std::vector<std::string>{"--config", home_.Path("mapbrokerd.toml"), "--pool-size", std::to_string(kPool)},
        RuntimeDir());
  }
  static uid_t User(uid_t user) { return geteuid() == 0 ? user : 0; }

  // Fills all of the pool with a pattern, in pieces of every kind.
  std::unique_ptr<Peer> Dirty() {
    auto peer = std::make_unique<Peer>(RuntimeDir(), ConnectOptions{}, User(20'005));
    mapped_.clear();
    const auto dirty = [&](const std::string& file, const MapOptions& options) {
      const MapReply mapping = peer->Map(file, options);
      if (mapping.error != 0) return false;
      peer->Scribble(mapping);
      mapped_.push_back(mapping);
      return true;
    };
    const std::string file = home_.MakeFile("secret", 20 * kPage);
    EXPECT_TRUE(dirty(file, {.length = 20 * kPage, .prot = kReadWrite}));
    for (const std::uint64_t length : {50, 300, 2000}) {
      for (int i = 0; i < 20; ++i) EXPECT_TRUE(dirty("", Anonymous(length)));
    }
    for (std::uint64_t length = kPool; length >= kPage; length /= 2) {
      while (dirty("", Anonymous(length))) {
      }
    }
    return peer;
  }

  static bool IsZero(std::span<const std::byte> bytes) {
    return std::all_of(bytes.begin(), bytes.end(), [](std::byte byte) { return byte == std::byte{0}; });
  }
  static Mapping Fresh(Client& client, const MapOptions& options) {
    absl::StatusOr<Mapping> mapping = client.Map(options);
    EXPECT_TRUE(mapping.ok()) << mapping.status();
    return mapping.ok() ? *std::move(mapping) : Mapping();
  }
  // Everything that another user can get.
  void ExpectNothingOfIt() {
    Client client = Connect(*daemon_);
    WaitUntil("most of the pool is free again", [&] {
      const PoolStatistics statistics = *client.Statistics();
      return statistics.free + statistics.scrubbing >= kPool - kPool / 8;
    });
    // Attached whole pages, so that what lies beside the object is seen too.
    for (const std::uint64_t length : {1, 63, 100, 1000, 3000}) {
      const Mapping small = Fresh(client, Anonymous(length));
      ASSERT_FALSE(small.bytes().empty());
      EXPECT_TRUE(IsZero(small.bytes())) << length;
      const auto* const page = small.bytes().data() - small.address() % kPage;
      EXPECT_TRUE(IsZero({page, kPage})) << "beside an object of " << length << " bytes";
    }
    EXPECT_TRUE(IsZero(Fresh(client, Anonymous(20 * kPage, kUninitialized)).bytes()));

    // After a file's end, within its last page and in the pages beyond, copied and shared.
    const std::string contents(kPage + 100, 'f');
    const shm::UniqueFd file(open(home_.WriteFile("short", contents).c_str(), O_RDONLY | O_CLOEXEC));
    for (const int prot : {PROT_READ, kReadWrite}) {
      const Mapping mapping = Fresh(client, {.length = 7 * kPage, .prot = prot, .fd = file.get()});
      ASSERT_EQ(mapping.bytes().size(), 7 * kPage);
      EXPECT_TRUE(IsZero(mapping.bytes().subspan(contents.size())));
    }

    // What mremap gives.
    Mapping grown = Fresh(client, Anonymous(5 * kPage));
    if (grown.Resize(8 * kPage).ok()) {
      EXPECT_TRUE(IsZero(grown.bytes()));
    }

    // Ram files: whole, grown after a cut, and with holes.
    const auto ram = client.Open("ram:/fresh", O_RDWR | O_CREAT);
    ASSERT_TRUE(ram.ok()) << ram.status();
    const auto read = [&] {
      std::vector<std::byte> bytes(60 * kPage);
      bytes.resize(*ram->Pread(bytes, 0));
      return bytes;
    };
    ASSERT_TRUE(ram->Ftruncate(50 * kPage).ok());
    EXPECT_EQ(read().size(), 50 * kPage);
    EXPECT_TRUE(IsZero(read()));
    {
      const Mapping direct =
          Fresh(client, {.length = 50 * kPage, .prot = kReadWrite, .flags = MAP_SHARED, .file = &*ram});
      EXPECT_TRUE(IsZero(direct.bytes()));
      std::fill(direct.bytes().begin(), direct.bytes().end(), std::byte{7});
    }
    ASSERT_TRUE(ram->Ftruncate(10).ok());
    ASSERT_TRUE(ram->Ftruncate(50 * kPage).ok());
    EXPECT_TRUE(IsZero(std::span<const std::byte>(read()).subspan(10)));
    const std::byte one[1] = {std::byte{9}};
    ASSERT_TRUE(ram->Pwrite(one, 30 * kPage + 5).ok());
    std::vector<std::byte> holes = read();
    holes[30 * kPage + 5] = std::byte{0};
    EXPECT_TRUE(IsZero(std::span<const std::byte>(holes).subspan(10)));

    // Devices and segments.
    ASSERT_TRUE(client.CreateDevice({.name = "dev:/disk", .kind = "ramdisk", .options = {{"size", "100K"}}}).ok());
    const auto disk = client.Open("dev:/disk", O_RDONLY);
    ASSERT_TRUE(disk.ok()) << disk.status();
    EXPECT_TRUE(
        IsZero(Fresh(client, {.length = 25 * kPage, .prot = PROT_READ, .flags = MAP_SHARED, .file = &*disk}).bytes()));
    const auto segment = client.Shmget(0, 30 * kPage, 0600);
    ASSERT_TRUE(segment.ok()) << segment.status();
    const auto attached = client.Shmat(*segment);
    ASSERT_TRUE(attached.ok()) << attached.status();
    EXPECT_TRUE(IsZero(attached->bytes()));

    // And all that is left.
    std::uint64_t seen = 0;
    std::vector<Mapping> rest;
    for (std::uint64_t length = kPool; length >= kPage;) {
      absl::StatusOr<Mapping> mapping = client.Map(Anonymous(length));
      if (!mapping.ok()) {
        length /= 2;
        continue;
      }
      ASSERT_TRUE(IsZero(mapping->bytes())) << "at pool address " << mapping->address();
      seen += length;
      rest.push_back(*std::move(mapping));
    }
    EXPECT_GT(seen, kPool / 2);
    EXPECT_TRUE(client.Unlink("ram:/fresh").ok());
    EXPECT_TRUE(client.RemoveDevice("dev:/disk").ok());
    EXPECT_TRUE(client.ShmRemove(*segment).ok());
  }

  const TempDir home_;
  std::vector<MapReply> mapped_;
  std::optional<Daemon> daemon_;
};

TEST_P(Residue, OfMemoryThatWasUnmapped) {
  const auto peer = Dirty();
  for (const MapReply& mapping : mapped_) EXPECT_EQ(peer->Unmap(mapping), 0);
  ExpectNothingOfIt();
}

TEST_P(Residue, OfASessionThatEndedByItself) {
  const auto peer = Dirty();
  peer->Disconnect();
  ExpectNothingOfIt();
}

TEST_P(Residue, OfAProcessThatWasKilled) {
  const auto peer = Dirty();
  peer->Kill();
  ExpectNothingOfIt();
}

TEST_P(Residue, OfRamFilesThatWereRemoved) {
  {
    Client client = Connect(*daemon_);
    const auto ram = client.Open("ram:/secret", O_RDWR | O_CREAT);
    ASSERT_TRUE(ram.ok());
    const std::vector<std::byte> secret(256 << 10, std::byte{0xaa});
    std::uint64_t size = 0;
    while (ram->Pwrite(secret, size).ok()) size += secret.size();
    EXPECT_GT(size, kPool / 2);
    ASSERT_TRUE(client.Unlink("ram:/secret").ok());
  }
  ExpectNothingOfIt();
}

TEST_P(Residue, OfADeviceThatWasRemoved) {
  {
    Client client = Connect(*daemon_);
    ASSERT_TRUE(client.CreateDevice({.name = "dev:/secret", .kind = "ramdisk", .options = {{"size", "4M"}}}).ok());
    const auto disk = client.Open("dev:/secret", O_RDWR);
    ASSERT_TRUE(disk.ok()) << disk.status();
    const std::vector<std::byte> secret(256 << 10, std::byte{0xaa});
    for (std::uint64_t at = 0; at < std::uint64_t{4} << 20; at += secret.size()) {
      ASSERT_TRUE(disk->Pwrite(secret, at).ok());
    }
    ASSERT_TRUE(client.RemoveDevice("dev:/secret").ok());
  }
  ExpectNothingOfIt();
}

// The daemon is killed while it has just begun to free and clean, at another moment every time.
TEST_P(Residue, OfADaemonThatWasKilledWhileItCleaned) {
  Peer holder(RuntimeDir());  // has the pool in its hands
  for (int round = 0; round < 6; ++round) {
    const auto peer = Dirty();
    const std::size_t unmapped = mapped_.size() * static_cast<std::size_t>(round) / 6;
    for (std::size_t at = 0; at < unmapped; ++at) EXPECT_EQ(peer->Unmap(mapped_[at]), 0);
    peer->StartKill();
    if (round % 2 == 0) daemon_->Kill();
    peer->Kill();
    if (round % 2 == 1) daemon_->Kill();
    Start();
    ExpectNothingOfIt();
  }
}

INSTANTIATE_TEST_SUITE_P(Profiles, Residue, ::testing::Values("classic", "modern"),
                         [](const auto& tested) { return std::string(tested.param); });

}  // namespace
}  // namespace mapbroker::testing
