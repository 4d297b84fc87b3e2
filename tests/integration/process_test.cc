// Address spaces that processes share, take up again, look into and lose.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_format.h"
#include "mapbroker/error.h"
#include "shm_backend/unique_fd.h"
#include "tests/integration/connect.h"
#include "tests/integration/daemon.h"
#include "tests/integration/peer.h"

namespace mapbroker::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kSize = 2 * kPage;
constexpr MapOptions kAnonymous{.length = kSize, .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE | MAP_ANONYMOUS};

class ProcessTest : public ::testing::Test {
 protected:
  // Pool addresses of what the process has mapped; none if it has no session.
  std::vector<std::uint64_t> MappedBy(pid_t pid) {
    std::vector<std::uint64_t> starts;
    observer_
        .ListMappings(pid,
                      [&](const MappingRow& row) {
                        starts.push_back(row.start);
                        return true;
                      })
        .IgnoreError();
    return starts;
  }
  void UntilNothingUsed() {
    WaitUntil("nothing is used any more", [&] { return observer_.Statistics()->used == 0; });
  }
  void UntilSessions(std::uint64_t count) {
    WaitUntil("sessions have ended", [&] { return observer_.Statistics()->sessions == count; });
  }
  std::byte ByteAt(pid_t pid, std::uint64_t address) {
    std::byte byte{};
    EXPECT_EQ(*observer_.Peek(pid, address, {&byte, 1}), 1u);
    return byte;
  }

  Daemon daemon_;
  Client observer_ = Connect(daemon_);
  const std::string file_ = daemon_.files().MakeFile("file", 4 * kPage);
};

using SharedSpace = ProcessTest;

TEST_F(SharedSpace, WhatOneUserMapsAllHaveMapped) {
  Peer host(daemon_.runtime_dir());
  const MapReply of_host = host.Map("", kAnonymous);
  Peer guest(daemon_.runtime_dir(), {.attach = Attach::kWholePool, .token = host.Token()});
  const MapReply of_guest = guest.Map("", kAnonymous);
  std::vector<std::uint64_t> both{of_host.address, of_guest.address};
  std::sort(both.begin(), both.end());
  EXPECT_EQ(MappedBy(host.pid()), both);
  EXPECT_EQ(MappedBy(guest.pid()), both);
  EXPECT_EQ(guest.Unmap(of_guest), 0);
  EXPECT_THAT(MappedBy(host.pid()), ElementsAre(of_host.address));
}

TEST_F(SharedSpace, AListingNamesAllUsers) {
  Peer host(daemon_.runtime_dir());
  host.Map("", kAnonymous);
  Peer guest(daemon_.runtime_dir(), {.token = host.Token()});
  std::vector<pid_t> pids;
  ASSERT_TRUE(observer_.ListMappings(0, [&](const MappingRow& row) { return pids = row.pids, true; }).ok());
  EXPECT_THAT(pids, ::testing::UnorderedElementsAre(host.pid(), guest.pid()));
}

TEST_F(SharedSpace, LastsUntilItsLastUserGoes) {
  auto host = std::make_unique<Peer>(daemon_.runtime_dir());
  const MapReply mapping = host->Map("", kAnonymous);
  Peer guest(daemon_.runtime_dir(), {.token = host->Token()});
  const std::string token_of_guest = guest.Token();
  const pid_t pid_of_host = host->pid();
  host->Kill();
  WaitUntil("the host's session has ended", [&] { return MappedBy(pid_of_host).empty(); });
  EXPECT_THAT(MappedBy(guest.pid()), ElementsAre(mapping.address));
  // Those who are left may invite.
  Peer third(daemon_.runtime_dir(), {.token = token_of_guest});
  guest.Disconnect();
  EXPECT_THAT(MappedBy(third.pid()), ElementsAre(mapping.address));
  third.Kill();
  UntilNothingUsed();
  UntilSessions(1);
}

TEST_F(SharedSpace, AGuestThatGoesTakesNothingWithIt) {
  Peer host(daemon_.runtime_dir());
  const MapReply of_host = host.Map("", kAnonymous);
  host.Scribble(of_host);
  {
    Peer guest(daemon_.runtime_dir(), {.token = host.Token()});
    guest.Map("", kAnonymous);
    guest.Kill();
  }
  EXPECT_EQ(MappedBy(host.pid()).size(), 2u);
  EXPECT_EQ(host.Read(of_host), Bytes(kSize, '\1'));
  host.Kill();
  UntilNothingUsed();
}

