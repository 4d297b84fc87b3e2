// The third question, and what becomes of mappings: sharing, unmapping, listings.
#include "daemon/nommu/memory_map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <set>
#include <string>
#include <vector>

#include "daemon/nommu/refusal.h"

namespace mapbroker::nommu {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr std::uint64_t kPage = kPageSize;
constexpr std::uint32_t kRead = PROT_READ, kReadWrite = PROT_READ | PROT_WRITE;

// Plays the broker: gives every new region the next free addresses.
class MemoryMapTest : public ::testing::TestWithParam<const Profile*> {
 protected:
  MemoryMapTest() : map_(*GetParam()), a_(map_.OpenSpace(100)), b_(map_.OpenSpace(200)) {
    for (auto* file : {&f_, &g_}) {
      *file = std::make_shared<File>();
      (*file)->capabilities = kMapCopy;
      (*file)->readable = true;
    }
    f_->id = {1, 10};
    g_->id = {1, 11};
  }
  ~MemoryMapTest() override { EXPECT_EQ(map_.Validate(), ""); }

  bool classic() const { return GetParam() == &kClassic; }

  absl::StatusOr<Grant> Map(SpaceId space, const MapRequest& request, const std::shared_ptr<File>& file) {
    const auto reservation = map_.Reserve(request, file);
    if (!reservation.ok()) return reservation.status();
    if (reservation->created) {
      map_.Place(reservation->region, next_);
      next_ += reservation->region->length + kPage;
    }
    const Grant grant = map_.Commit(space, *reservation, request);
    EXPECT_EQ(map_.Validate(), "");
    return grant;
  }
  Grant MapFile(SpaceId space, const std::shared_ptr<File>& file, std::uint64_t first, std::uint64_t pages,
                std::uint32_t prot = kRead) {
    return *Map(space, {.length = pages * kPage, .prot = prot, .flags = MAP_PRIVATE, .offset = first * kPage}, file);
  }
  Grant MapAnonymous(SpaceId space, std::uint64_t pages) {
    return *Map(space, {.length = pages * kPage, .prot = kReadWrite, .flags = MAP_PRIVATE | MAP_ANONYMOUS}, nullptr);
  }
  int Unmap(SpaceId space, PoolAddress address, std::uint64_t length) {
    freed_.clear();
    const absl::Status status = map_.Unmap(space, address, length, freed_);
    EXPECT_EQ(map_.Validate(), "");
    return ErrnoOf(status);
  }
  std::uint64_t FreedPages() const {
    std::uint64_t pages = 0;
    for (const Freed& extent : freed_) pages += extent.length / kPage;
    return pages;
  }
  std::vector<std::pair<PoolAddress, std::uint64_t>> Listed(std::int32_t pid) {
    std::vector<std::pair<PoolAddress, std::uint64_t>> listed;
    MemoryMap::Cursor cursor;
    for (;;) {
      const auto rows = map_.ListMappings(pid, cursor, 2);
      if (rows.empty()) return listed;
      for (const Row& row : rows) listed.emplace_back(row.start, row.end - row.start);
    }
  }

