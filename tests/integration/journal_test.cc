// What journald gets: records with fields. The test is the journald of a daemon that sees no other.
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "shm_backend/unique_fd.h"
#include "tests/integration/child.h"
#include "tests/integration/daemon.h"
#include "tests/integration/peer.h"
#include "tests/integration/raw_socket.h"

namespace mapbroker::testing {
namespace {

using Record = std::map<std::string, std::string>;

class Journal : public ::testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0 || testing::Run({"/usr/bin/unshare", "--mount", "/bin/true"}).status != 0) {
      GTEST_SKIP() << "only root may give a process a file system of its own";
    }
  }

  // A daemon whose standard error goes to journald, or where it says so falsely.
  void Start(const std::string& stream) {
    const std::string script =
        "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && mount --bind \"$1\" /run/systemd/journal && "
        "shift && JOURNAL_STREAM=" +
        stream + " exec \"$@\"";
    daemon_.emplace(std::vector<std::string>{"/usr/bin/unshare", "--mount", "/bin/sh", "-c", script, "sh",
                                             files_.Path(""), MAPBROKERD, "--runtime-dir", files_.Path("run"),
                                             "--pool-size", "4M", "--log-level", "debug"});
  }

  // The next record with this event; fails at the deadline.
  Record Next(const std::string& event) {
    Record record;
    WaitUntil("journald is told " + event, [&] {
      std::array<char, 65536> bytes;
      const ssize_t size = recv(socket_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
      if (size <= 0) return false;
      record.clear();
      std::istringstream lines(std::string(bytes.data(), static_cast<std::size_t>(size)));
      for (std::string line; std::getline(lines, line);) {
        record[line.substr(0, line.find('='))] = line.substr(line.find('=') + 1);
      }
      return record["MAPBROKER_EVENT"] == event;
    });
    return record;
  }

  const TempDir files_;
  const shm::UniqueFd socket_ = Bound(files_.Path("socket"), SOCK_DGRAM);
  std::optional<Child> daemon_;
};

TEST_F(Journal, GetsFieldsOfSessionProcessUserRuleErrnoAndAddress) {
  Start("$(stat -Lc %d:%i /proc/self/fd/2)");
  WaitUntil("the daemon serves",
            [&] { return Mapctl(files_.Path("run"), {"status"}).status == 0 || !daemon_->Running(); });
  Peer peer(files_.Path("run"));
  const std::string path = files_.MakeFile("file", 8192);
  Record opened;
  do opened = Next("session-opened");
  while (opened["MAPBROKER_PID"] != std::to_string(peer.pid()) && !HasFailure());
  EXPECT_EQ(opened["PRIORITY"], "6");
  EXPECT_EQ(opened["SYSLOG_IDENTIFIER"], "mapbrokerd");
  EXPECT_EQ(opened["MAPBROKER_UID"], std::to_string(getuid()));
  const std::string session = opened["MAPBROKER_SESSION"];
  EXPECT_EQ(opened["MESSAGE"], absl::StrCat("session ", session, " of process ", peer.pid(), " (uid 0): opened"));

  const MapReply mapping = peer.Map(path, {.length = 8192});
  Record mapped = Next("mapped");
  EXPECT_EQ(mapped["MAPBROKER_SESSION"], session);
  EXPECT_EQ(std::stoull(mapped["MAPBROKER_ADDRESS"], nullptr, 16), mapping.address);
  EXPECT_EQ(mapped["MAPBROKER_LENGTH"], "8192");
  EXPECT_EQ(mapped["MAPBROKER_PATH"], path);
  EXPECT_EQ(mapped["PRIORITY"], "7");

  ASSERT_EQ(peer.Map("", {.length = 1 << 30, .flags = MAP_PRIVATE | MAP_ANONYMOUS}).error, ENOMEM);
  Record refused = Next("refused");
  EXPECT_EQ(refused["MAPBROKER_RULE"], "M22");
  EXPECT_EQ(refused["MAPBROKER_ERRNO"], std::to_string(ENOMEM));
  EXPECT_EQ(refused["MAPBROKER_CALL"], "Mmap");
  EXPECT_EQ(refused["PRIORITY"], "4");
  EXPECT_EQ(daemon_->Errors(), "") << "said twice";
}

TEST_F(Journal, IsNotToldWhereStandardErrorIsSomethingElse) {
  Start("1:1");
  WaitUntil("the daemon serves",
            [&] { return Mapctl(files_.Path("run"), {"status"}).status == 0 || !daemon_->Running(); });
  EXPECT_NE(daemon_->Errors().find("session 1 of process"), std::string::npos) << daemon_->Errors();
  char byte;
  EXPECT_LT(recv(socket_.get(), &byte, 1, MSG_DONTWAIT), 0);
}

}  // namespace
}  // namespace mapbroker::testing
