#include "shm_backend/ledger.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <string>

namespace mapbroker::shm {
namespace {

class LedgerTest : public ::testing::Test {
 protected:
  ~LedgerTest() override { std::filesystem::remove_all(directory_); }

  std::unique_ptr<Ledger> Open() {
    absl::StatusOr<std::unique_ptr<Ledger>> ledger = Ledger::Open(path_, 2);
    EXPECT_TRUE(ledger.ok()) << ledger.status();
    return *std::move(ledger);
  }
  static std::map<std::string, std::string> All(const Ledger& ledger, unsigned table) {
    std::map<std::string, std::string> all;
    EXPECT_TRUE(ledger
                    .ForEach(table,
                             [&](std::string_view key, std::string_view value) {
                               all.emplace(key, value);
                               return absl::OkStatus();
                             })
                    .ok());
    return all;
  }

  const std::string directory_ = [] {
    std::string name = "/tmp/mapbroker-ledger.XXXXXX";
    return std::string(mkdtemp(name.data()));
  }();
  const std::string path_ = directory_ + "/ledger.mdb";
};

using Records = std::map<std::string, std::string>;

TEST_F(LedgerTest, KeepsWhatWasAppliedAndDeletesWhatWasDeleted) {
  {
    const auto ledger = Open();
    const Ledger::Change changes[] = {{0, "a", "1"}, {0, "b", "2"}, {1, "a", "3"}, {0, "b"}, {0, "never there"}};
    ASSERT_TRUE(ledger->Apply(changes).ok());
  }
  const auto again = Open();
  EXPECT_EQ(All(*again, 0), (Records{{"a", "1"}}));
  EXPECT_EQ(All(*again, 1), (Records{{"a", "3"}}));
  EXPECT_EQ(*again->Count(0), 1u);
  EXPECT_EQ(*again->Get(0, "a"), "1");
  EXPECT_EQ(*again->Get(0, "b"), std::nullopt);
}

TEST_F(LedgerTest, KeysSortAsTheirNumbersDo) {
  EXPECT_LT(LedgerKey({1, 300}), LedgerKey({2, 1}));
  EXPECT_LT(LedgerKey({255}), LedgerKey({256}));
  EXPECT_EQ(LedgerNumbers(LedgerKey({7, 1ull << 60})), (std::vector<std::uint64_t>{7, 1ull << 60}));
}

// Two records change together until the process is killed.
TEST_F(LedgerTest, AKillLeavesWholeTransactions) {
  for (int round = 0; round < 20; ++round) {
    int applied[2];
    ASSERT_EQ(pipe(applied), 0);
    const pid_t pid = fork();
    if (pid == 0) {
      const auto ledger = *Ledger::Open(path_, 2);
      for (std::uint64_t i = 1;; ++i) {
        const std::string value = std::to_string(i) + std::string(i % 3000, 'x');
        const Ledger::Change changes[] = {{0, "both", value}, {1, "both", value}};
        if (!ledger->Apply(changes).ok() || write(applied[1], "x", 1) != 1) _exit(1);
      }
    }
    close(applied[1]);
    char byte;
    int acknowledged = 0;
    for (; acknowledged < 10 + 37 * round; ++acknowledged) ASSERT_EQ(read(applied[0], &byte, 1), 1);
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
    while (read(applied[0], &byte, 1) == 1) ++acknowledged;
    close(applied[0]);
    const auto ledger = Open();
    EXPECT_EQ(All(*ledger, 0), All(*ledger, 1));
    EXPECT_GE(std::stoi(All(*ledger, 0).at("both")), acknowledged) << "an acknowledged change is lost";
  }
}

TEST_F(LedgerTest, RefusesWhatIsNoLedger) {
  std::ofstream(path_) << std::string(100'000, 'x');
  EXPECT_EQ(Ledger::Open(path_, 2).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(LedgerTest, RefusesALedgerThatWasCutShort) {
  {
    const auto ledger = Open();
    for (int i = 0; i < 100; ++i) {
      const Ledger::Change change{0, std::to_string(i), std::string(1000, 'x')};
      ASSERT_TRUE(ledger->Apply({&change, 1}).ok());
    }
  }
  std::filesystem::resize_file(path_, std::filesystem::file_size(path_) / 2);
  EXPECT_EQ(Ledger::Open(path_, 2).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(LedgerTest, CountsWhatItHas) {
  const auto ledger = Open();
  const Ledger::Change changes[] = {{0, "a", "1"}, {1, "b", "2"}, {1, "c", "3"}};
  ASSERT_TRUE(ledger->Apply(changes).ok());
  ASSERT_EQ(*ledger->Count(0), 1u);  // the log is in LMDB by now
  const Ledger::Statistics statistics = *ledger->GetStatistics();
  EXPECT_EQ(statistics.records, 3u);
  EXPECT_GT(statistics.bytes, 0u);
  EXPECT_EQ(statistics.waiting, 0u);
  EXPECT_EQ(statistics.deferred, 0u);
  EXPECT_FALSE(statistics.failing);
}

// In a file system of its own that has little room.
TEST_F(LedgerTest, AFullDiskRefusesAChangeAndLosesNone) {
  if (mount("tmpfs", directory_.c_str(), "tmpfs", 0, "size=16m") != 0) GTEST_SKIP() << "only root can mount";
  Records applied;
  {
    const auto ledger = Open();
    absl::Status status;
    for (int i = 0; status.ok() && i < 100'000; ++i) {
      const Ledger::Change change{0, std::to_string(i), std::string(1000, 'x')};
      status = ledger->Apply({&change, 1});
      if (status.ok()) applied[change.key] = *change.value;
    }
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    EXPECT_GT(ledger->GetStatistics()->waiting, 0u);
    EXPECT_TRUE(ledger->GetStatistics()->failing);
    // Not "there is none": what is not in LMDB cannot be told.
    EXPECT_EQ(ledger->Get(0, "0").status().code(), absl::StatusCode::kResourceExhausted);
  }
  // What LMDB had no room for is in the log, and so is refused by the next to open it rather than lost.
  EXPECT_EQ(Ledger::Open(path_, 2).status().code(), absl::StatusCode::kResourceExhausted);
  ASSERT_EQ(mount("tmpfs", directory_.c_str(), "tmpfs", MS_REMOUNT, "size=64m"), 0);
  EXPECT_EQ(All(*Open(), 0), applied);
  umount(directory_.c_str());
}

}  // namespace
}  // namespace mapbroker::shm
