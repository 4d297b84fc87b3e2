// The way of a request with real memory: fills that are shared, that fail, and that nobody wants any more.
#include "daemon/broker.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#include "daemon/nommu/refusal.h"

namespace mapbroker {
namespace {

using nommu::ErrnoOf;

constexpr std::uint64_t kPage = shm::kPageSize;
constexpr std::uint64_t kPoolPages = 64;

// A file whose reads wait until the test lets them go on, and then fail if the test says so.
class SlowFile final : public backing::Backing {
 public:
  explicit SlowFile(std::uint64_t inode) {
    id = {7, inode};
    capabilities = nommu::kMapCopy;
    readable = true;
  }
  absl::StatusOr<std::uint64_t> Size() const override { return kPoolPages * kPage; }
  absl::StatusOr<std::size_t> Read(std::uint64_t, std::span<std::byte> into) const override {
    std::unique_lock lock(mutex_);
    ++reads_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return open_; });
    if (error_ != 0) return nommu::Refuse(error_, "", "told to fail");
    std::memset(into.data(), 'x', into.size());
    return into.size();
  }
  std::string Path() const override { return "/slow"; }

  void WaitForReader() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return reads_ > 0; });
  }
  void Open(int error = 0) {
    std::lock_guard lock(mutex_);
    open_ = true;
    error_ = error;
    changed_.notify_all();
  }
  int reads() const {
    std::lock_guard lock(mutex_);
    return reads_;
  }

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  mutable int reads_ = 0;
  bool open_ = false;
  int error_ = 0;
};

class BrokerTest : public ::testing::Test {
 protected:
  BrokerTest()
      : memory_(kPoolPages * kPage), pages_(memory_, /*prefault=*/false), broker_(nommu::kClassic, pages_, memory_) {}

  std::shared_ptr<session::Session> NewSession(bool read_only = false) {
    const pid_t pid = static_cast<pid_t>(sessions_.size()) + 1000;
    sessions_.push_back(std::make_shared<session::Session>(sessions_.size() + 1, Credentials{pid, 0, 0, {}}, read_only,
                                                           broker_.OpenSpace(pid)));
    return sessions_.back();
  }
  void End(const session::Session& session) {
    while (!broker_.LeaveSpace(session.space(), session.peer().pid)) {
    }
  }
  absl::StatusOr<nommu::Grant> MapFile(session::Session& session, const std::shared_ptr<SlowFile>& file,
                                       std::uint64_t pages = 2, std::uint32_t prot = PROT_READ) {
    const int fd = *session.AddFile(file);
    return broker_.Mmap(session, {.length = pages * kPage, .prot = prot, .flags = MAP_PRIVATE}, fd);
  }
  absl::StatusOr<nommu::Grant> MapAnonymous(session::Session& session, std::uint64_t pages) {
    return broker_.Mmap(
        session, {.length = pages * kPage, .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE | MAP_ANONYMOUS}, -1);
  }
  void ExpectNothingLeaked() {
    for (const auto& session : sessions_) End(*session);
    pages_.WaitUntilIdle();
    const Statistics statistics = broker_.GetStatistics();
    EXPECT_EQ(statistics.pool.free, kPoolPages * kPage);
    EXPECT_EQ(statistics.map.regions, 0u);
    EXPECT_EQ(statistics.map.mappings, 0u);
    EXPECT_EQ(statistics.filling, 0u);
  }

  std::vector<std::byte> memory_;
  shm::PagePool pages_;
  Broker broker_;
  std::vector<std::shared_ptr<session::Session>> sessions_;
};

TEST_F(BrokerTest, ManyRequestsForARangeCauseOneRead) {
  auto file = std::make_shared<SlowFile>(1);
  std::vector<std::thread> threads;
  std::vector<absl::StatusOr<nommu::Grant>> grants(8);
  for (auto& grant : grants) {
    threads.emplace_back([&, session = NewSession()] { grant = MapFile(*session, file); });
  }
  file->WaitForReader();
  file->Open();
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(file->reads(), 1);
  EXPECT_EQ(broker_.GetStatistics().fills_total, 1u);
  for (const auto& grant : grants) {
    ASSERT_TRUE(grant.ok());
    EXPECT_EQ(grant->address, grants[0]->address);
  }
  EXPECT_EQ(memory_[grants[0]->address], std::byte{'x'});
  ExpectNothingLeaked();
}

TEST_F(BrokerTest, AFailingFillGivesItsErrnoToAllWhoWait) {
  auto file = std::make_shared<SlowFile>(1);
  std::vector<std::thread> threads;
  std::vector<absl::StatusOr<nommu::Grant>> grants(4);
  threads.emplace_back([&, session = NewSession()] { grants[0] = MapFile(*session, file); });
  file->WaitForReader();
  for (int i = 1; i < 4; ++i) {
    threads.emplace_back([&, i, session = NewSession()] { grants[i] = MapFile(*session, file); });
  }
  file->Open(EIO);
  for (auto& thread : threads) thread.join();
  for (const auto& grant : grants) EXPECT_EQ(ErrnoOf(grant.status()), EIO);
  ExpectNothingLeaked();
}

TEST_F(BrokerTest, WaitersGetTheirMappingThoughTheFirstRequesterDied) {
  auto file = std::make_shared<SlowFile>(1);
  auto first = NewSession(), second = NewSession();
  absl::StatusOr<nommu::Grant> of_first, of_second;
  std::thread filling([&] { of_first = MapFile(*first, file); });
  file->WaitForReader();
  std::thread waiting([&] { of_second = MapFile(*second, file); });
  End(*first);
  file->Open();
  filling.join();
  waiting.join();
  EXPECT_EQ(ErrnoOf(of_first.status()), ESRCH);
  EXPECT_TRUE(of_second.ok());
  EXPECT_EQ(broker_.GetStatistics().map.mappings, 1u);
  ExpectNothingLeaked();
}

