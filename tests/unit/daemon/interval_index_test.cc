// The index of a file's ranges against a walk over all of them.
#include "daemon/nommu/interval_index.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "daemon/nommu/memory_map.h"

namespace mapbroker::nommu {
namespace {

TEST(IntervalIndex, AnswersAsAWalkOverAllRangesWould) {
  std::mt19937 random(1);
  std::vector<std::unique_ptr<Region>> regions;
  IntervalIndex index;
  const auto range_of = [](const Region& region) {
    return FileRange{region.first_page(), region.first_page() + region.pages, region.id};
  };
  for (std::uint64_t step = 1; step < 5000; ++step) {
    if (!regions.empty() && random() % 100 < 45) {
      std::swap(regions[random() % regions.size()], regions.back());
      EXPECT_TRUE(index.Erase(range_of(*regions.back())));
      EXPECT_FALSE(index.Erase(range_of(*regions.back())));
      regions.pop_back();
    } else {
      auto region = std::make_unique<Region>();
      region->id = step;
      region->offset = random() % 50 * kPageSize;
      region->pages = 1 + random() % (random() % 8 == 0 ? 40 : 4);
      index.Insert(range_of(*region), region.get());
      regions.push_back(std::move(region));
    }
    const std::uint64_t first = random() % 60, end = first + 1 + random() % 10;
    bool contained = false, overlapped = false, equal = false;
    for (const auto& region : regions) {
      const FileRange range = range_of(*region);
      contained |= range.first <= first && end <= range.end;
      overlapped |= range.first < end && first < range.end;
      equal |= range.first == first && range.end == end;
    }
    const auto holds = [&](const Region* region, bool (*relation)(const FileRange&, std::uint64_t, std::uint64_t)) {
      return region != nullptr && relation(range_of(*region), first, end);
    };
    ASSERT_EQ(index.FindContaining(first, end) != nullptr, contained);
    ASSERT_EQ(index.FindOverlapping(first, end) != nullptr, overlapped);
    ASSERT_EQ(index.FindEqual(first, end) != nullptr, equal);
    ASSERT_EQ(holds(index.FindContaining(first, end),
                    [](const FileRange& range, std::uint64_t from, std::uint64_t to) {
                      return range.first <= from && to <= range.end;
                    }),
              contained);
    ASSERT_EQ(
        holds(index.FindOverlapping(first, end), [](const FileRange& range, std::uint64_t from,
                                                    std::uint64_t to) { return range.first < to && from < range.end; }),
        overlapped);
  }
}

}  // namespace
}  // namespace mapbroker::nommu
