// Small objects: packed, apart by owner, zeroed.
#include "shm_backend/small_objects.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <vector>

namespace mapbroker::shm {
namespace {

constexpr std::uint64_t kPages = 16;

class SmallObjectsTest : public ::testing::Test {
 protected:
  std::uint64_t FreePages() {
    pages_.WaitUntilIdle();
    return pages_.statistics().free / kPageSize;
  }
  std::vector<std::byte> memory_ = std::vector<std::byte>(kPages * kPageSize);
  PagePool pages_{memory_, /*prefault=*/false};
  SmallObjects objects_{pages_, memory_};
};

TEST_F(SmallObjectsTest, OfOneOwnerSharePages) {
  for (int i = 0; i < 64; ++i) ASSERT_TRUE(objects_.Allocate(50, 1));
  EXPECT_EQ(FreePages(), kPages - 1);
  EXPECT_EQ(objects_.Allocate(50, 1)->size, 64u);
  EXPECT_EQ(FreePages(), kPages - 2);
}

TEST_F(SmallObjectsTest, OfDifferentOwnersNeverShareAPage) {
  const std::uint64_t mine = objects_.Allocate(100, 1)->start, other = objects_.Allocate(100, 2)->start;
  EXPECT_NE(mine / kPageSize, other / kPageSize);
}

TEST_F(SmallObjectsTest, LeaveNothingBehind) {
  const auto object = *objects_.Allocate(200, 1);
  const auto neighbour = *objects_.Allocate(200, 1);
  std::fill_n(memory_.begin() + static_cast<std::ptrdiff_t>(object.start), object.size, std::byte{7});
  objects_.Free(object.start);
  const auto again = *objects_.Allocate(250, 1);
  EXPECT_EQ(again.start, object.start);
  const auto begin = memory_.begin() + static_cast<std::ptrdiff_t>(again.start);
  EXPECT_TRUE(std::all_of(begin, begin + static_cast<std::ptrdiff_t>(again.size),
                          [](std::byte byte) { return byte == std::byte{0}; }));
  objects_.Free(again.start);
  objects_.Free(neighbour.start);
  EXPECT_EQ(FreePages(), kPages);
}

TEST_F(SmallObjectsTest, NeverOverlap) {
  std::map<std::uint64_t, std::uint64_t> live;  // start to size
  std::mt19937 random(1);
  for (int step = 0; step < 5000; ++step) {
    if (!live.empty() && random() % 2 == 0) {
      const auto at = std::next(live.begin(), static_cast<std::ptrdiff_t>(random() % live.size()));
      objects_.Free(at->first);
      live.erase(at);
      continue;
    }
    const std::uint64_t bytes = 1 + random() % (kPageSize - 1);
    const auto object = objects_.Allocate(bytes, random() % 2);
    if (!object) continue;
    ASSERT_GE(object->size, bytes);
    const auto next = live.upper_bound(object->start);
    ASSERT_TRUE(next == live.end() || object->start + object->size <= next->first);
    ASSERT_TRUE(next == live.begin() || std::prev(next)->first + std::prev(next)->second <= object->start);
    live[object->start] = object->size;
  }
  for (const auto& [start, size] : live) objects_.Free(start);
  EXPECT_EQ(FreePages(), kPages);
}

}  // namespace
}  // namespace mapbroker::shm
