// What a daemon takes over from one that was killed, or stopped with --keep-state.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/ipc.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <span>
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
constexpr std::uint64_t kSize = 5 * kPage;
constexpr MapOptions kAnonymous{.length = kSize, .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE | MAP_ANONYMOUS};

class Restart : public ::testing::Test {
 protected:
  std::string RuntimeDir() const { return home_.Path("run"); }
  void Start(std::vector<std::string> options = {}) { daemon_.emplace(std::move(options), RuntimeDir()); }
  void KillAndStart(std::vector<std::string> options = {}) {
    daemon_->Kill();
    Start(std::move(options));
  }
  static std::string Listing(Client& client) {
    std::string listing;
    EXPECT_TRUE(client
                    .ListMappings(0,
                                  [&](const MappingRow& row) {
                                    listing += std::to_string(row.start) + "-" + std::to_string(row.end) + " " +
                                               row.perms + " " + std::to_string(row.offset) + " " +
                                               std::to_string(row.inode) + " " + row.path;
                                    for (const pid_t pid : row.pids) listing += " " + std::to_string(pid);
                                    listing += "\n";
                                    return true;
                                  })
                    .ok());
    return listing;
  }
  std::string Listing() {
    Client client = Connect(*daemon_);
    return Listing(client);
  }

  const TempDir home_;
  std::optional<Daemon> daemon_;
};

TEST_F(Restart, FindsWhoMapsWhatAndTheMemoryIsTheSame) {
  Start();
  const std::string file = home_.MakeFile("file", kSize);
  Peer one(RuntimeDir()), two(RuntimeDir());
  const MapReply shared = one.Map(file, {.length = kSize}), again = two.Map(file, {.length = kSize});
  const MapReply own = one.Map("", kAnonymous);
  const MapReply small = two.Map("", {.length = 100, .prot = PROT_READ | PROT_WRITE, .flags = kAnonymous.flags});
  one.Scribble(own);
  two.Scribble(small);
  const std::string before = Listing();
  KillAndStart();
  EXPECT_EQ(Listing(), before);
  EXPECT_EQ(one.Read(own), Bytes(kSize, '\1'));
  EXPECT_EQ(two.Read(small), Bytes(100, '\1'));
  EXPECT_EQ(one.Read(shared), ReadFile(file));
  // Who asks for the same range shares the copy that is there.
  Peer three(RuntimeDir());
  EXPECT_EQ(three.Map(file, {.length = kSize}).address, shared.address);
  EXPECT_EQ(again.address, shared.address);
}

TEST_F(Restart, GivesNothingThatIsInUseToAnybodyElse) {
  Start();
  Peer peer(RuntimeDir());
  const MapReply own = peer.Map("", kAnonymous);
  peer.Scribble(own);
  KillAndStart();
  Client client = Connect(*daemon_);
  WaitUntil("all that is free is clean", [&] { return client.Statistics()->scrubbing == 0; });
  const PoolStatistics statistics = *client.Statistics();
  EXPECT_EQ(statistics.used, kSize);
  const absl::StatusOr<Mapping> rest =
      client.Map({.length = statistics.largest_free_run, .prot = PROT_READ | PROT_WRITE, .flags = kAnonymous.flags});
  ASSERT_TRUE(rest.ok()) << rest.status();
  for (const std::byte byte : rest->bytes()) ASSERT_EQ(byte, std::byte{0});
  std::fill(rest->bytes().begin(), rest->bytes().end(), std::byte{0xff});
  EXPECT_EQ(peer.Read(own), Bytes(kSize, '\1'));
}