TEST_F(SharedSpace, IsOpenedByNoOtherToken) {
  Peer host(daemon_.runtime_dir()), reader(daemon_.runtime_dir(), {.read_only = true});
  const auto error = [&](ConnectOptions options) {
    options.runtime_dir = daemon_.runtime_dir();
    return ErrnoOf(Client::Connect(options).status());
  };
  std::string token = host.Token();
  EXPECT_EQ(error({.token = "a word"}), EINVAL);
  EXPECT_EQ(error({.token = "00"}), ESRCH);
  EXPECT_EQ(error({.token = reader.Token()}), EACCES);
  EXPECT_EQ(error({.token = token, .executed = true}), EPERM);
  token.back() = token.back() == '0' ? '1' : '0';
  EXPECT_EQ(error({.token = token}), ESRCH);
  host.Disconnect();
  reader.Kill();
  UntilSessions(1);
  token.back() = token.back() == '0' ? '1' : '0';
  EXPECT_EQ(error({.token = token}), ESRCH);
  EXPECT_EQ(daemon_.Log().find(token.substr(16)), std::string::npos) << "the log tells a secret";
}

TEST_F(SharedSpace, IsTakenUpAgainByItsProcessAfterTheConnectionWasLost) {
  Peer peer(daemon_.runtime_dir());
  const MapReply before = peer.Map(file_, {.length = kSize});
  peer.CloseHandoffConnection();
  peer.TakeUp();
  const MapReply after = peer.Map(file_, {.length = kSize});
  EXPECT_EQ(after.address, before.address);
  EXPECT_EQ(MappedBy(peer.pid()).size(), 2u);
  EXPECT_EQ(observer_.Statistics()->sessions, 2u);
  EXPECT_EQ(peer.Unmap(before), 0);
  peer.Kill();
  UntilNothingUsed();
}

using Traced = ProcessTest;

TEST_F(Traced, AProcessUnderTheKernelsPtraceSharesNoPrivateMapping) {
  Peer one(daemon_.runtime_dir()), other(daemon_.runtime_dir());
  const MapReply before = one.Map(file_, {.length = kSize});
  if (ptrace(PTRACE_SEIZE, other.pid(), nullptr, nullptr) != 0) GTEST_SKIP() << "this machine allows no ptrace";
  // The daemon looks at intervals.
  MapReply traced;
  WaitUntil("it is seen to be traced", [&] {
    traced = other.Map(file_, {.length = kSize});
    return traced.address != before.address;
  });
  EXPECT_EQ(other.Read(traced), one.Read(before));
  ASSERT_EQ(ptrace(PTRACE_INTERRUPT, other.pid(), nullptr, nullptr), 0);
  ASSERT_EQ(waitpid(other.pid(), nullptr, 0), other.pid());
  ASSERT_EQ(ptrace(PTRACE_DETACH, other.pid(), nullptr, nullptr), 0);
  WaitUntil("it is seen not to be", [&] { return other.Map(file_, {.length = kSize}).address == before.address; });
}

TEST_F(Traced, IsMarkedAndUnmarkedByTheTool) {
  Peer one(daemon_.runtime_dir()), other(daemon_.runtime_dir());
  const MapReply before = one.Map(file_, {.length = kSize});
  const std::string pid = std::to_string(other.pid());
  ASSERT_EQ(Mapctl(daemon_.runtime_dir(), {"trace", pid}).status, 0);
  EXPECT_NE(other.Map(file_, {.length = kSize}).address, before.address);
  ASSERT_EQ(Mapctl(daemon_.runtime_dir(), {"trace", "--off", pid}).status, 0);
  EXPECT_EQ(other.Map(file_, {.length = kSize}).address, before.address);
}

using PeekAndPoke = ProcessTest;

