// Reading a file into a region, also when the file does not hold still.
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "daemon/backing/backing.h"
#include "daemon/nommu/refusal.h"

namespace mapbroker::backing {
namespace {

// A file of `size` bytes 'x' of which at most `chunk` are read at a time, and which fails or shrinks when told.
class TestFile final : public Backing {
 public:
  std::uint64_t size = 0;
  std::size_t chunk = 1 << 20;
  std::uint64_t fails_at = UINT64_MAX;
  std::uint64_t shrinks_to = UINT64_MAX;  // after its size was asked for

  absl::StatusOr<std::uint64_t> Size() const override { return size; }
  absl::StatusOr<std::size_t> Read(std::uint64_t offset, std::span<std::byte> into) const override {
    if (offset >= fails_at) return nommu::Refuse(EIO, "", "bad block");
    const std::uint64_t end = std::min(size, shrinks_to);
    const std::size_t count = offset < end ? std::min({into.size(), chunk, static_cast<std::size_t>(end - offset)}) : 0;
    std::memset(into.data(), 'x', count);
    return count;
  }
  std::string Path() const override { return "/test"; }
};

const auto kNeverCancelled = [] { return false; };

class FillTest : public ::testing::Test {
 protected:
  std::size_t Filled() const {
    return static_cast<std::size_t>(std::count(memory_.begin(), memory_.end(), std::byte{'x'}));
  }
  TestFile file_;
  std::vector<std::byte> memory_ = std::vector<std::byte>(64 << 10);
};

TEST_F(FillTest, ReadsTheWholeRangeInWhateverPieces) {
  file_.size = 1 << 20;
  file_.chunk = 1000;
  ASSERT_TRUE(Fill(file_, 4096, memory_, kNeverCancelled).ok());
  EXPECT_EQ(Filled(), memory_.size());
}

TEST_F(FillTest, WhatLiesPastTheEndOfTheFileIsZero) {
  file_.size = 5000;
  ASSERT_TRUE(Fill(file_, 0, memory_, kNeverCancelled).ok());
  EXPECT_EQ(Filled(), 5000u);
  EXPECT_TRUE(std::all_of(memory_.begin() + 5000, memory_.end(), [](std::byte b) { return b == std::byte{0}; }));
}

TEST_F(FillTest, ARangeThatLiesPastTheEndIsAllZero) {
  file_.size = 4096;
  ASSERT_TRUE(Fill(file_, 8192, memory_, kNeverCancelled).ok());
  EXPECT_EQ(Filled(), 0u);
}

TEST_F(FillTest, AnErrorOfTheFileIsTheAnswer) {
  file_.size = 1 << 20;
  file_.chunk = 4096;
  file_.fails_at = 32768;
  EXPECT_EQ(nommu::ErrnoOf(Fill(file_, 0, memory_, kNeverCancelled)), EIO);
}

TEST_F(FillTest, AFileThatShrinksMeanwhileIsAnErrorNotATornCopy) {
  file_.size = 60000;
  file_.shrinks_to = 20000;
  const absl::Status status = Fill(file_, 0, memory_, kNeverCancelled);
  EXPECT_EQ(nommu::ErrnoOf(status), EIO);
  EXPECT_NE(std::string(status.message()).find("shrank"), std::string::npos);
}

TEST_F(FillTest, StopsWhenNobodyWantsTheCopyAnyMore) {
  file_.size = 1 << 20;
  EXPECT_EQ(nommu::ErrnoOf(Fill(file_, 0, memory_, [] { return true; })), ECANCELED);
  EXPECT_EQ(Filled(), 0u);
}

}  // namespace
}  // namespace mapbroker::backing
