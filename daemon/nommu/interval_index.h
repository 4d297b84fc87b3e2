// The ranges of one file that regions hold, which may overlap: which of them contains or touches a range.
#pragma once

#include <algorithm>
#include <compare>
#include <cstdint>
#include <ext/pb_ds/assoc_container.hpp>
#include <ext/pb_ds/tree_policy.hpp>
#include <functional>

namespace mapbroker::nommu {

struct Region;

// File pages [first, end) of a region. Several regions may hold the same range, so the key ends in the region's number.
struct FileRange {
  std::uint64_t first = 0;
  std::uint64_t end = 0;
  std::uint64_t region = 0;
  friend auto operator<=>(const FileRange&, const FileRange&) = default;
};

// Keeps in every node of a libstdc++ policy tree the largest end of the ranges below it, so that the search for a range
// that reaches far enough never descends in vain.
template <typename ConstNode, typename Node, typename Less, typename Allocator>
class LargestEnd {
 public:
  using metadata_type = std::uint64_t;

  void operator()(Node node, ConstNode null) const {
    std::uint64_t largest = (*node)->first.end;
    for (const Node child : {node.get_l_child(), node.get_r_child()}) {
      if (child != null) largest = std::max<std::uint64_t>(largest, child.get_metadata());
    }
    const_cast<metadata_type&>(node.get_metadata()) = largest;
  }

  // A region whose range begins at or before page `first` and ends at or after page `end`, null if there is none.
  // O(log n).
  Region* Find(std::uint64_t first, std::uint64_t end) const {
    ConstNode node = node_begin();
    const ConstNode null = node_end();
    while (node != null && node.get_metadata() >= end) {
      const auto& [range, region] = **node;
      if (range.first > first) {
        node = node.get_l_child();
        continue;
      }
      if (range.end >= end) return region;
      // All on the left begin early enough too, so if one of them reaches far enough it is found there.
      const ConstNode left = node.get_l_child();
      node = left != null && left.get_metadata() >= end ? left : node.get_r_child();
    }
    return nullptr;
  }

 protected:
  virtual ~LargestEnd() = default;

 private:
  virtual ConstNode node_begin() const = 0;
  virtual ConstNode node_end() const = 0;
};

// Not thread-safe.
class IntervalIndex {
 public:
  void Insert(const FileRange& range, Region* region) { tree_.insert({range, region}); }
  // Whether it was there.
  bool Erase(const FileRange& range) { return tree_.erase(range); }
  bool Contains(const FileRange& range) const { return tree_.find(range) != tree_.end(); }
  bool empty() const { return tree_.empty(); }

  // Some region that holds all of the pages, or any of them, or exactly them; null if none does. O(log n).
  Region* FindContaining(std::uint64_t first, std::uint64_t end) const { return tree_.Find(first, end); }
  Region* FindOverlapping(std::uint64_t first, std::uint64_t end) const { return tree_.Find(end - 1, first + 1); }
  Region* FindEqual(std::uint64_t first, std::uint64_t end) const {
    const auto at = tree_.lower_bound(FileRange{first, end, 0});
    return at != tree_.end() && at->first.first == first && at->first.end == end ? at->second : nullptr;
  }

  auto begin() const { return tree_.begin(); }
  auto end() const { return tree_.end(); }

 private:
  __gnu_pbds::tree<FileRange, Region*, std::less<>, __gnu_pbds::rb_tree_tag, LargestEnd> tree_;
};

}  // namespace mapbroker::nommu
