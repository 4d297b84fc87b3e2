// What another user can do with what he is given, and what he can see: docs/security.md says it in words.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/integration/connect.h"
#include "tests/integration/daemon.h"
#include "tests/integration/peer.h"

namespace mapbroker::testing {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr uid_t kStranger = 20'003;

// By what the pool is made of.
class PoolDescriptor : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "only root can be several users";
    chmod(home_.Path("").c_str(), 0711);
    home_.WriteFile("mapbrokerd.toml", "[sockets]\nmode = \"0666\"\n");
    mkdir(home_.Path("run").c_str(), 0711);
    std::string kind = GetParam();
    if (kind == "shm") {
      kind = absl::StrCat("shm:/mapbroker-security-", getpid());
      path_ = absl::StrCat("/dev/shm/mapbroker-security-", getpid());
    } else if (kind == "file") {
      path_ = absl::StrCat("/dev/shm/mapbroker-security-file-", getpid());
      kind = "file:" + path_;
    }
    daemon_.emplace(std::vector<std::string>{"--config", home_.Path("mapbrokerd.toml"), "--pool", kind},
                    home_.Path("run"));
  }

  // Every attempt and what came of it.
  std::map<std::string, std::string> Attack(const std::string& mode) {
    const Finished finished =
        mapbroker::testing::Run({STRANGER, home_.Path("run") + "/handoff.sock", std::to_string(kStranger), mode,
                                 std::to_string(daemon_->pid()), path_});
    EXPECT_EQ(finished.status, 0) << finished.output << finished.errors;
    std::map<std::string, std::string> outcomes;
    std::istringstream lines(finished.output);
    for (std::string name, outcome; lines >> name >> outcome;) outcomes[name] = outcome;
    return outcomes;
  }
  // Somebody else's page at the start of the pool, where the stranger attacks.
  void Fill(Peer& peer) {
    page_ = peer.Map("", {.length = kPage, .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE | MAP_ANONYMOUS});
    ASSERT_EQ(page_.address, 0u);
    peer.Scribble(page_);
  }

  const TempDir home_;
  std::string path_;
  MapReply page_;
  std::optional<Daemon> daemon_;
};

TEST_P(PoolDescriptor, OfAReadOnlySessionGivesNoWayToWrite) {
  Peer owner(home_.Path("run"));
  Fill(owner);
  const auto outcomes = Attack("read-only");
  ASSERT_GE(outcomes.size(), 20u);
  for (const auto& [attempt, outcome] : outcomes) {
    if (attempt == "map-readable") {
      EXPECT_EQ(outcome, "0") << "it cannot read";
    } else {
      EXPECT_NE(outcome, "0") << attempt << " succeeded";
    }
  }
  for (const char* attempt : {"reopen-read-write", "reopen-write", "map-writable", "protect-writable"}) {
    EXPECT_EQ(outcomes.at(attempt), "EACCES") << attempt;
  }
  EXPECT_EQ(owner.Read(page_), Bytes(kPage, '\1')) << "a stranger changed it";
  daemon_->ExpectServes();
}

// Whoever may write may write anywhere in the pool: that is the trust domain. The pool stays as large as it is.
TEST_P(PoolDescriptor, OfASessionThatWritesCannotTakeThePoolAway) {
  Peer owner(home_.Path("run"));
  Fill(owner);
  const auto outcomes = Attack("read-write");
  for (const char* attempt : {"chmod", "chmod-by-proc", "chown", "seal-write", "seal-future", "reopen-truncate",
                              "reopen-read-write", "collapse", "lease", "daemon-fd-list", "daemon-mem"}) {
    EXPECT_NE(outcomes.at(attempt), "0") << attempt << " succeeded";
  }
  EXPECT_EQ(outcomes.count("daemon-fd"), 0u);
  if (GetParam() != "memfd") {
    EXPECT_EQ(outcomes.at("path-read"), "EACCES");
    EXPECT_EQ(outcomes.at("path-write"), "EACCES");
    return;  // it can be cut, which is why a named pool is for those who trust all who write
  }
  for (const char* attempt : {"shrink", "grow", "allocate-beyond"}) EXPECT_EQ(outcomes.at(attempt), "EPERM") << attempt;
  // A hole reads as zeros, which it may write anyway; the page is there again at its next use.
  EXPECT_EQ(outcomes.at("punch"), "0");
  EXPECT_EQ(owner.Read(page_), Bytes(kPage, '\0'));
  owner.Scribble(page_);
  EXPECT_EQ(owner.Read(page_), Bytes(kPage, '\1'));
  daemon_->ExpectServes();
}

INSTANTIATE_TEST_SUITE_P(Pools, PoolDescriptor, ::testing::Values("memfd", "shm", "file"),
                         [](const auto& tested) { return tested.param; });

TEST(Secrets, TokensAreInNoLogLineAndTheLedgerIsTheDaemonsAlone) {
  Daemon daemon({"--log-level", "trace"});
  std::vector<std::string> tokens;
  {
    Peer one(daemon.runtime_dir());
    tokens.push_back(one.Token());
    Peer two(daemon.runtime_dir(), {.runtime_dir = "", .token = tokens[0]});
    tokens.push_back(two.Token());
    one.TakeUp();
    EXPECT_EQ(one.Map("", {.length = kPage, .flags = MAP_PRIVATE | MAP_ANONYMOUS}).error, 0);
    one.Disconnect();
    two.Kill();
  }
  WaitUntil("both have ended", [&] { return daemon.Log().find("session 2 of process") != std::string::npos; });
  const std::string log = daemon.Log();
  for (const std::string& token : tokens) {
    ASSERT_GE(token.size(), 32u);
    // The secret is all but the number that it begins with.
    for (std::size_t at = 16; at + 8 <= token.size(); ++at) {
      EXPECT_EQ(log.find(token.substr(at, 8)), std::string::npos) << "part of a token was logged";
    }
  }
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(daemon.runtime_dir())) {
    struct stat stat {};
    ASSERT_EQ(lstat(entry.path().c_str(), &stat), 0);
    if (S_ISSOCK(stat.st_mode)) continue;
    EXPECT_EQ(stat.st_mode & 0777, 0600u) << entry.path();
    ++files;
  }
  EXPECT_GT(files, 0) << "there is no ledger";
}

TEST(Secrets, AGuessedTokenIsWorthNothing) {
  Daemon daemon;
  Peer peer(daemon.runtime_dir());
  const std::string token = peer.Token();
  for (std::size_t at = 0; at < token.size(); ++at) {
    std::string guess = token;
    guess[at] = guess[at] == '0' ? '1' : '0';
    EXPECT_FALSE(Client::Connect({.runtime_dir = daemon.runtime_dir(), .token = guess}).ok()) << at;
  }
}

}  // namespace
}  // namespace mapbroker::testing
