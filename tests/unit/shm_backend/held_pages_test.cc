// Pages with several holders: freed once, when the last lets go.
#include "shm_backend/held_pages.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace mapbroker::shm {
namespace {

constexpr std::uint64_t kPages = 64;

class HeldPagesTest : public ::testing::Test {
 protected:
  std::uint64_t FreePages() {
    pages_.WaitUntilIdle();
    return pages_.statistics().free / kPageSize;
  }
  std::vector<std::byte> memory_ = std::vector<std::byte>(kPages * kPageSize);
  PagePool pages_{memory_, /*prefault=*/false};
  HeldPages held_{pages_};
};

TEST_F(HeldPagesTest, AreFreeWhenTheLastHolderLetsGo) {
  const shm::Run run = *pages_.Allocate(8);
  held_.Hold(run);
  held_.Hold(shm::Run{run.first + 2, 3});
  held_.Drop(run);
  EXPECT_EQ(FreePages(), kPages - 3);
  held_.Drop(shm::Run{run.first + 2, 3});
  EXPECT_EQ(FreePages(), kPages);
}

TEST_F(HeldPagesTest, CountLikeAnArrayOfCountersDoes) {
  const shm::Run all = *pages_.Allocate(kPages);
  std::vector<int> holders(kPages, 1);
  held_.Hold(all);
  std::vector<shm::Run> holds{all};
  std::mt19937 random(1);
  for (int step = 0; step < 2000; ++step) {
    if (!holds.empty() && random() % 2 == 0) {
      std::swap(holds[random() % holds.size()], holds.back());
      const shm::Run run = holds.back();
      holds.pop_back();
      held_.Drop(run);
      for (std::uint64_t page = run.first; page < run.first + run.pages; ++page) --holders[page];
    } else {
      // Only what somebody holds already may be held once more.
      std::uint64_t first = random() % kPages, pages = 0;
      while (first + pages < kPages && pages < 16 && holders[first + pages] > 0) ++pages;
      if (pages == 0) continue;
      holds.push_back(shm::Run{first, pages});
      held_.Hold(holds.back());
      for (std::uint64_t page = first; page < first + pages; ++page) ++holders[page];
    }
    const auto unheld = static_cast<std::uint64_t>(std::count(holders.begin(), holders.end(), 0));
    ASSERT_EQ(FreePages(), unheld) << "step " << step;
  }
}

}  // namespace
}  // namespace mapbroker::shm
