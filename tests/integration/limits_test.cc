// What an administrator sets: who may connect, how much each user may have, and that SIGHUP changes both.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "mapbroker/error.h"
#include "tests/integration/connect.h"
#include "tests/integration/daemon.h"
#include "tests/integration/peer.h"

namespace mapbroker::testing {
namespace {

using ::testing::HasSubstr;

constexpr std::uint64_t kPage = 4096;
constexpr uid_t kAlice = 20'001, kBob = 20'002;
constexpr MapOptions kAnonymous{.length = kPage, .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE | MAP_ANONYMOUS};

MapOptions Anonymous(std::uint64_t length) {
  MapOptions options = kAnonymous;
  options.length = length;
  return options;
}

// A daemon that everybody can reach, and its configuration file.
class Administered : public ::testing::Test {
 protected:
  Administered() { chmod(home_.Path("").c_str(), 0711); }

  void Configure(const std::string& text) { home_.WriteFile("mapbrokerd.toml", "[sockets]\nmode = \"0666\"\n" + text); }
  void Start(const std::string& text) {
    Configure(text);
    Start();
  }
  void Start() {
    mkdir(RuntimeDir().c_str(), 0711);
    daemon_.emplace(std::vector<std::string>{"--config", home_.Path("mapbrokerd.toml")}, RuntimeDir());
  }
  // Changes the file, and waits until the daemon has said what it makes of it.
  void Reload(const std::string& text, const std::string& outcome = "configuration reloaded") {
    Configure(text);
    Hangup(outcome);
  }
  void Hangup(const std::string& outcome = "configuration reloaded") {
    const std::size_t before = Count(outcome);
    daemon_->Signal(SIGHUP);
    WaitUntil(outcome, [&] { return Count(outcome) > before; });
  }
  std::size_t Count(const std::string& text) const {
    const std::string log = daemon_->Log();
    std::size_t count = 0;
    for (std::size_t at = log.find(text); at != std::string::npos; at = log.find(text, at + 1)) ++count;
    return count;
  }
  std::string RuntimeDir() const { return home_.Path("run"); }
  static std::string Limit(const std::string& key, const std::string& value) {
    return absl::StrCat("[limits]\n", key, " = ", value, "\n");
  }
  // What becomes of a user's attempt to connect: "connected", or the refusal.
  std::string ConnectAs(uid_t user, bool read_only = false) const {
    return mapbroker::testing::Run({PEER, RuntimeDir(), "region", read_only ? "read-only" : "read-write", ""},
                                   {{"MAPBROKER_TEST_USER", std::to_string(user)}})
        .output;
  }
  std::unique_ptr<Peer> Connect(uid_t user) const {
    return std::make_unique<Peer>(RuntimeDir(), ConnectOptions{}, user);
  }

