// A runtime directory without room, in a small file system of the test's own.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "mapbroker/error.h"
#include "tests/integration/connect.h"
#include "tests/integration/daemon.h"
#include "tests/integration/peer.h"

namespace mapbroker::testing {
namespace {

using ::testing::HasSubstr;

constexpr std::uint64_t kPage = 4096;
constexpr MapOptions kOwn{.length = 2 * kPage, .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE | MAP_ANONYMOUS};

// Room for the log, which is allocated at the start, and for little more.
constexpr char kSmall[] = "size=9m";
constexpr char kLarge[] = "size=64m";

class FullDisk : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directory(RuntimeDir());
    if (mount("tmpfs", RuntimeDir().c_str(), "tmpfs", 0, kSmall) != 0) GTEST_SKIP() << "only root can mount";
  }
  void TearDown() override {
    daemon_.reset();
    umount2(RuntimeDir().c_str(), MNT_DETACH);
  }

  std::string RuntimeDir() const { return home_.Path("run"); }
  void Start() { daemon_.emplace(std::vector<std::string>{}, RuntimeDir()); }
  // So that not a byte more can be written, neither to the disk nor to the log that LMDB has its records from.
  void FillUp(Client& client) const {
    std::ofstream file(RuntimeDir() + "/ballast", std::ios::binary | std::ios::app);
    for (std::string block(65'536, 'x'); !block.empty(); block.resize(block.size() / 2)) {
      while (file.write(block.data(), static_cast<std::streamsize>(block.size())).flush()) {
      }
      file.clear();
    }
    const std::string name = "ram:/" + std::string(4000, 'n');
    for (int i = 0; client.Open(name + std::to_string(i), O_RDWR | O_CREAT).ok(); ++i) {
    }
  }
  void MakeRoom() const {
    std::filesystem::remove(RuntimeDir() + "/ballast");
    ASSERT_EQ(mount("tmpfs", RuntimeDir().c_str(), "tmpfs", MS_REMOUNT, kLarge), 0);
  }
  // Maps until it is refused; the refusal.
  static absl::Status MapUntilRefused(Client& client, std::vector<Mapping>& mappings) {
    for (;;) {
      absl::StatusOr<Mapping> mapping = client.Map(kOwn);
      if (!mapping.ok()) return mapping.status();
      mapping->bytes()[0] = static_cast<std::byte>(mappings.size());
      mappings.push_back(*std::move(mapping));
    }
  }

  const TempDir home_;
  std::optional<Daemon> daemon_;
};

TEST_F(FullDisk, RefusesWhatCannotBeRecordedUnmapsAndGoesOnWhenThereIsRoom) {
  Start();
  Client client = Connect(*daemon_);
  FillUp(client);
  std::vector<Mapping> mappings;
  const absl::Status refused = MapUntilRefused(client, mappings);
  EXPECT_EQ(ErrnoOf(refused), ENOSPC) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("make room in the runtime directory"));
  const absl::Status no_file = client.Open("ram:/file", O_RDWR | O_CREAT).status();
  EXPECT_EQ(ErrnoOf(no_file), ENOSPC) << no_file;
  const absl::Status no_session = Client::Connect({.runtime_dir = RuntimeDir()}).status();
  EXPECT_EQ(ErrnoOf(no_session), ENOSPC) << no_session;
  // What is there is as it was, and can be given back.
  for (std::size_t i = 0; i < mappings.size(); ++i) ASSERT_EQ(mappings[i].bytes()[0], static_cast<std::byte>(i));
  for (Mapping& mapping : mappings) ASSERT_TRUE(mapping.Unmap().ok());
  mappings.clear();
  EXPECT_EQ(client.Statistics()->mappings, 0u);
  MakeRoom();
  WaitUntil("mappings can be made again", [&] { return client.Map(kOwn).ok(); });
  absl::StatusOr<Mapping> kept = client.Map(kOwn);
  ASSERT_TRUE(kept.ok()) << kept.status();
  // What was deferred is recorded by now.
  daemon_->Kill();
  Start();
  EXPECT_EQ(client.Statistics()->mappings, 1u);
  EXPECT_EQ(client.Statistics()->used, 2 * kPage);
}

TEST_F(FullDisk, ManyDeferredChangesAreNoReasonToRefuseForEver) {
  Start();
  Client client = Connect(*daemon_);
  std::vector<Mapping> held;
  // Their records are more than an entry of the log may have.
  for (int i = 0; i < 6'000; ++i) {
    absl::StatusOr<Mapping> mapping =
        client.Map({.length = 64, .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE | MAP_ANONYMOUS});
    ASSERT_TRUE(mapping.ok()) << mapping.status();
    held.push_back(*std::move(mapping));
  }
  FillUp(client);
  std::vector<Mapping> more;
  EXPECT_EQ(ErrnoOf(MapUntilRefused(client, more)), ENOSPC);
  more.clear();
  held.clear();  // deferred, all of it
  MakeRoom();
  WaitUntil("mappings can be made again", [&] { return client.Map(kOwn).ok(); });
  daemon_->Kill();
  Start();
  EXPECT_EQ(client.Statistics()->mappings, 0u);
}

TEST_F(FullDisk, AKilledDaemonDoesNotStartWithoutRoomAndLosesNothingByThat) {
  Start();
  Peer peer(RuntimeDir());
  const MapReply own = peer.Map("", kOwn);
  peer.Scribble(own);
  Client client = Connect(*daemon_);
  FillUp(client);
  std::vector<Mapping> mappings;
  EXPECT_EQ(ErrnoOf(MapUntilRefused(client, mappings)), ENOSPC);
  daemon_->Kill();
  const std::vector<std::string> options{"--runtime-dir", RuntimeDir(), "--pool-size", "64M"};
  for (int attempt = 0; attempt < 2; ++attempt) {
    const Finished refused = RunDaemon(options);
    EXPECT_NE(refused.status, 0);
    EXPECT_THAT(refused.errors, HasSubstr("make room"));
  }
  MakeRoom();
  Start();
  EXPECT_EQ(client.Statistics()->mappings, mappings.size() + 1);
  EXPECT_EQ(peer.Read(own), Bytes(2 * kPage, '\1'));
  for (std::size_t i = 0; i < mappings.size(); ++i) ASSERT_EQ(mappings[i].bytes()[0], static_cast<std::byte>(i));
  mappings.clear();
  EXPECT_EQ(peer.Unmap(own), 0);
  EXPECT_EQ(client.Statistics()->used, 0u);
}

}  // namespace
}  // namespace mapbroker::testing
