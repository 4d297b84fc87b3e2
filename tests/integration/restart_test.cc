// What a daemon takes over from one that was killed, or stopped with --keep-state.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/ipc.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <iterator>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "mapbroker/error.h"
#include "shm_backend/unique_fd.h"
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

TEST_F(Restart, KeepsMarksOfTracedProcesses) {
  Start();
  const std::string file = home_.MakeFile("file", kSize);
  Peer one(RuntimeDir()), traced(RuntimeDir());
  const MapReply shared = one.Map(file, {.length = kSize});
  ASSERT_TRUE(Connect(*daemon_).SetTraced(traced.pid(), true).ok());
  KillAndStart();
  EXPECT_NE(traced.Map(file, {.length = kSize}).address, shared.address);
}

// As systemd hands it over, with a descriptor that is another's.
TEST_F(Restart, FindsThePoolInTheFileDescriptorStore) {
  Start();
  shm::UniqueFd stored;
  {
    Peer peer(RuntimeDir());
    Client client = Connect(*daemon_);
    const absl::StatusOr<File> file = client.Open("ram:/kept", O_RDWR | O_CREAT);
    ASSERT_TRUE(file->Ftruncate(kPage).ok());
    const std::byte byte{'x'};
    ASSERT_TRUE(file->Pwrite({&byte, 1}, 0).ok());
    const std::string directory = "/proc/" + std::to_string(peer.pid()) + "/fd";
    for (const auto& entry : std::filesystem::directory_iterator(directory)) {
      if (std::filesystem::read_symlink(entry).string().find("mapbroker-pool") == std::string::npos) continue;
      stored.reset(open(entry.path().c_str(), O_RDWR | O_CLOEXEC));
    }
    ASSERT_TRUE(stored);
    daemon_->Kill();
  }
  Child daemon({"/bin/bash", "-c",
                "exec 3</dev/null 4<>/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(stored.get()) +
                    " && LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=other:pool exec " MAPBROKERD
                    " --pool-size 64M --runtime-dir " +
                    RuntimeDir()});
  WaitUntil("it serves", [&] { return Client::Connect({.runtime_dir = RuntimeDir()}).ok() || !daemon.Running(); });
  absl::StatusOr<Client> client = Client::Connect({.runtime_dir = RuntimeDir()});
  ASSERT_TRUE(client.ok()) << daemon.Errors();
  std::byte byte{};
  EXPECT_TRUE(client->Open("ram:/kept", O_RDONLY)->Pread({&byte, 1}, 0).ok());
  EXPECT_EQ(byte, std::byte{'x'});
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

TEST_F(Restart, ClientsGoOnByThemselves) {
  Start();
  const std::string file = home_.MakeFile("file", kSize);
  Peer peer(RuntimeDir());
  const MapReply before = peer.Map(file, {.length = kSize});
  KillAndStart();
  // The descriptor that was passed is gone and is passed again; the copy is there.
  EXPECT_EQ(peer.Map(file, {.length = kSize}).address, before.address);
  KillAndStart();
  EXPECT_EQ(peer.Unmap(before), 0);
  const MapReply own = peer.Map("", kAnonymous);
  EXPECT_EQ(own.error, 0) << own.sentence;
  KillAndStart();
  peer.Disconnect();
  Client client = Connect(*daemon_);
  WaitUntil("its session has ended", [&] { return client.Statistics()->sessions == 1; });
  EXPECT_EQ(client.Statistics()->used, 0u);
}

TEST_F(Restart, OpenRamFilesStayOpen) {
  Start();
  Client client = Connect(*daemon_);
  const absl::StatusOr<File> file = client.Open("ram:/open", O_RDWR | O_CREAT);
  ASSERT_TRUE(file->Ftruncate(kPage).ok());
  ASSERT_TRUE(client.Unlink("ram:/open").ok());
  absl::StatusOr<Mapping> mapping =
      client.Map({.length = kPage, .prot = PROT_READ | PROT_WRITE, .flags = MAP_SHARED, .file = &*file});
  ASSERT_TRUE(mapping.ok()) << mapping.status();
  mapping->bytes()[0] = std::byte{'x'};
  KillAndStart();
  std::byte byte{};
  ASSERT_TRUE(file->Pread({&byte, 1}, 0).ok());
  EXPECT_EQ(byte, std::byte{'x'});
  EXPECT_EQ(file->Stat()->name, "ram:/open (deleted)");
  EXPECT_EQ(ErrnoOf(file->Ftruncate(0)), ETXTBSY);
}

TEST_F(Restart, ADaemonThatDoesNotComeBackIsToldOfInTime) {
  Start();
  Client client = Connect(*daemon_, {.reconnect_timeout = std::chrono::milliseconds(100)});
  daemon_->Kill();
  const absl::Status status = client.Statistics().status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  Start({"--reset"});
  EXPECT_EQ(ErrnoOf(client.Statistics().status()), ESRCH);
}

// Threads of one client map, check and unmap while the daemon is killed, and stopped for a restart, again and again.
TEST_F(Restart, CallsUnderWayAreCarriedOutOnce) {
  const std::vector<std::string> options{"--keep-state"};
  Start(options);
  Client client =
      Connect(*daemon_, {.reconnect_timeout = std::chrono::duration_cast<std::chrono::milliseconds>(kDeadline)});
  std::atomic<bool> done = false;
  std::vector<std::map<std::uint64_t, Mapping>> held(4);
  const auto work = [&](std::size_t number) {
    std::minstd_rand random(static_cast<unsigned>(number));
    auto& mine = held[number];
    while (!done) {
      if (mine.size() > 20 || (!mine.empty() && random() % 2 == 0)) {
        const auto victim = std::next(mine.begin(), static_cast<std::ptrdiff_t>(random() % mine.size()));
        // Nobody else has written here since.
        for (const std::byte byte : victim->second.bytes()) ASSERT_EQ(byte, static_cast<std::byte>(number + 1));
        const absl::Status status = victim->second.Unmap();
        ASSERT_TRUE(status.ok()) << status;
        mine.erase(victim);
      } else {
        absl::StatusOr<Mapping> mapping = client.Map(
            {.length = (1 + random() % 8) * kPage, .prot = PROT_READ | PROT_WRITE, .flags = kAnonymous.flags});
        ASSERT_TRUE(mapping.ok()) << mapping.status();
        for (const std::byte byte : mapping->bytes()) ASSERT_EQ(byte, std::byte{0}) << "a residue";
        std::fill(mapping->bytes().begin(), mapping->bytes().end(), static_cast<std::byte>(number + 1));
        const std::uint64_t address = mapping->address();
        ASSERT_TRUE(mine.emplace(address, *std::move(mapping)).second) << "given out twice";
      }
    }
  };
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < held.size(); ++i) threads.emplace_back(work, i);
  Client observer =
      Connect(*daemon_, {.reconnect_timeout = std::chrono::duration_cast<std::chrono::milliseconds>(kDeadline)});
  std::minstd_rand random(1);
  for (int kill = 0; kill < 10; ++kill) {
    for (std::uint64_t calls = random() % 200; calls > 0; --calls) ASSERT_TRUE(observer.Statistics().ok());
    if (kill % 2 == 0) {
      daemon_->Kill();
    } else {
      daemon_->StopKeeping();
    }
    Start(options);
  }
  done = true;
  for (std::thread& thread : threads) thread.join();
  std::set<std::uint64_t> believed, listed;
  for (const auto& mine : held) {
    for (const auto& [address, mapping] : mine) believed.insert(address);
  }
  ASSERT_TRUE(observer.ListMappings(0, [&](const MappingRow& row) { return listed.insert(row.start), true; }).ok());
  EXPECT_EQ(listed, believed);
  held.clear();
  EXPECT_EQ(observer.Statistics()->used, 0u);
  WaitUntil("all of it is free", [&] { return observer.Statistics()->largest_free_run == std::uint64_t{64} << 20; });
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
