// What is given out is clean, whoever had it before and however many ask at once.
#include "shm_backend/page_pool.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

namespace mapbroker::shm {
namespace {

class PagePoolTest : public ::testing::Test {
 protected:
  static constexpr std::uint64_t kPages = 5000;  // more than is zeroed in one go

  PagePoolTest() : memory_(Reserve()), pool_(memory_, /*prefault=*/false) {}
  ~PagePoolTest() override { munmap(memory_.data(), memory_.size()); }

  static std::span<std::byte> Reserve() {
    void* at = mmap(nullptr, kPages * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT_NE(at, MAP_FAILED);
    return {static_cast<std::byte*>(at), kPages * kPageSize};
  }
  std::span<std::byte> BytesOf(const shm::Run& run) {
    return memory_.subspan(run.first * kPageSize, run.pages * kPageSize);
  }
  void Dirty(const shm::Run& run) { std::memset(BytesOf(run).data(), 'S', BytesOf(run).size()); }
  bool IsClean(const shm::Run& run) {
    const auto bytes = BytesOf(run);
    return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
  }

  std::span<std::byte> memory_;
  PagePool pool_;
};

TEST_F(PagePoolTest, WhatWasFreedComesBackClean) {
  const shm::Run run = *pool_.Allocate(kPages);
  Dirty(run);
  pool_.Free(run);
  const std::optional<shm::Run> again = pool_.Allocate(kPages);
  ASSERT_TRUE(again.has_value()) << "the caller helps with the scrubbing instead of being refused";
  EXPECT_TRUE(IsClean(*again));
}

TEST_F(PagePoolTest, RefusesOnlyWhatCannotBeHad) {
  const shm::Run run = *pool_.Allocate(kPages - 10);
  EXPECT_EQ(pool_.Allocate(11), std::nullopt);
  EXPECT_TRUE(pool_.Allocate(10).has_value());
  pool_.Free({run.first, 20});
  EXPECT_TRUE(pool_.Allocate(20).has_value());
  EXPECT_EQ(pool_.Allocate(1), std::nullopt);
}

TEST_F(PagePoolTest, StatisticsAddUpAndScrubbingEnds) {
  const shm::Run run = *pool_.Allocate(100);
  Dirty(run);
  pool_.Free(run);
  const PagePool::Statistics during = pool_.statistics();
  EXPECT_EQ(during.free + during.scrubbing, kPages * kPageSize);
  pool_.WaitUntilIdle();
  const PagePool::Statistics after = pool_.statistics();
  EXPECT_EQ(after.total, kPages * kPageSize);
  EXPECT_EQ(after.free, kPages * kPageSize);
  EXPECT_EQ(after.scrubbing, 0u);
  EXPECT_EQ(after.largest_free_run, kPages * kPageSize);
}

TEST_F(PagePoolTest, NoThreadEverSeesWhatAnotherLeftBehind) {
  std::vector<std::thread> threads;
  for (unsigned seed = 1; seed <= 4; ++seed) {
    threads.emplace_back([this, seed] {
      std::mt19937 random(seed);
      std::vector<shm::Run> mine;
      for (int i = 0; i < 300; ++i) {
        const std::optional<shm::Run> run = pool_.Allocate(1 + random() % 400);
        if (run) {
          EXPECT_TRUE(IsClean(*run));
          Dirty(*run);
          mine.push_back(*run);
        }
        if (!run || mine.size() > 3) {
          for (const shm::Run& old : mine) pool_.Free(old);
          mine.clear();
        }
      }
      for (const shm::Run& old : mine) pool_.Free(old);
    });
  }
  for (std::thread& thread : threads) thread.join();
  pool_.WaitUntilIdle();
  EXPECT_EQ(pool_.statistics().free, kPages * kPageSize);
}

TEST(PagePoolPrefault, MakesThePoolResidentBesideItsUsers) {
  constexpr std::size_t kSize = 64 << 20;
  void* at = mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(at, MAP_FAILED);
  const std::span<std::byte> memory(static_cast<std::byte*>(at), kSize);
  {
    PagePool pool(memory, /*prefault=*/true);
    const shm::Run run = *pool.Allocate(100);
    memory[run.first * kPageSize] = std::byte{'x'};
    while (pool.statistics().prefaulted < kSize) std::this_thread::yield();
    EXPECT_EQ(memory[run.first * kPageSize], std::byte{'x'});
  }
  std::vector<unsigned char> resident(kSize / kPageSize);
  ASSERT_EQ(mincore(at, kSize, resident.data()), 0);
  EXPECT_TRUE(std::all_of(resident.begin(), resident.end(), [](unsigned char page) { return (page & 1) != 0; }));
  munmap(at, kSize);
}

}  // namespace
}  // namespace mapbroker::shm