TEST_F(PeekAndPoke, StayWithinOneMapping) {
  Peer peer(daemon_.runtime_dir());
  const MapReply mapping = peer.Map("", {.length = 40 * kPage, .prot = PROT_READ, .flags = kAnonymous.flags});
  std::vector<std::byte> bytes(41 * kPage, std::byte{7});
  EXPECT_EQ(*observer_.Poke(peer.pid(), mapping.address, bytes), 40 * kPage);
  EXPECT_EQ(peer.Read(mapping), Bytes(40 * kPage, '\7'));
  std::fill(bytes.begin(), bytes.end(), std::byte{});
  EXPECT_EQ(*observer_.Peek(peer.pid(), mapping.address + 3, bytes), 40 * kPage - 3);
  EXPECT_EQ(bytes[40 * kPage - 4], std::byte{7});
  EXPECT_EQ(bytes[40 * kPage - 3], std::byte{});
  const absl::Status outside = observer_.Peek(peer.pid(), mapping.address + 40 * kPage, bytes).status();
  EXPECT_EQ(ErrnoOf(outside), EIO);
  EXPECT_EQ(RuleOf(outside), "X5");
}

TEST_F(PeekAndPoke, LeaveMemoryOfOthersAlone) {
  Peer one(daemon_.runtime_dir()), other(daemon_.runtime_dir());
  const MapReply shared = one.Map(file_, {.length = kSize});
  const MapReply foreign = other.Map("", kAnonymous);
  const std::byte byte{1};
  EXPECT_EQ(ErrnoOf(observer_.Poke(one.pid(), shared.address, {&byte, 1}).status()), EIO);
  EXPECT_EQ(ErrnoOf(observer_.Poke(one.pid(), foreign.address, {&byte, 1}).status()), EIO);
  EXPECT_EQ(ByteAt(other.pid(), foreign.address), std::byte{0});
}

TEST_F(PeekAndPoke, AreNotForAReadOnlySessionToWriteBy) {
  Peer peer(daemon_.runtime_dir());
  const MapReply mapping = peer.Map("", kAnonymous);
  Client reader = Connect(daemon_, {.read_only = true});
  std::byte byte{1};
  EXPECT_EQ(ErrnoOf(reader.Poke(peer.pid(), mapping.address, {&byte, 1}).status()), EACCES);
  EXPECT_TRUE(reader.Peek(peer.pid(), mapping.address, {&byte, 1}).ok());
}

TEST_F(PeekAndPoke, NameAProcessThatIsThere) {
  std::byte byte{};
  const Child stranger({"/bin/cat"});
  EXPECT_EQ(ErrnoOf(observer_.Peek(stranger.pid(), 0, {&byte, 1}).status()), ESRCH);
  EXPECT_EQ(ErrnoOf(observer_.SetTraced(1 << 30, true)), ESRCH);
}

TEST_F(PeekAndPoke, OfTheTool) {
  Peer peer(daemon_.runtime_dir());
  const MapReply mapping = peer.Map("", kAnonymous);
  peer.Scribble(mapping);
  const std::string pid = std::to_string(peer.pid()), address = absl::StrFormat("%08x", mapping.address + 16);
  EXPECT_EQ(Mapctl(daemon_.runtime_dir(), {"peek", pid, address, "3"}).output, "\1\1\1");
  {
    Child poke({MAPCTL, "--runtime-dir", daemon_.runtime_dir(), "poke", pid, address});
    poke.WriteLine("hello");
    poke.CloseInput();
    EXPECT_EQ(poke.Wait(), 0);
  }
  EXPECT_EQ(peer.Read(mapping).substr(16, 7), "hello\n\1");
  // More than there is, of what is longer than one part.
  EXPECT_EQ(Mapctl(daemon_.runtime_dir(), {"peek", pid, "0x" + address, "1T"}).output.size(), kSize - 16);
  const Finished refused = Mapctl(daemon_.runtime_dir(), {"peek", pid, "0x4000000", "3"});
  EXPECT_EQ(refused.status, 1);
  EXPECT_THAT(refused.errors, HasSubstr("EIO"));
}