  MemoryMap map_;
  SpaceId a_, b_;
  std::shared_ptr<File> f_, g_;
  PoolAddress next_ = 64 * kPage;
  std::vector<Freed> freed_;
};

INSTANTIATE_TEST_SUITE_P(Profiles, MemoryMapTest, ::testing::Values(&kClassic, &kModern),
                         [](const auto& info) { return info.param->name; });

TEST_P(MemoryMapTest, TheSameRangeOfAFileExistsOnce) {
  const Grant first = MapFile(a_, f_, 0, 4);
  const Grant second = MapFile(b_, f_, 0, 4, PROT_READ | PROT_EXEC);
  EXPECT_EQ(first.address, second.address);
  EXPECT_FALSE(first.existing);
  EXPECT_TRUE(second.existing);
  EXPECT_EQ(map_.counts().regions, 1u);
  EXPECT_EQ(map_.counts().mappings, 2u);
}

TEST_P(MemoryMapTest, OtherFilesHaveCopiesOfTheirOwn) {
  EXPECT_NE(MapFile(a_, f_, 0, 4).address, MapFile(a_, g_, 0, 4).address);
}

TEST_P(MemoryMapTest, PrivateWritableIsNeverShared) {
  const Grant shared = MapFile(a_, f_, 0, 4);
  const Grant own = MapFile(b_, f_, 0, 4, kReadWrite);
  const Grant other = MapFile(b_, f_, 0, 4, kReadWrite);
  const Grant again = MapFile(b_, f_, 0, 4);
  EXPECT_NE(own.address, shared.address);
  EXPECT_NE(other.address, own.address);
  EXPECT_EQ(again.address, shared.address);
  EXPECT_EQ(own.kind, MappingKind::kPrivateCopy);
}

TEST_P(MemoryMapTest, ARangeInsideACopyIsSharedByModernAndRefusedByClassic) {
  const Grant whole = MapFile(a_, f_, 2, 6);
  const MapRequest inside{.length = 2 * kPage, .prot = kRead, .flags = MAP_PRIVATE, .offset = 4 * kPage};
  const auto part = Map(b_, inside, f_);
  if (classic()) {
    EXPECT_EQ(ErrnoOf(part.status()), EINVAL);
    EXPECT_EQ(RuleOf(part.status()), "S4");
  } else {
    ASSERT_TRUE(part.ok());
    EXPECT_EQ(part->address, whole.address + 2 * kPage);
  }
}

TEST_P(MemoryMapTest, ARangeThatSticksOutOfACopyIsRefused) {
  MapFile(a_, f_, 2, 4);
  for (const auto& [first, pages] : {std::pair{0, 3}, {5, 2}, {0, 10}, {2, 5}, {1, 5}}) {
    const MapRequest request{.length = pages * kPage, .prot = kRead, .flags = MAP_PRIVATE, .offset = first * kPage};
    EXPECT_EQ(ErrnoOf(Map(b_, request, f_).status()), EINVAL) << first << " " << pages;
  }
  EXPECT_NE(MapFile(b_, f_, 0, 2).address, 0u) << "adjoining ranges do not overlap";
  EXPECT_NE(MapFile(b_, f_, 6, 2).address, 0u);
}

TEST_P(MemoryMapTest, ARefusedOverlapIsPossibleWhenTheCopyHasGone) {
  const Grant first = MapFile(a_, f_, 2, 4);
  EXPECT_EQ(Unmap(a_, first.address, 4 * kPage), 0);
  EXPECT_EQ(FreedPages(), 4u);
  EXPECT_FALSE(MapFile(b_, f_, 0, 5).existing);
}

TEST_P(MemoryMapTest, ACopyLivesAsLongAsOneMappingDoes) {
  const Grant first = MapFile(a_, f_, 0, 4);
  MapFile(b_, f_, 0, 4);
  EXPECT_EQ(Unmap(a_, first.address, 4 * kPage), 0);
  EXPECT_THAT(freed_, IsEmpty());
  EXPECT_TRUE(MapFile(a_, f_, 0, 4).existing);
}

TEST_P(MemoryMapTest, AFailedFillLeavesNothingAndMayBeTriedAgain) {
  const MapRequest request{.length = kPage, .prot = kRead, .flags = MAP_PRIVATE};
  const Reservation filler = *map_.Reserve(request, f_);
  const Reservation waiter = *map_.Reserve(request, f_);
  EXPECT_FALSE(waiter.created);
  map_.Withdraw(filler.region);
  const Reservation next = *map_.Reserve(request, f_);
  EXPECT_TRUE(next.created) << "what failed is not shared any more";
  EXPECT_EQ(map_.Abandon(filler), std::nullopt);
  EXPECT_EQ(map_.Abandon(waiter), std::nullopt);
  map_.Place(next.region, 64 * kPage);
  EXPECT_EQ(map_.Commit(a_, next, request).address, 64 * kPage);
  EXPECT_EQ(map_.counts().regions, 1u);
}

TEST_P(MemoryMapTest, AnAbandonedReservationGivesItsMemoryBack) {
  const Reservation reservation = *map_.Reserve({.length = 3 * kPage, .prot = kRead, .flags = MAP_PRIVATE}, f_);
  map_.Place(reservation.region, 64 * kPage);
  const auto memory = map_.Abandon(reservation);
  ASSERT_TRUE(memory.has_value());
  EXPECT_EQ(memory->length, 3 * kPage);
  EXPECT_EQ(map_.counts().regions, 0u);
}

TEST_P(MemoryMapTest, MappingTheSameRangeTwiceGivesTwoMappings) {
  const Grant first = MapFile(a_, f_, 0, 2);
  const Grant second = MapFile(a_, f_, 0, 2);
  EXPECT_EQ(first.address, second.address);
  EXPECT_EQ(Listed(100).size(), 2u);
  EXPECT_EQ(Unmap(a_, first.address, 2 * kPage), 0);
  EXPECT_EQ(Unmap(a_, first.address, 2 * kPage), 0);
  EXPECT_EQ(Unmap(a_, first.address, 2 * kPage), EINVAL);
}

TEST_P(MemoryMapTest, OnlyOnesOwnMappingsCanBeUnmapped) {
  const Grant grant = MapFile(a_, f_, 0, 2);
  EXPECT_EQ(Unmap(b_, grant.address, 2 * kPage), EINVAL);
  EXPECT_EQ(Unmap(a_, grant.address + kPage, kPage), EINVAL);
  EXPECT_EQ(Unmap(a_, 0, 0), EINVAL);
  EXPECT_EQ(Unmap(a_, grant.address, UINT64_MAX), EINVAL);
  EXPECT_EQ(Unmap(a_, UINT64_MAX, 2), EINVAL);
  EXPECT_EQ(Unmap(a_, grant.address, 2 * kPage), 0);
}

TEST_P(MemoryMapTest, AFileMappingIsUnmappedWhole) {
  const Grant grant = MapFile(a_, f_, 0, 4);
  EXPECT_EQ(Unmap(a_, grant.address, kPage), EINVAL);
  EXPECT_EQ(Unmap(a_, grant.address + kPage, 3 * kPage), EINVAL);
  EXPECT_EQ(Unmap(a_, grant.address, 0), classic() ? 0 : EINVAL) << "P4: length 0 names the whole for classic only";
}

TEST_P(MemoryMapTest, AnonymousMemoryMayBeUnmappedInPartsByModernOnly) {
  const Grant grant = MapAnonymous(a_, 10);
  if (classic()) {
    EXPECT_EQ(Unmap(a_, grant.address, kPage), EINVAL);
    EXPECT_EQ(Unmap(a_, grant.address, 10 * kPage), 0);
    EXPECT_EQ(FreedPages(), 10u);
    return;
  }
  EXPECT_EQ(Unmap(a_, grant.address + 4 * kPage, 2 * kPage), 0) << "the middle";
  EXPECT_EQ(FreedPages(), 2u);
  EXPECT_EQ(Unmap(a_, grant.address, kPage), 0) << "the head";
  EXPECT_EQ(Unmap(a_, grant.address + 9 * kPage, kPage), 0) << "the tail";
  EXPECT_THAT(Listed(100), ElementsAre(std::pair(grant.address + kPage, 3 * kPage),
                                       std::pair(grant.address + 6 * kPage, 3 * kPage)));
  EXPECT_EQ(Unmap(a_, grant.address + kPage, 8 * kPage), EINVAL) << "a range across two mappings";
  EXPECT_EQ(Unmap(a_, grant.address + kPage + 1, kPage), EINVAL) << "not at a page";
  EXPECT_EQ(Unmap(a_, grant.address + kPage, 3 * kPage), 0);
  EXPECT_EQ(Unmap(a_, grant.address + 6 * kPage, 3 * kPage), 0);
  EXPECT_EQ(map_.counts().regions, 0u);
  EXPECT_EQ(map_.counts().mappings, 0u);
}

TEST_P(MemoryMapTest, ALengthChangesInPlaceWithinWhatWasMapped) {
  const Grant grant = MapAnonymous(a_, 5);
  const auto remap = [&](std::uint64_t old_pages, std::uint64_t new_pages) {
    const auto length =
        map_.Remap(a_, {.address = grant.address, .old_length = old_pages * kPage, .new_length = new_pages * kPage});
    EXPECT_EQ(map_.Validate(), "");
    return ErrnoOf(length.status());
  };
  EXPECT_EQ(remap(5, 2), 0);
  EXPECT_THAT(Listed(100), ElementsAre(std::pair(grant.address, 2 * kPage)));
  EXPECT_EQ(remap(5, 1), classic() ? EFAULT : EINVAL) << "the old length is wrong";
  EXPECT_EQ(remap(2, 6), ENOMEM) << "P6";
  EXPECT_EQ(remap(2, 0), EINVAL);
  EXPECT_EQ(remap(2, 5), 0) << "growing back is possible";
  EXPECT_EQ(remap(5, 3), 0);
  EXPECT_EQ(Unmap(a_, grant.address, 3 * kPage), 0);
  EXPECT_EQ(FreedPages(), 5u) << "all that was allocated comes back";
}

TEST_P(MemoryMapTest, OnlyAMappingOfOnesOwnChangesItsLength) {
  const Grant shared = MapFile(a_, f_, 0, 4), own = MapFile(a_, f_, 0, 4, kReadWrite);
  const auto remap = [&](SpaceId space, PoolAddress address) {
    return ErrnoOf(map_.Remap(space, {.address = address, .old_length = 4 * kPage, .new_length = kPage}).status());
  };
  EXPECT_EQ(remap(a_, shared.address), EPERM);
  EXPECT_EQ(remap(b_, own.address), EINVAL);
  EXPECT_EQ(remap(a_, own.address + 1), EINVAL);
  EXPECT_EQ(remap(a_, own.address), 0);
}

TEST_P(MemoryMapTest, MemoryPastAShrunkMappingIsNotLost) {
  const Grant grant = MapAnonymous(a_, 10);
  ASSERT_TRUE(map_.Remap(a_, {.address = grant.address, .old_length = 10 * kPage, .new_length = 6 * kPage}).ok());
  if (classic()) {
    EXPECT_EQ(Unmap(a_, grant.address, 0), 0);
    EXPECT_EQ(FreedPages(), 10u);
    return;
  }
  std::uint64_t freed = 0;
  EXPECT_EQ(Unmap(a_, grant.address + 2 * kPage, kPage), 0) << "the middle";
  freed += FreedPages();
  EXPECT_EQ(Unmap(a_, grant.address + 4 * kPage, 2 * kPage), 0) << "the tail, with what lies behind it";
  freed += FreedPages();
  EXPECT_EQ(Unmap(a_, grant.address, 2 * kPage), 0);
  freed += FreedPages();
  EXPECT_EQ(Unmap(a_, grant.address + 3 * kPage, kPage), 0);
  freed += FreedPages();
  EXPECT_EQ(freed, 10u);
}

TEST_P(MemoryMapTest, LengthsAreListedAsTheProfileSays) {
  const Grant grant = *Map(a_, {.length = 5000, .prot = kReadWrite, .flags = MAP_PRIVATE | MAP_ANONYMOUS}, nullptr);
  EXPECT_EQ(grant.length, classic() ? 5000u : 2 * kPage) << "P8";
  EXPECT_THAT(Listed(100), ElementsAre(std::pair(grant.address, grant.length)));
  EXPECT_EQ(Unmap(a_, grant.address, 5000), 0);
  EXPECT_EQ(FreedPages(), 2u);
}

TEST_P(MemoryMapTest, TheEndOfAnAddressSpaceUnmapsAllOfItAndNothingElse) {
  MapFile(a_, f_, 0, 4);
  MapFile(b_, f_, 0, 4);
  MapFile(a_, g_, 0, 2);
  MapAnonymous(a_, 3);
  freed_.clear();
  while (!map_.LeaveSpace(a_, 100, 1, freed_)) EXPECT_EQ(map_.Validate(), "");
  EXPECT_EQ(FreedPages(), 5u);
  EXPECT_FALSE(map_.HasSpace(a_));
  EXPECT_FALSE(map_.HasProcess(100));
  EXPECT_EQ(map_.counts().mappings, 1u);
  EXPECT_EQ(Unmap(a_, 64 * kPage, 4 * kPage), ESRCH);
}

TEST_P(MemoryMapTest, RegionsAreListedOnceWithEverybodyWhoHoldsThem) {
  MapFile(b_, f_, 0, 4);
  MapFile(a_, f_, 0, 4);
  MapAnonymous(a_, 1);
  MemoryMap::Cursor cursor;
  const auto first = map_.ListRegions(cursor, 1);
  const auto second = map_.ListRegions(cursor, 1);
  ASSERT_EQ(first.size(), 1u);
  ASSERT_EQ(second.size(), 1u);
  EXPECT_THAT(first[0].pids, ElementsAre(100, 200));
  EXPECT_EQ(first[0].file->id, f_->id);
  EXPECT_THAT(second[0].pids, ElementsAre(100));
  EXPECT_EQ(second[0].file, nullptr);
  EXPECT_LT(first[0].start, second[0].start);
  EXPECT_THAT(map_.ListRegions(cursor, 1), IsEmpty());
}

TEST_P(MemoryMapTest, AProcessWithTwoAddressSpacesIsListedWithBoth) {
  const SpaceId second = map_.OpenSpace(100);
  MapAnonymous(a_, 1);
  MapAnonymous(second, 1);
  MapAnonymous(second, 1);
  EXPECT_EQ(Listed(100).size(), 3u);
  EXPECT_THAT(Listed(300), IsEmpty());
}

TEST_P(MemoryMapTest, AnAddressSpaceLastsUntilItsLastUserLeaves) {
  MapAnonymous(a_, 2);
  map_.JoinSpace(a_, 300);
  map_.JoinSpace(a_, 300);
  EXPECT_EQ(map_.Validate(), "");
  EXPECT_EQ(Listed(300).size(), 1u);
  freed_.clear();
  EXPECT_TRUE(map_.LeaveSpace(a_, 100, 10, freed_));
  EXPECT_TRUE(map_.LeaveSpace(a_, 300, 10, freed_));
  EXPECT_EQ(map_.Validate(), "");
  EXPECT_FALSE(map_.HasProcess(100));
  EXPECT_EQ(Listed(300).size(), 1u);
  EXPECT_EQ(FreedPages(), 0u);
  EXPECT_TRUE(map_.LeaveSpace(a_, 300, 10, freed_));
  EXPECT_EQ(FreedPages(), 2u);
  EXPECT_EQ(map_.Validate(), "");
}

TEST_P(MemoryMapTest, AnAddressIsFoundInTheMappingThatHoldsIt) {
  const PoolAddress own = MapAnonymous(a_, 2).address;
  const PoolAddress shared = MapFile(a_, f_, 0, 8).address;
  EXPECT_EQ(map_.FindContaining(100, own + 5000)->end, own + 2 * kPage);
  EXPECT_EQ(map_.FindContaining(100, own)->allowed, std::uint32_t{PROT_READ | PROT_WRITE});
  EXPECT_EQ(map_.FindContaining(100, shared + 8 * kPage - 1)->allowed, std::uint32_t{PROT_READ});
  EXPECT_EQ(map_.FindContaining(200, own), std::nullopt);
  EXPECT_EQ(map_.FindContaining(100, shared + 8 * kPage), std::nullopt);
}

// What was noted as changed, made again in another map, is the same.
TEST_P(MemoryMapTest, WhatIsRestoredIsTheSame) {
  map_.TakeChanges();
  MapFile(a_, f_, 0, 4);
  MapFile(b_, f_, 0, 4);
  MapAnonymous(b_, 3);
  const Grant gone = MapAnonymous(a_, 1);
  ASSERT_EQ(Unmap(a_, gone.address, kPage), 0);
  const MemoryMap::Changes changes = map_.TakeChanges();
  EXPECT_TRUE(map_.TakeChanges().empty());

  MemoryMap again(*GetParam());
  again.JoinSpace(a_, 100);
  again.JoinSpace(b_, 200);
  std::set<std::uint64_t> regions(changes.regions.begin(), changes.regions.end());
  for (const std::uint64_t id : regions) {
    if (const Region* region = map_.FindRegion(id)) {
      EXPECT_TRUE(again.RestoreRegion(*region, map_.IsIndexed(*region)));
      EXPECT_FALSE(again.RestoreRegion(*region, false)) << "twice";
    }
  }
  std::set<std::uint64_t> seen;
  for (const MemoryMap::MappingId& id : changes.mappings) {
    const Mapping* const mapping = map_.FindMapping(id);
    if (mapping != nullptr && seen.insert(id.id).second) {
      EXPECT_TRUE(again.RestoreMapping(id, mapping->region->id, *mapping));
    }
  }
  EXPECT_EQ(again.Validate(), "");
  EXPECT_THAT(again.DropUnused(), IsEmpty());
  const auto list = [](const MemoryMap& map) {
    MemoryMap::Cursor cursor;
    std::vector<std::string> rows;
    for (const Row& row : map.ListRegions(cursor, 100)) {
      rows.push_back(std::to_string(row.start) + "-" + std::to_string(row.end) + " " + std::to_string(row.pids.size()));
    }
    return rows;
  };
  EXPECT_EQ(list(again), list(map_));
}

TEST_P(MemoryMapTest, AMappingOutsideItsRegionIsNotRestored) {
  MemoryMap again(*GetParam());
  again.JoinSpace(1, 100);
  ASSERT_TRUE(again.RestoreRegion({.id = 2, .pages = 1, .length = kPage, .start = kPage}, false));
  EXPECT_FALSE(again.RestoreMapping({1, 0, 3}, 2, {.length = kPage}));
  EXPECT_FALSE(again.RestoreMapping({1, kPage, 3}, 2, {.length = 2 * kPage}));
  EXPECT_FALSE(again.RestoreMapping({1, kPage, 3}, 9, {.length = kPage}));
  EXPECT_FALSE(again.RestoreMapping({7, kPage, 3}, 2, {.length = kPage}));
  EXPECT_EQ(again.DropUnused().size(), 1u);
  EXPECT_EQ(again.counts().regions, 0u);
}

TEST_P(MemoryMapTest, CountsSayWhatSharingSaves) {
  for (int i = 0; i < 5; ++i) MapFile(a_, f_, 0, 4);
  EXPECT_EQ(map_.counts().region_pages, 4u);
  EXPECT_EQ(map_.counts().mapped_pages, 20u);
}

}  // namespace
}  // namespace mapbroker::nommu
