// What happens, as watchers are told it; sessions as administrators list and end them.
#include <gmock/gmock.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "mapbroker/error.h"
#include "mapbroker/inspector.h"
#include "tests/integration/connect.h"
#include "tests/integration/daemon.h"
#include "tests/integration/peer.h"

namespace mapbroker::testing {
namespace {

using ::testing::HasSubstr;

constexpr std::uint64_t kSize = 20'480;

// mapctl watch, from when it misses nothing any more.
class Watcher {
 public:
  explicit Watcher(const Daemon& daemon, std::vector<std::string> options = {}) : process_(Command(daemon, options)) {
    WaitUntil("it watches", [&] { return !process_.Errors().empty() || !process_.Running(); });
    EXPECT_EQ(process_.Errors(), "mapctl: watching\n");
  }
  nlohmann::json Next() { return nlohmann::json::parse(process_.ReadLine()); }
  // The next of this kind, and no earlier ones any more.
  nlohmann::json Next(const std::string& kind) {
    for (;;) {
      const std::string line = process_.ReadLine();
      if (line.empty()) {
        ADD_FAILURE() << "no " << kind << ": " << process_.Errors();
        return nlohmann::json::object();
      }
      const nlohmann::json event = nlohmann::json::parse(line);
      if (event.value("kind", "") == kind) return event;
    }
  }
  Child& process() { return process_; }

 private:
  static std::vector<std::string> Command(const Daemon& daemon, const std::vector<std::string>& options) {
    std::vector<std::string> command{MAPCTL, "--json", "--runtime-dir", daemon.runtime_dir(), "watch"};
    command.insert(command.end(), options.begin(), options.end());
    return command;
  }
  Child process_;
};

class Watching : public ::testing::Test {
 protected:
  std::uint64_t SessionOf(pid_t pid) {
    std::uint64_t session = 0;
    EXPECT_TRUE(Inspector::Of(client_)
                    .ListSessions([&](const SessionRow& row) {
                      if (row.pid == pid) session = row.session;
                      return true;
                    })
                    .ok());
    return session;
  }

