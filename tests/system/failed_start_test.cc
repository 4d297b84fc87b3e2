// Starts after a kill that fail, or that find what only a kill can leave behind.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "daemon/records.h"
#include "mapbroker/error.h"
#include "shm_backend/ledger.h"
#include "tests/integration/connect.h"
#include "tests/integration/daemon.h"
#include "tests/integration/peer.h"

namespace mapbroker::testing {
namespace {

using ::testing::HasSubstr;

constexpr std::uint64_t kPage = 4096;
constexpr MapOptions kOwn{.length = 2 * kPage, .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE | MAP_ANONYMOUS};

class FailedStart : public ::testing::Test {
 protected:
  std::string RuntimeDir() const { return home_.Path("run"); }
  void Start(std::vector<std::string> options = {}, const std::string& points = "") {
    daemon_.emplace(std::move(options), RuntimeDir(), points);
  }
  Finished Refused(const std::string& points = "") {
    return RunDaemon({"--runtime-dir", RuntimeDir(), "--pool-size", "64M"}, points);
  }

  const TempDir home_;
  std::optional<Daemon> daemon_;
};

TEST_F(FailedStart, ASocketThatCannotBeMadeLosesNothing) {
  Start();
  Peer peer(RuntimeDir());
  const MapReply own = peer.Map("", kOwn);
  peer.Scribble(own);
  daemon_->Kill();
  const std::string socket = RuntimeDir() + "/mapbroker.sock";
  std::filesystem::remove(socket);
  std::filesystem::create_directory(socket);
  EXPECT_THAT(Refused().errors, HasSubstr("is no socket"));
  std::filesystem::remove(socket);
  Start();
  EXPECT_EQ(Connect(*daemon_).Statistics()->mappings, 1u);
  EXPECT_EQ(peer.Read(own), Bytes(2 * kPage, '\1'));
}

// Whichever of its readings of the ledger fails.
TEST_F(FailedStart, ALedgerThatCannotBeReadLosesNothing) {
  Start();
  Client client = Connect(*daemon_);
  const absl::StatusOr<File> file = client.Open("ram:/open", O_RDWR | O_CREAT);
  ASSERT_TRUE(file->Ftruncate(kPage).ok());
  const std::string text = "still there";
  ASSERT_TRUE(file->Pwrite(std::as_bytes(std::span(text)), 0).ok());
  ASSERT_TRUE(client.Unlink("ram:/open").ok());
  const absl::StatusOr<Mapping> own = client.Map(kOwn);
  ASSERT_TRUE(own.ok());
  daemon_->Kill();
  int refused = 0;
  for (int pass = 1;; ++pass) {
    const std::string points =
        home_.WriteFile("points" + std::to_string(pass), "ledger.read=EIO:" + std::to_string(pass));
    try {
      Start({}, points);
    } catch (const std::exception& failed) {
      ++refused;
      continue;
    }
    break;
  }
  EXPECT_GT(refused, 8);
  std::string read(text.size(), ' ');
  EXPECT_TRUE(file->Pread(std::as_writable_bytes(std::span(read)), 0).ok());
  EXPECT_EQ(read, text);
  int listed = 0;
  EXPECT_TRUE(client.ListMappings(getpid(), [&](const MappingRow&) { return ++listed > 0; }).ok());
  EXPECT_EQ(listed, 1);
}

// As a call leaves them that was under way when its session ended.
TEST_F(FailedStart, RecordsOfNoSessionAreDropped) {
  Start();
  Peer peer(RuntimeDir());
  ASSERT_EQ(peer.Map("", kOwn).error, 0);
  daemon_->Kill();
  {
    const auto ledger = shm::Ledger::Open(RuntimeDir() + "/ledger.mdb", kTables);
    ASSERT_TRUE(ledger.ok()) << ledger.status();
    const shm::Ledger::Change late[] = {{kSessionFiles, shm::LedgerKey({999, 1}), ""},
                                        {kResults, shm::LedgerKey({999, 1}), ""}};
    ASSERT_TRUE((*ledger)->Apply(late).ok());
  }
  Start();
  daemon_->ExpectServes();
  daemon_->Kill();
  const auto ledger = shm::Ledger::Open(RuntimeDir() + "/ledger.mdb", kTables);
  EXPECT_EQ(*(*ledger)->Count(kSessionFiles), 0u);
}

TEST_F(FailedStart, ADeclaredFileIsThereWholeOrNotAtAll) {
  const std::string contents = home_.WriteFile("contents", std::string(3 * kPage, 'd'));
  const std::string config =
      home_.WriteFile("config", "[[ram_file]]\nname = \"ram:/declared\"\ncontents = \"" + contents + "\"\n");
  const std::vector<std::string> named{"--config", config, "--pool", "file:" + home_.Path("pool")};
  for (int pass = 1;; ++pass) {
    const std::string points =
        home_.WriteFile("points" + std::to_string(pass), "log.appended=kill:" + std::to_string(pass));
    std::vector<std::string> reset = named;
    reset.push_back("--reset");
    try {
      Start(reset, points);
      daemon_->Kill();
      break;  // it is past all of them
    } catch (const std::exception& killed) {
      ASSERT_THAT(killed.what(), HasSubstr("log.appended: kill"));
    }
    Start(named);
    {
      Client client = Connect(*daemon_);
      const absl::StatusOr<File> file = client.Open("ram:/declared", O_RDONLY);
      ASSERT_TRUE(file.ok()) << file.status();
      std::string read(3 * kPage, ' ');
      ASSERT_EQ(*file->Pread(std::as_writable_bytes(std::span(read)), 0), 3 * kPage) << "killed at pass " << pass;
      EXPECT_EQ(Bytes(read), Bytes(std::string(3 * kPage, 'd'))) << "killed at pass " << pass;
      EXPECT_EQ(client.Statistics()->used, 3 * kPage);
    }
    daemon_->Kill();
  }
}

// The number of a file that is gone is another file's by and by.
TEST_F(FailedStart, AnotherFileOfTheSameNumberHasItsOwnContents) {
  Start();
  Peer peer(RuntimeDir());
  const std::string old = home_.WriteFile("old", std::string(2 * kPage, 'o'));
  struct stat before, after;
  ASSERT_EQ(stat(old.c_str(), &before), 0);
  const MapReply mapped = peer.Map(old, {.length = 2 * kPage});
  daemon_->Kill();
  std::filesystem::remove(old);
  const std::string fresh = home_.WriteFile("fresh", std::string(2 * kPage, 'f'));
  ASSERT_EQ(stat(fresh.c_str(), &after), 0);
  if (before.st_ino != after.st_ino) GTEST_SKIP() << "the file system does not give the number to the next file";
  Start();
  Peer other(RuntimeDir());
  EXPECT_EQ(other.Read(other.Map(fresh, {.length = 2 * kPage})), Bytes(2 * kPage, 'f'));
  EXPECT_EQ(peer.Read(mapped), Bytes(2 * kPage, 'o'));
}

}  // namespace
}  // namespace mapbroker::testing