TEST(PeekOfOthers, IsForWhoMayTraceThem) {
  if (getuid() != 0) GTEST_SKIP() << "only root can act as another user";
  const TempDir config;
  const Daemon daemon({"--config", config.WriteFile("config.toml", "[sockets]\nmode = \"0666\"\n")});
  for (const std::string& directory : {daemon.runtime_dir() + "/..", daemon.runtime_dir()}) {
    ASSERT_EQ(chmod(directory.c_str(), 0755), 0);
  }
  Peer of_root(daemon.runtime_dir());
  const MapReply mapping = of_root.Map("", kAnonymous);
  // Credentials are a thread's own to the kernel, so one is enough to be another user.
  std::thread([&] {
    constexpr int kNobody = 65534;
    ASSERT_EQ(syscall(SYS_setresgid, kNobody, kNobody, kNobody), 0);
    ASSERT_EQ(syscall(SYS_setresuid, kNobody, kNobody, kNobody), 0);
    Client client = Connect(daemon);
    std::byte byte{1};
    EXPECT_EQ(ErrnoOf(client.Peek(of_root.pid(), mapping.address, {&byte, 1}).status()), EPERM);
    EXPECT_EQ(ErrnoOf(client.Poke(of_root.pid(), mapping.address, {&byte, 1}).status()), EPERM);
    EXPECT_EQ(ErrnoOf(client.SetTraced(of_root.pid(), true)), EPERM);
  }).join();
  Client root = Connect(daemon);
  std::byte byte{1};
  EXPECT_TRUE(root.Peek(of_root.pid(), mapping.address, {&byte, 1}).ok());
  EXPECT_EQ(byte, std::byte{0});
}

using TheEnd = ProcessTest;

TEST_F(TheEnd, ByTheHundredAtAnyInstantLeavesNothing) {
  constexpr int kWaves = 5, kPeers = 20;
  Peer survivor(daemon_.runtime_dir());
  const MapReply kept = survivor.Map(file_, {.length = kSize});
  const MapReply own = survivor.Map("", kAnonymous);
  survivor.Scribble(own);
  std::minstd_rand random(20261124);
  for (int wave = 0; wave < kWaves; ++wave) {
    std::vector<std::unique_ptr<Peer>> peers;
    for (int i = 0; i < kPeers; ++i) {
      peers.push_back(std::make_unique<Peer>(daemon_.runtime_dir()));
      peers.back()->StartChurn(file_);
    }
    std::shuffle(peers.begin(), peers.end(), random);
    for (const auto& peer : peers) {
      // Between two kills the others have made some calls.
      const std::uint64_t calls = random() % 20;
      for (std::uint64_t i = 0; i < calls; ++i) ASSERT_TRUE(observer_.Statistics().ok());
      peer->StartKill();
    }
  }
  UntilSessions(2);
  EXPECT_EQ(MappedBy(survivor.pid()).size(), 2u);
  EXPECT_EQ(survivor.Read(kept), ReadFile(file_).substr(0, kSize));
  EXPECT_EQ(survivor.Read(own), Bytes(kSize, '\1'));
  // The names of some ram files may be left, and what System V segments their makers did not come to remove: those
  // last without their maker (F6, V). All else is free, and zero.
  std::vector<std::string> left;
  ASSERT_TRUE(observer_
                  .ListFiles("ram:/churn-",
                             [&](const FileStat& file) {
                               left.push_back(file.name);
                               return true;
                             })
                  .ok());
  for (const std::string& name : left) EXPECT_TRUE(observer_.Unlink(name).ok());
  std::vector<int> segments;
  ASSERT_TRUE(observer_
                  .ListShmSegments([&](const ShmSegment& segment) {
                    EXPECT_EQ(segment.nattch, 0u);
                    segments.push_back(segment.id);
                    return true;
                  })
                  .ok());
  for (const int id : segments) EXPECT_TRUE(observer_.ShmRemove(id).ok());
  EXPECT_EQ(observer_.Statistics()->used, 2 * kSize);
  EXPECT_EQ(survivor.Unmap(kept), 0);
  EXPECT_EQ(survivor.Unmap(own), 0);
  WaitUntil("all is free", [&] { return observer_.Statistics()->largest_free_run == std::uint64_t{64} << 20; });
  const absl::StatusOr<Mapping> all = observer_.Map({.length = std::uint64_t{64} << 20, .flags = kAnonymous.flags});
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_TRUE(
      std::all_of(all->bytes().begin(), all->bytes().end(), [](std::byte byte) { return byte == std::byte{}; }));
}

}  // namespace
}  // namespace mapbroker::testing
