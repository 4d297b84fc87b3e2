// The run allocator against a bitmap.
#include "shm_backend/run_allocator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace mapbroker::shm {
namespace {

TEST(RunAllocator, GivesTheWholePoolInOneRun) {
  RunAllocator runs(100);
  EXPECT_EQ(runs.largest_free_run(), 100u);
  EXPECT_EQ(runs.Allocate(101), std::nullopt);
  EXPECT_EQ(runs.Allocate(100), (shm::Run{0, 100}));
  EXPECT_EQ(runs.Allocate(1), std::nullopt);
  EXPECT_EQ(runs.free_pages(), 0u);
}

TEST(RunAllocator, TakesTheRunThatFitsBest) {
  RunAllocator runs(100);
  const shm::Run a = *runs.Allocate(10), b = *runs.Allocate(5), c = *runs.Allocate(20);
  ASSERT_TRUE(runs.Allocate(65).has_value());
  runs.Free(a);
  runs.Free(c);
  EXPECT_EQ(runs.Allocate(9)->first, a.first);
  EXPECT_EQ(runs.Allocate(20), c);
  runs.Free(b);
  EXPECT_EQ(runs.Validate(), "");
}

TEST(RunAllocator, JoinsAFreedRunWithBothFreeNeighbours) {
  RunAllocator runs(30);
  const shm::Run a = *runs.Allocate(10), b = *runs.Allocate(10), c = *runs.Allocate(10);
  runs.Free(a);
  runs.Free(c);
  EXPECT_EQ(runs.largest_free_run(), 10u);
  runs.Free(b);
  EXPECT_EQ(runs.largest_free_run(), 30u);
  EXPECT_EQ(runs.Validate(), "");
}

TEST(RunAllocator, TakesARunBackInParts) {
  RunAllocator runs(30);
  ASSERT_EQ(runs.Allocate(30), (shm::Run{0, 30}));
  runs.Free({10, 5});
  runs.Free({0, 1});
  runs.Free({29, 1});
  EXPECT_EQ(runs.Validate(), "");
  EXPECT_EQ(runs.free_pages(), 7u);
  runs.Free({1, 9});
  EXPECT_EQ(runs.largest_free_run(), 15u);
  EXPECT_EQ(runs.Validate(), "");
}

TEST(RunAllocator, KeepsShortAndLongRunsApart) {
  RunAllocator runs(10000);
  EXPECT_EQ(runs.Allocate(1)->first, 0u);
  EXPECT_EQ(runs.Allocate(1000)->first, 9000u);
  EXPECT_EQ(runs.Allocate(1)->first, 1u);
}

TEST(RunAllocatorDeathTest, FreeingTwiceStopsTheProgram) {
  RunAllocator runs(30);
  const shm::Run run = *runs.Allocate(10);
  runs.Free(run);
  EXPECT_DEATH(runs.Free(run), "freed twice");
  EXPECT_DEATH(runs.Free({25, 10}), "outside the pool");
}

// Random traces; after every step the allocator must agree with a bitmap of what is free.
class RunAllocatorTraceTest : public ::testing::TestWithParam<unsigned> {
 protected:
  static constexpr std::uint64_t kPages = 300;

  bool HasRoomFor(std::uint64_t pages) const {
    std::uint64_t length = 0;
    for (const bool used : used_) {
      length = used ? 0 : length + 1;
      if (length >= pages) return true;
    }
    return false;
  }
  void Mark(const shm::Run& run, bool used) {
    for (std::uint64_t page = run.first; page < run.first + run.pages; ++page) {
      ASSERT_NE(used_[page], used) << "page " << page;
      used_[page] = used;
    }
  }

  std::vector<bool> used_ = std::vector<bool>(kPages);
};

INSTANTIATE_TEST_SUITE_P(Seeds, RunAllocatorTraceTest, ::testing::Range(1u, 21u));

TEST_P(RunAllocatorTraceTest, AgreesWithABitmap) {
  std::mt19937 random(GetParam());
  RunAllocator runs(kPages);
  std::vector<shm::Run> live;
  for (int step = 0; step < 1000; ++step) {
    if (live.empty() || random() % 5 < 3) {
      const std::uint64_t pages = 1 + random() % (random() % 4 == 0 ? 280 : 20);
      const bool fits = HasRoomFor(pages);
      const std::optional<shm::Run> run = runs.Allocate(pages);
      ASSERT_EQ(run.has_value(), fits) << "a request is refused only when no run is long enough";
      if (!run) continue;
      ASSERT_EQ(run->pages, pages);
      Mark(*run, true);
      live.push_back(*run);
    } else {
      shm::Run& run = live[random() % live.size()];
      shm::Run part = run;
      if (run.pages > 1 && random() % 3 == 0) {
        part.pages = 1 + random() % (run.pages - 1);
        run = {run.first + part.pages, run.pages - part.pages};
      } else {
        std::swap(run, live.back());
        live.pop_back();
      }
      runs.Free(part);
      Mark(part, false);
    }
    ASSERT_EQ(runs.Validate(), "") << "step " << step;
    ASSERT_EQ(runs.free_pages(), static_cast<std::uint64_t>(std::count(used_.begin(), used_.end(), false)));
  }
}

}  // namespace
}  // namespace mapbroker::shm