TEST_F(BrokerTest, AFillThatNobodyWantsAnyMoreLeaksNothing) {
  auto file = std::make_shared<SlowFile>(1);
  auto session = NewSession();
  absl::StatusOr<nommu::Grant> grant;
  std::thread filling([&] { grant = MapFile(*session, file); });
  file->WaitForReader();
  End(*session);
  file->Open();
  filling.join();
  EXPECT_FALSE(grant.ok());
  ExpectNothingLeaked();
}

TEST_F(BrokerTest, OtherFilesDoNotWaitForASlowOne) {
  auto slow = std::make_shared<SlowFile>(1), quick = std::make_shared<SlowFile>(2);
  quick->Open();
  auto one = NewSession(), other = NewSession();
  absl::StatusOr<nommu::Grant> grant;
  std::thread filling([&] { grant = MapFile(*one, slow); });
  slow->WaitForReader();
  EXPECT_TRUE(MapFile(*other, quick).ok());
  EXPECT_TRUE(MapAnonymous(*other, 1).ok());
  EXPECT_EQ(broker_.GetStatistics().filling, 1u);
  nommu::MemoryMap::Cursor cursor;
  EXPECT_EQ(broker_.List(0, cursor)->size(), 2u) << "what is still being filled is not listed";
  slow->Open();
  filling.join();
  ExpectNothingLeaked();
}

TEST_F(BrokerTest, APrivateWritableCopyIsItsOwnersAlone) {
  auto file = std::make_shared<SlowFile>(1);
  file->Open();
  auto one = NewSession(), other = NewSession();
  const nommu::Grant shared = *MapFile(*one, file);
  const nommu::Grant own = *MapFile(*other, file, 2, PROT_READ | PROT_WRITE);
  memory_[own.address] = std::byte{'!'};
  EXPECT_EQ(memory_[shared.address], std::byte{'x'});
  EXPECT_EQ(MapFile(*one, file)->address, shared.address);
  ExpectNothingLeaked();
}

TEST_F(BrokerTest, FreshMemoryHoldsNothingOfItsLastOwner) {
  auto session = NewSession();
  const nommu::Grant first = *MapAnonymous(*session, kPoolPages);
  std::memset(memory_.data(), 'S', memory_.size());
  ASSERT_TRUE(broker_.Munmap(*session, first.address, first.length).ok());
  const nommu::Grant second = *MapAnonymous(*session, kPoolPages);
  EXPECT_EQ(second.address, 0u);
  EXPECT_TRUE(std::all_of(memory_.begin(), memory_.end(), [](std::byte b) { return b == std::byte{0}; }));
  ExpectNothingLeaked();
}

TEST_F(BrokerTest, WhatDoesNotFitIsRefusedAndSaysWhatIsThere) {
  auto session = NewSession();
  ASSERT_TRUE(MapAnonymous(*session, 10).ok());
  const auto refused = MapAnonymous(*session, kPoolPages);
  EXPECT_EQ(ErrnoOf(refused.status()), ENOMEM);
  EXPECT_EQ(nommu::RuleOf(refused.status()), "M22");
  EXPECT_NE(std::string(refused.status().message()).find(std::to_string((kPoolPages - 10) * kPage)), std::string::npos);
  EXPECT_EQ(ErrnoOf(MapAnonymous(*session, UINT64_MAX / kPage).status()), ENOMEM);
  EXPECT_TRUE(MapAnonymous(*session, kPoolPages - 10).ok());
  ExpectNothingLeaked();
}

TEST_F(BrokerTest, AReadOnlySessionMapsNothingWritable) {
  auto session = NewSession(/*read_only=*/true);
  EXPECT_EQ(ErrnoOf(MapAnonymous(*session, 1).status()), EACCES);
  auto file = std::make_shared<SlowFile>(1);
  file->Open();
  EXPECT_TRUE(MapFile(*session, file).ok());
  ExpectNothingLeaked();
}

TEST_F(BrokerTest, AnEndedSessionCanDoNothing) {
  auto session = NewSession();
  End(*session);
  EXPECT_EQ(ErrnoOf(MapAnonymous(*session, 1).status()), ESRCH);
  EXPECT_EQ(ErrnoOf(broker_.Munmap(*session, 0, 0)), ESRCH);
  nommu::MemoryMap::Cursor cursor;
  EXPECT_EQ(ErrnoOf(broker_.List(session->peer().pid, cursor).status()), ESRCH);
}

TEST_F(BrokerTest, ThreadsThatMapAndUnmapAtRandomLeakNothing) {
  std::vector<std::thread> threads;
  for (unsigned seed = 1; seed <= 4; ++seed) {
    threads.emplace_back([&, seed, session = NewSession()] {
      auto file = std::make_shared<SlowFile>(seed % 2);
      file->Open();
      std::vector<nommu::Grant> mine;
      unsigned state = seed;
      for (int i = 0; i < 500; ++i) {
        state = state * 1103515245 + 12345;
        const unsigned choice = state >> 16;
        const auto grant = choice % 3 == 0   ? MapAnonymous(*session, choice % 4 + 1)
                           : choice % 3 == 1 ? MapFile(*session, file, 2)
                                             : MapFile(*session, file, 2, PROT_READ | PROT_WRITE);
        if (grant.ok()) mine.push_back(*grant);
        if (mine.size() > 8 || !grant.ok()) {
          for (const auto& old : mine) EXPECT_TRUE(broker_.Munmap(*session, old.address, old.length).ok());
          mine.clear();
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  ExpectNothingLeaked();
}

}  // namespace
}  // namespace mapbroker