  Daemon daemon_;
  const std::string file_ = daemon_.files().MakeFile("file", kSize);
  Client client_ = Connect(daemon_);
};

TEST_F(Watching, TellsTheLifeOfASession) {
  Watcher watcher(daemon_);
  Peer peer(daemon_.runtime_dir());
  const MapReply mapping = peer.Map(file_, {.length = kSize});
  ASSERT_EQ(peer.Map(file_, {.length = 0}).error, EINVAL);
  ASSERT_EQ(peer.Unmap(mapping), 0);
  peer.Kill();

  const nlohmann::json opened = watcher.Next("session-opened");
  EXPECT_EQ(opened.at("pid"), peer.pid());
  EXPECT_EQ(opened.at("uid"), getuid());
  const std::uint64_t session = opened.at("session");
  const nlohmann::json filled = watcher.Next("filled");
  EXPECT_EQ(filled.at("path"), file_);
  EXPECT_FALSE(filled.contains("errno"));
  const nlohmann::json mapped = watcher.Next("mapped");
  EXPECT_EQ(mapped.at("session"), session);
  EXPECT_EQ(mapped.at("address"), mapping.address);
  EXPECT_EQ(mapped.at("length"), kSize);
  EXPECT_EQ(mapped.at("path"), file_);
  const nlohmann::json refused = watcher.Next("refused");
  EXPECT_EQ(refused.at("pid"), peer.pid());
  EXPECT_EQ(refused.at("session"), session);
  EXPECT_EQ(refused.at("call"), "Mmap");
  EXPECT_EQ(refused.at("errno"), "EINVAL");
  EXPECT_EQ(refused.at("rule"), "M5");
  EXPECT_EQ(watcher.Next("unmapped").at("address"), mapping.address);
  EXPECT_EQ(watcher.Next("session-ended").at("session"), session);
}

TEST_F(Watching, TellsOfDevices) {
  Watcher watcher(daemon_);
  ASSERT_TRUE(client_.CreateDevice({.name = "dev:/disk", .kind = "ramdisk", .options = {{"size", "64K"}}}).ok());
  EXPECT_FALSE(client_.CreateDevice({.name = "dev:/disk", .kind = "ramdisk", .options = {{"size", "64K"}}}).ok());
  ASSERT_TRUE(client_.RemoveDevice("dev:/disk").ok());
  EXPECT_EQ(watcher.Next("device-created").at("path"), "dev:/disk");
  EXPECT_EQ(watcher.Next("refused").at("errno"), "EEXIST");
  EXPECT_EQ(watcher.Next("device-removed").at("path"), "dev:/disk");
}

TEST_F(Watching, IsNarrowedByProcessSessionAndKind) {
  Peer other(daemon_.runtime_dir()), wanted(daemon_.runtime_dir());
  Watcher by_pid(daemon_, {"--pid", std::to_string(wanted.pid())});
  Watcher by_session(daemon_, {"--session", std::to_string(SessionOf(wanted.pid()))});
  Watcher by_kind(daemon_, {"--kind", "unmapped,refused"});
  const MapReply first = other.Map(file_, {.length = kSize});
  const MapReply second = wanted.Map(file_, {.length = kSize});
  ASSERT_EQ(other.Unmap(first), 0);
  EXPECT_EQ(by_pid.Next().at("pid"), wanted.pid());
  EXPECT_EQ(by_session.Next().at("pid"), wanted.pid());
  EXPECT_EQ(by_kind.Next().at("kind"), "unmapped");
  ASSERT_EQ(second.error, 0);
}

TEST_F(Watching, NamesTheKindsThereAreWhenAskedForAnother) {
  const Finished finished = Mapctl(daemon_.runtime_dir(), {"watch", "--kind", "frobnicated"});
  EXPECT_EQ(finished.status, 1);
  EXPECT_THAT(finished.errors, HasSubstr("EINVAL"));
  EXPECT_THAT(finished.errors, HasSubstr("session-opened, session-joined"));
}

TEST_F(Watching, OfAWatcherThatIsStoppedDelaysNobodyAndItIsToldWhatItLost) {
  Watcher stuck(daemon_);
  stuck.process().Signal(SIGSTOP);
  // Far more than is kept and than gRPC and the socket hold.
  constexpr int kRounds = 30'000;
  for (int i = 0; i < kRounds; ++i) {
    ASSERT_EQ(ErrnoOf(client_.Munmap(0x1000, 4096)), EINVAL);
  }
  daemon_.ExpectServes();
  stuck.process().Signal(SIGCONT);
  std::uint64_t told = 0, lost = 0;
  while (told + lost < kRounds) {
    const nlohmann::json event = stuck.Next();
    if (event.contains("lost")) {
      lost += event.at("lost").get<std::uint64_t>();
    } else {
      ++told;
    }
  }
  EXPECT_GT(lost, 0u);
}

TEST_F(Watching, EndsWithTheDaemonAndHoldsItUpForNobody) {
  Watcher watcher(daemon_);
  daemon_.Stop();
  EXPECT_NE(watcher.process().Wait(), 0);
  EXPECT_THAT(watcher.process().Errors(),
              ::testing::AnyOf(HasSubstr("ECANCELED: the daemon stops"), HasSubstr("ECONNRESET")));
}

TEST_F(Watching, IsForSoManyOfOneUserOnlyWhoIsNotRoot) {
  // Root's are bounded by the number in all.
  std::vector<std::unique_ptr<Watcher>> watchers;
  for (int i = 0; i < 32; ++i) watchers.push_back(std::make_unique<Watcher>(daemon_));
  const Finished refused = Mapctl(daemon_.runtime_dir(), {"watch"});
  EXPECT_EQ(refused.status, 1);
  EXPECT_THAT(refused.errors, HasSubstr("EAGAIN"));
  daemon_.ExpectServes();
  watchers.clear();
  WaitUntil("it is noticed that they have gone", [&] { return Inspector::Of(client_).Status()->watchers == 0; });
}

TEST_F(Watching, SessionsAreListedWithWhatTheyHaveAndDo) {
  Peer peer(daemon_.runtime_dir(), {.read_only = true});
  ASSERT_EQ(peer.Map(file_, {.length = kSize}).error, 0);
  ASSERT_EQ(peer.Map(file_, {.length = kSize}).error, 0);
  const Finished listed = Mapctl(daemon_.runtime_dir(), {"session", "ls", "--json"});
  ASSERT_EQ(listed.status, 0) << listed.errors;
  for (const nlohmann::json& session : nlohmann::json::parse(listed.output)) {
    if (session.at("pid") != peer.pid()) continue;
    EXPECT_EQ(session.at("mappings"), 2);
    EXPECT_EQ(session.at("mapped"), 2 * kSize);
    EXPECT_EQ(session.at("files"), 1);
    EXPECT_EQ(session.at("calls"), 2);
    EXPECT_EQ(session.at("command"), "test_peer");
    EXPECT_EQ(session.at("read_only"), true);
    EXPECT_EQ(session.at("revoked"), false);
    return;
  }
  FAIL() << listed.output;
}

TEST_F(Watching, ASessionThatIsEndedKeepsItsMemoryUntilItsProcessEnds) {
  Watcher watcher(daemon_);
  Peer peer(daemon_.runtime_dir());
  const MapReply mapping = peer.Map(file_, {.length = kSize});
  const std::string number = std::to_string(SessionOf(peer.pid()));
  ASSERT_EQ(Mapctl(daemon_.runtime_dir(), {"session", "end", number}).status, 0);
  EXPECT_EQ(watcher.Next("administered").at("sentence"), absl::StrCat("ended session ", number));
  EXPECT_EQ(watcher.Next("session-revoked").at("pid"), peer.pid());
  EXPECT_EQ(peer.Map(file_, {.length = kSize}).error, ESRCH);
  EXPECT_EQ(peer.Read(mapping), ReadFile(file_));
  EXPECT_EQ(client_.Statistics()->used, kSize);
  EXPECT_THAT(Mapctl(daemon_.runtime_dir(), {"session", "ls"}).output, HasSubstr("(revoked)"));
  peer.Kill();
  WaitUntil("its memory is free", [&] { return client_.Statistics()->used == 0; });
}

TEST_F(Watching, ASessionThatIsEndedWithItsProcessIsGone) {
  Peer peer(daemon_.runtime_dir());
  ASSERT_EQ(peer.Map(file_, {.length = kSize}).error, 0);
  const std::uint64_t session = SessionOf(peer.pid());
  ASSERT_TRUE(Inspector::Of(client_).EndSession(session, /*kill=*/true).ok());
  WaitUntil("its memory is free", [&] { return client_.Statistics()->used == 0; });
  WaitUntil("it is forgotten", [&] { return client_.Statistics()->sessions == 1; });
  EXPECT_EQ(ErrnoOf(Inspector::Of(client_).EndSession(session)), ESRCH);
}

TEST_F(Watching, AnEndedSessionStaysEndedForTheNextDaemon) {
  const TempDir home;
  const std::string dir = home.Path("run");
  std::optional<Daemon> daemon;
  daemon.emplace(std::vector<std::string>{}, dir);
  std::optional<Peer> peer(std::in_place, dir);
  const MapReply mapping = peer->Map(file_, {.length = kSize});
  {
    const Client admin = Connect(*daemon);
    std::uint64_t session = 0;
    ASSERT_TRUE(Inspector::Of(admin)
                    .ListSessions([&](const SessionRow& row) {
                      if (row.pid == peer->pid()) session = row.session;
                      return true;
                    })
                    .ok());
    ASSERT_TRUE(Inspector::Of(admin).EndSession(session).ok());
  }
  daemon->Kill();
  daemon.emplace(std::vector<std::string>{}, dir);
  EXPECT_EQ(peer->Map(file_, {.length = kSize}).error, ESRCH);
  EXPECT_EQ(peer->Read(mapping), ReadFile(file_));
  Client after = Connect(*daemon);
  EXPECT_EQ(after.Statistics()->used, kSize);
  peer->Kill();
  WaitUntil("its memory is free", [&] { return after.Statistics()->used == 0; });
}

TEST_F(Watching, TheLogLevelIsSetWhileTheDaemonRuns) {
  ASSERT_EQ(daemon_.Log().find("mapped"), std::string::npos);
  const Finished set = Mapctl(daemon_.runtime_dir(), {"log-level", "debug"});
  EXPECT_EQ(set.output, "the level was info\n") << set.errors;
  Peer peer(daemon_.runtime_dir());
  const MapReply mapping = peer.Map(file_, {.length = kSize});
  ASSERT_EQ(peer.Map(file_, {.length = 0}).error, EINVAL);
  const std::string log = daemon_.Log();
  const std::string subject =
      absl::StrCat("session ", SessionOf(peer.pid()), " of process ", peer.pid(), " (uid ", getuid(), "): ");
  EXPECT_THAT(log, HasSubstr(absl::StrCat(subject, "mapped")));
  EXPECT_THAT(log, HasSubstr(absl::StrCat(subject, "Mmap refused: EINVAL (M5)")));
  ASSERT_EQ(mapping.error, 0);
  EXPECT_EQ(ErrnoOf(Inspector::Of(client_).SetLogLevel("loud").status()), EINVAL);
}

TEST_F(Watching, OnlyRootAndTheDaemonsUserAdminister) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can be somebody else";
  Daemon open({"--config", daemon_.files().WriteFile("config.toml", "[sockets]\nmode = \"0666\"\n")});
  Peer victim(open.runtime_dir());
  ASSERT_EQ(victim.Map(file_, {.length = kSize}).error, 0);
  // The test's directories are root's alone, so another user is one by its credentials.
  const pid_t child = fork();
  if (child == 0) {
    // A user that is neither root nor the daemon's, whom the directory lets in by this.
    execl("/usr/bin/setpriv", "setpriv", "--reuid=65534", "--clear-groups", "--bounding-set=+dac_override",
          "--inh-caps=+dac_override", "--ambient-caps=+dac_override", MAPCTL, "--runtime-dir",
          open.runtime_dir().c_str(), "session", "end", "1", "--kill", nullptr);
    _exit(127);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 1);
  Client client = Connect(open);
  EXPECT_EQ(client.Statistics()->used, kSize) << "another user has ended a session";
  EXPECT_EQ(Inspector::Of(client).Status()->refused_total, 1u);
  EXPECT_THAT(Mapctl(open.runtime_dir(), {"session", "ls"}).output, ::testing::Not(HasSubstr("revoked")));
}

TEST_F(Watching, TopListsTheLargestSessionFirst) {
  Peer small(daemon_.runtime_dir()), large(daemon_.runtime_dir());
  ASSERT_EQ(small.Map("", {.length = 4096, .flags = MAP_PRIVATE | MAP_ANONYMOUS}).error, 0);
  ASSERT_EQ(large.Map("", {.length = 1 << 20, .flags = MAP_PRIVATE | MAP_ANONYMOUS}).error, 0);
  const Finished top = Mapctl(daemon_.runtime_dir(), {"top", "--json"});
  ASSERT_EQ(top.status, 0) << top.errors;
  const nlohmann::json sessions = nlohmann::json::parse(top.output);
  ASSERT_GE(sessions.size(), 3u);
  EXPECT_EQ(sessions[0].at("pid"), large.pid());
  EXPECT_EQ(sessions[1].at("pid"), small.pid());
  const Finished once = Mapctl(daemon_.runtime_dir(), {"top", "--once", "--sort", "mappings"});
  EXPECT_EQ(once.status, 0) << once.errors;
  EXPECT_THAT(once.output, HasSubstr("1.0 MiB"));
  EXPECT_EQ(once.output.find('\x1b'), std::string::npos);
  const Finished live = Mapctl(daemon_.runtime_dir(), {"top"});
  EXPECT_EQ(live.status, 1);
  EXPECT_THAT(live.errors, HasSubstr("--once"));
}

TEST_F(Watching, StatusTellsWhetherTheStateWasTakenOver) {
  const TempDir home;
  const std::string dir = home.Path("run");
  std::optional<Daemon> daemon;
  daemon.emplace(std::vector<std::string>{}, dir);
  Peer peer(dir);
  ASSERT_EQ(peer.Map(file_, {.length = kSize}).error, 0);
  const auto status = [&] { return nlohmann::json::parse(Mapctl(dir, {"status", "--json"}).output); };
  const nlohmann::json before = status();
  EXPECT_EQ(before.at("taken_over"), false);
  EXPECT_GT(before.at("ledger").at("records").get<int>() + before.at("ledger").at("waiting").get<int>(), 0);
  EXPECT_EQ(before.at("ledger").at("failing"), false);
  daemon->Kill();
  daemon.emplace(std::vector<std::string>{}, dir);
  const nlohmann::json after = status();
  EXPECT_EQ(after.at("taken_over"), true);
  EXPECT_EQ(after.at("state_since"), before.at("state_since"));
  EXPECT_EQ(after.at("mappings"), 1);
  EXPECT_THAT(Mapctl(dir, {"status"}).output, HasSubstr("taken over"));
}

}  // namespace
}  // namespace mapbroker::testing
