#include "shm_backend/write_ahead_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace mapbroker::shm {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class WriteAheadLogTest : public ::testing::Test {
 protected:
  ~WriteAheadLogTest() override { std::filesystem::remove_all(directory_); }

  std::unique_ptr<WriteAheadLog> Open() { return *WriteAheadLog::Open(path_); }
  std::vector<std::string> Recovered(std::uint64_t applied) {
    std::vector<std::string> entries;
    Open()->Recover(applied, [&](std::string_view entry) { entries.emplace_back(entry); });
    return entries;
  }
  void Damage(std::streamoff at) {
    std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(at);
    file.put('?');
  }

  const std::string directory_ = [] {
    std::string name = "/tmp/mapbroker-log.XXXXXX";
    return std::string(mkdtemp(name.data()));
  }();
  const std::string path_ = directory_ + "/log";
};

TEST_F(WriteAheadLogTest, KeepsEntriesAboveWhatWasApplied) {
  const auto log = Open();
  for (const char* entry : {"one", "two", "three"}) ASSERT_TRUE(log->Append(entry));
  EXPECT_EQ(log->last(), 3u);
  EXPECT_THAT(Recovered(0), ElementsAre("one", "two", "three"));
  EXPECT_THAT(Recovered(2), ElementsAre("three"));
  EXPECT_THAT(Recovered(3), IsEmpty());
}

TEST_F(WriteAheadLogTest, HalvesTakeTurnsAndAreReadInOrder) {
  const auto log = Open();
  ASSERT_TRUE(log->Append("one"));
  log->Turn();
  ASSERT_TRUE(log->Append("two"));
  EXPECT_THAT(Recovered(0), ElementsAre("one", "two"));
  log->ClearOther();
  EXPECT_THAT(Recovered(1), ElementsAre("two"));
  log->Turn();
  ASSERT_TRUE(log->Append("three"));
  EXPECT_THAT(Recovered(1), ElementsAre("two", "three"));
}

TEST_F(WriteAheadLogTest, WhatAnOlderTurnLeftBehindIsNotRead) {
  const auto log = Open();
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(log->Append("old, and longer than what is new"));
  log->Clear();
  ASSERT_TRUE(log->Append("new"));
  EXPECT_THAT(Recovered(10), ElementsAre("new"));
}

TEST_F(WriteAheadLogTest, ADamagedEntryEndsTheLog) {
  const auto log = Open();
  for (const char* entry : {"one", "two", "three"}) ASSERT_TRUE(log->Append(entry));
  Damage(24 + 16 + 1);  // in "two"
  EXPECT_THAT(Recovered(0), ElementsAre("one"));
}

TEST_F(WriteAheadLogTest, NumbersGoOnAfterARecovery) {
  ASSERT_TRUE(Open()->Append("one"));
  const auto log = Open();
  log->Recover(0, [](std::string_view) {});
  log->Clear();
  ASSERT_TRUE(log->Append("two"));
  EXPECT_EQ(log->last(), 2u);
  EXPECT_THAT(Recovered(1), ElementsAre("two"));
}

TEST_F(WriteAheadLogTest, RefusesAnEntryForWhichThereIsNoRoom) {
  const auto log = Open();
  const std::string entry(100'000, 'x');
  int taken = 0;
  while (log->Append(entry)) ++taken;
  EXPECT_EQ(taken, 41);
  EXPECT_EQ(Recovered(0).size(), 41u);
  EXPECT_FALSE(log->Append(std::string(WriteAheadLog::kMaxEntry + 1, 'x')));
}

}  // namespace
}  // namespace mapbroker::shm