TEST_F(Restart, KeepsRamFilesAndSegments) {
  Start();
  Peer holder(RuntimeDir());  // has the pool in its hands
  int id = 0;
  {
    Client client = Connect(*daemon_);
    const absl::StatusOr<File> file = client.Open("ram:/kept", O_RDWR | O_CREAT, 0640);
    ASSERT_TRUE(file->Ftruncate(3 * kPage).ok());
    const std::string text = "still there";
    ASSERT_TRUE(file->Pwrite(std::as_bytes(std::span(text)), kPage).ok());
    // A hole, what adjoins by chance, and a cut in the middle.
    ASSERT_TRUE(file->Pwrite(std::as_bytes(std::span(text)), 6 * kPage).ok());
    ASSERT_TRUE(file->Pwrite(std::as_bytes(std::span(text)), 7 * kPage).ok());
    ASSERT_TRUE(file->Ftruncate(6 * kPage + 20).ok());
    ASSERT_TRUE(client.Open("ram:/gone", O_RDWR | O_CREAT).ok());
    ASSERT_TRUE(client.Unlink("ram:/gone").ok());
    id = *client.Shmget(0x1234, 8192, IPC_CREAT | 0600);
  }
  KillAndStart();
  Client client = Connect(*daemon_);
  const absl::StatusOr<FileStat> stat = client.Stat("ram:/kept");
  ASSERT_TRUE(stat.ok()) << stat.status();
  EXPECT_EQ(stat->size, 6 * kPage + 20);
  EXPECT_EQ(stat->allocated, 4 * kPage);
  EXPECT_EQ(stat->mode, 0640u);
  const absl::StatusOr<File> file = client.Open("ram:/kept", O_RDONLY);
  std::string text(11, ' ');
  EXPECT_EQ(*file->Pread(std::as_writable_bytes(std::span(text)), kPage), 11u);
  EXPECT_EQ(text, "still there");
  EXPECT_EQ(*file->Pread(std::as_writable_bytes(std::span(text)), 6 * kPage), 11u);
  EXPECT_EQ(text, "still there");
  EXPECT_FALSE(client.Stat("ram:/gone").ok());
  EXPECT_EQ(*client.Shmget(0x1234, 8192, 0600), id);
  EXPECT_EQ(client.Statistics()->used, 4 * kPage + 8192);
}

TEST_F(Restart, EndsTheSessionsOfProcessesThatDiedMeanwhile) {
  Start();
  Peer survivor(RuntimeDir());
  const MapReply kept = survivor.Map("", kAnonymous);
  {
    Peer victim(RuntimeDir());
    victim.Map("", kAnonymous);
    daemon_->Kill();
    victim.Kill();
  }
  Start();
  Client client = Connect(*daemon_);
  WaitUntil("the victim's memory is free", [&] { return client.Statistics()->used == kSize; });
  EXPECT_EQ(client.Statistics()->sessions, 2u);
  survivor.Kill();
  WaitUntil("the survivor's too", [&] { return client.Statistics()->used == 0; });
}

TEST_F(Restart, AStopWithKeepStateIsLikeAKill) {
  Start({"--keep-state", "--pool", "file:" + home_.Path("pool")});
  Peer peer(RuntimeDir());
  const MapReply own = peer.Map("", kAnonymous);
  peer.Scribble(own);
  const std::string before = Listing();
  daemon_->StopKeeping();
  EXPECT_EQ(peer.Read(own), Bytes(kSize, '\1'));
  Start({"--pool", "file:" + home_.Path("pool")});
  EXPECT_EQ(Listing(), before);
}

TEST_F(Restart, RefusesALedgerWhosePoolIsGoneUntilItIsToldToReset) {
  Start();
  {
    Peer peer(RuntimeDir());
    peer.Map("", kAnonymous);
    daemon_->Kill();
  }
  const std::vector<std::string> options{"--runtime-dir", RuntimeDir(), "--pool-size", "64M"};
  const Finished refused = RunDaemon(options);
  EXPECT_EQ(refused.status, 1);
  EXPECT_THAT(refused.errors, HasSubstr("--reset"));
  EXPECT_EQ(RunDaemon(options).status, 1) << "a refusal changes nothing";
  Start({"--reset"});
  EXPECT_EQ(Listing(), "");
}

TEST_F(Restart, RefusesADamagedLedger) {
  Start();
  Peer peer(RuntimeDir());
  peer.Map("", kAnonymous);
  daemon_->Kill();
  std::filesystem::resize_file(RuntimeDir() + "/ledger.mdb", 10'000);
  const Finished refused = RunDaemon({"--runtime-dir", RuntimeDir(), "--pool-size", "64M"});
  EXPECT_EQ(refused.status, 1);
  EXPECT_THAT(refused.errors, HasSubstr("--reset"));
}

TEST_F(Restart, StartsAnewWhenADaemonThatHeldNothingWasKilled) {
  Start();
  Connect(*daemon_);
  KillAndStart({"--pool-size", "8M"});
  EXPECT_EQ(Connect(*daemon_).Statistics()->pool_size, std::uint64_t{8} << 20);
}

}  // namespace
}  // namespace mapbroker::testing