  TempDir home_;
  std::optional<Daemon> daemon_;
};

#define SKIP_UNLESS_ROOT() \
  if (geteuid() != 0) GTEST_SKIP() << "only root can be several users"

TEST_F(Administered, WhoIsNotAllowedIsToldSoAndTheOthersAreServed) {
  SKIP_UNLESS_ROOT();
  Start(absl::StrCat("[access]\nallow_users = [", kAlice, "]\n"));
  EXPECT_THAT(ConnectAs(kAlice), HasSubstr("connected"));
  const std::string refusal = ConnectAs(kBob);
  EXPECT_THAT(refusal, HasSubstr("PERMISSION_DENIED"));
  EXPECT_THAT(refusal, HasSubstr("access.allow_users"));
  daemon_->ExpectServes();
  Reload(absl::StrCat("[access]\ndeny_groups = [", kAlice, "]\n"));
  EXPECT_THAT(ConnectAs(kAlice), HasSubstr("access.deny_users"));
  EXPECT_THAT(ConnectAs(kBob), HasSubstr("connected"));
  Reload("[access]\ndeny_users = [\"nobody\"]\n");
  EXPECT_THAT(ConnectAs(kAlice), HasSubstr("connected"));
  EXPECT_THAT(ConnectAs(65534), HasSubstr("access.deny_users"));
}

TEST_F(Administered, WhoMayOnlyReadIsTold) {
  SKIP_UNLESS_ROOT();
  Start(absl::StrCat("[access]\nread_only_users = [", kAlice, "]\n"));
  EXPECT_THAT(ConnectAs(kAlice), HasSubstr("access.read_only_users"));
  EXPECT_THAT(ConnectAs(kAlice, /*read_only=*/true), HasSubstr("connected"));
  EXPECT_THAT(ConnectAs(kBob), HasSubstr("connected"));
}

TEST_F(Administered, BytesAreGivenBackHoweverTheyAreLost) {
  SKIP_UNLESS_ROOT();
  Start(Limit("bytes", "\"64K\""));
  const auto other = Connect(kBob);
  for (int round = 0; round < 3; ++round) {
    const auto alice = Connect(kAlice);
    const MapReply first = alice->Map("", Anonymous(10 * kPage));
    ASSERT_EQ(first.error, 0) << first.sentence << " in round " << round;
    const MapReply refused = alice->Map("", Anonymous(7 * kPage));
    EXPECT_EQ(refused.error, ENOMEM);
    EXPECT_THAT(refused.sentence, HasSubstr(absl::StrCat("user ", kAlice, " may have 65536 bytes")));
    EXPECT_THAT(refused.sentence, HasSubstr("limits.bytes"));
    // The two files of the round before are there still, and cost a page each.
    const MapReply rest = alice->Map("", Anonymous((round == 0 ? 6 : 4) * kPage));
    EXPECT_EQ(rest.error, 0) << rest.sentence;
    EXPECT_EQ(alice->Unmap(first), 0);
    EXPECT_EQ(alice->SizeRamFile("ram:/mine", (round == 0 ? 9 : 10) * kPage), 0);
    EXPECT_EQ(alice->SizeRamFile("ram:/other", kPage), ENOMEM);
    EXPECT_EQ(alice->SizeRamFile("ram:/mine", 0), 0);
    EXPECT_EQ(alice->SizeRamFile("ram:/other", 0), 0);
    EXPECT_EQ(other->Map("", Anonymous(kPage)).error, 0) << "somebody else has to pay";
    alice->Kill();
    // Two files that are there stay.
    WaitUntil("what was alice's is given back", [&] {
      const auto next = Connect(kAlice);
      const bool free = next->Map("", Anonymous(14 * kPage)).error == 0;
      next->Disconnect();
      return free;
    });
  }
}

TEST_F(Administered, WhatWasThereBeforeARestartCountsAfterIt) {
  SKIP_UNLESS_ROOT();
  Start(Limit("bytes", "\"64K\"") + "mappings = 4\nsessions = 2\n");
  const auto alice = Connect(kAlice), second = Connect(kAlice);
  ASSERT_EQ(alice->Map("", Anonymous(4 * kPage)).error, 0);
  const MapReply own = second->Map("", Anonymous(4 * kPage));
  ASSERT_EQ(alice->SizeRamFile("ram:/file", 4 * kPage), 0);  // and one for being there
  for (int restarts = 0; restarts < 2; ++restarts) {
    daemon_->Kill();
    Start();
    EXPECT_EQ(alice->Map("", Anonymous(4 * kPage)).error, ENOMEM) << "13 of 16 pages are used";
    const MapReply last = alice->Map("", Anonymous(3 * kPage));
    EXPECT_EQ(last.error, 0) << last.sentence;
    EXPECT_EQ(alice->Unmap(last), 0);
    EXPECT_THAT(ConnectAs(kAlice), HasSubstr("limits.sessions"));
  }
  EXPECT_EQ(second->Unmap(own), 0);
  EXPECT_EQ(alice->Map("", Anonymous(7 * kPage)).error, 0);
  second->Disconnect();
  WaitUntil("the session has ended", [&] { return ConnectAs(kAlice).find("connected") != std::string::npos; });
}

TEST_F(Administered, MappingsAndSessionsHaveLimitsOfTheirOwn) {
  SKIP_UNLESS_ROOT();
  Start(Limit("mappings", "3") + absl::StrCat("sessions = 2\n[[limits.user]]\nuser = ", kBob, "\nmappings = 1\n"));
  const auto alice = Connect(kAlice), second = Connect(kAlice), bob = Connect(kBob);
  EXPECT_THAT(ConnectAs(kAlice), HasSubstr("may have 2 sessions and has 2"));
  EXPECT_EQ(alice->Map("", kAnonymous).error, 0);
  EXPECT_EQ(second->Map("", kAnonymous).error, 0);
  EXPECT_EQ(second->Map("", kAnonymous).error, 0);
  const MapReply refused = alice->Map("", kAnonymous);
  EXPECT_EQ(refused.error, ENOMEM);
  EXPECT_THAT(refused.sentence, HasSubstr("limits.mappings"));
  EXPECT_EQ(bob->Map("", kAnonymous).error, 0);
  EXPECT_EQ(bob->Map("", kAnonymous).error, ENOMEM);
  // Root is not limited where he is not named.
  Peer root(RuntimeDir());
  for (int i = 0; i < 10; ++i) EXPECT_EQ(root.Map("", kAnonymous).error, 0);
}

TEST_F(Administered, TooManyRequestsAreRefusedAndUnmappingNeverIs) {
  SKIP_UNLESS_ROOT();
  Start(Limit("requests_per_second", "5"));
  const auto alice = Connect(kAlice);
  std::vector<MapReply> mapped;
  MapReply reply;
  WaitUntil("a request is refused", [&] {
    reply = alice->Map("", kAnonymous);
    if (reply.error == 0) mapped.push_back(reply);
    return reply.error != 0;
  });
  EXPECT_EQ(reply.error, EAGAIN);
  EXPECT_THAT(reply.sentence, HasSubstr("limits.requests_per_second"));
  EXPECT_GE(mapped.size(), 4u);
  for (const MapReply& mapping : mapped) EXPECT_EQ(alice->Unmap(mapping), 0);
  daemon_->ExpectServes();
  WaitUntil("requests are served again", [&] { return alice->Map("", kAnonymous).error == 0; });
}

TEST_F(Administered, ConnectionsAreCountedOnBothSocketsAndAgainWhenTheyHaveEnded) {
  SKIP_UNLESS_ROOT();
  Start(Limit("connections", "4"));
  for (int round = 0; round < 3; ++round) {
    const auto one = Connect(kAlice), two = Connect(kAlice);
    ASSERT_EQ(one->Map("", kAnonymous).error, 0);  // gRPC connects with the first call
    ASSERT_EQ(two->Map("", kAnonymous).error, 0);
    EXPECT_THAT(ConnectAs(kAlice), HasSubstr("limits.connections"));
    one->Kill();
    two->Disconnect();
    WaitUntil("connections have ended", [&] { return ConnectAs(kAlice).find("connected") != std::string::npos; });
  }
}

TEST_F(Administered, ARestartsReconnectionsDoNotNeedMoreThanThereWas) {
  SKIP_UNLESS_ROOT();
  Start(Limit("connections", "2") + "sessions = 1\n");
  const auto alice = Connect(kAlice);
  ASSERT_EQ(alice->Map("", kAnonymous).error, 0);
  for (int i = 0; i < 3; ++i) {
    daemon_->Kill();
    Start();
    const MapReply reply = alice->Map("", kAnonymous);
    EXPECT_EQ(reply.error, 0) << reply.sentence;
  }
}

TEST_F(Administered, HangupChangesLimitsAndTheLogLevelWhileAllIsServed) {
  // Keys at the top come before all tables.
  const auto with_level = [&](const std::string& level, const std::string& shmmni) {
    home_.WriteFile("mapbrokerd.toml", absl::StrCat("log_level = \"", level, "\"\n[limits]\nshmmni = ", shmmni, "\n"));
  };
  with_level("info", "1");
  Start();
  Client client = mapbroker::testing::Connect(*daemon_);
  ASSERT_TRUE(client.Shmget(0, kPage, 0600).ok());
  EXPECT_EQ(ErrnoOf(client.Shmget(0, kPage, 0600).status()), ENOSPC);
  with_level("info", "2");
  Hangup();
  EXPECT_TRUE(client.Shmget(0, kPage, 0600).ok());
  with_level("error", "2");
  daemon_->Signal(SIGHUP);
  WaitUntil("sessions are no longer logged", [&] {
    const std::size_t before = Count("opened by process");
    mapbroker::testing::Connect(*daemon_);
    return Count("opened by process") == before;
  });
}

TEST_F(Administered, HangupTakesNothingAwayFromWhoHasMore) {
  SKIP_UNLESS_ROOT();
  Start("");
  const auto alice = Connect(kAlice);
  const MapReply mapping = alice->Map("", Anonymous(10 * kPage));
  ASSERT_EQ(mapping.error, 0);
  Reload(Limit("bytes", "\"16K\""));
  EXPECT_EQ(alice->Map("", kAnonymous).error, ENOMEM);
  EXPECT_EQ(alice->Read(mapping), Bytes(10 * kPage, '\0'));
  EXPECT_EQ(alice->Unmap(mapping), 0);
  EXPECT_EQ(alice->Map("", kAnonymous).error, 0);
}

TEST_F(Administered, ABadFileChangesNothingAndIsToldWithItsLine) {
  SKIP_UNLESS_ROOT();
  Start(Limit("mappings", "1"));
  const auto alice = Connect(kAlice);
  ASSERT_EQ(alice->Map("", kAnonymous).error, 0);
  // A right line before the wrong one.
  Reload(Limit("mappings", "100") + "sessions = \"many\"\n", "not reloaded");
  EXPECT_THAT(daemon_->Log(), HasSubstr(home_.Path("mapbrokerd.toml") + ":5: "));
  EXPECT_EQ(alice->Map("", kAnonymous).error, ENOMEM) << "half of a bad file was taken over";
  unlink(home_.Path("mapbrokerd.toml").c_str());
  Hangup("not reloaded");
  EXPECT_EQ(alice->Map("", kAnonymous).error, ENOMEM);
  Reload(Limit("mappings", "2"));
  EXPECT_EQ(alice->Map("", kAnonymous).error, 0);
}

TEST_F(Administered, WhatCannotChangeIsNamedAndLeft) {
  Start("");
  Reload("directory_mode = \"0700\"\n[pool]\nkind = \"shm:/other\"\n[[ram_file]]\nname = \"ram:/new\"\n",
         "cannot change");
  const std::string log = daemon_->Log();
  for (const char* key : {"sockets.directory_mode", "pool.kind", "[[ram_file]]"}) EXPECT_THAT(log, HasSubstr(key));
  EXPECT_EQ(log.find("pool.size"), std::string::npos) << "it is the command line's";
  daemon_->ExpectServes();
}

TEST_F(Administered, TheServiceManagerSeesTheReloadBeginAndEnd) {
  Start("");
  Hangup();
  std::vector<std::string> said;
  WaitUntil("the daemon is ready again", [&] {
    for (std::string next = daemon_->Notification(); !next.empty(); next = daemon_->Notification())
      said.push_back(next);
    return !said.empty() && said.back().find("READY=1") != std::string::npos;
  });
  ASSERT_EQ(said.size(), 2u);
  EXPECT_THAT(said[0], HasSubstr("RELOADING=1\nMONOTONIC_USEC="));
}

}  // namespace
}  // namespace mapbroker::testing
