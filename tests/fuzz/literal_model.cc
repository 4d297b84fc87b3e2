#include "tests/fuzz/literal_model.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

namespace mapbroker::fuzz {
namespace {

std::uint64_t PagesOf(std::uint64_t bytes) { return bytes / kPage + (bytes % kPage != 0 ? 1 : 0); }
std::uint64_t RoundUp(std::uint64_t bytes) { return PagesOf(bytes) * kPage; }
std::uint64_t PageEnd(std::uint64_t at) { return (at / kPage + 1) * kPage; }
bool IsAnonymous(const ModelRequest& request) { return (request.flags & MAP_ANONYMOUS) != 0; }
bool IsShared(const ModelRequest& request) { return (request.flags & MAP_TYPE) == MAP_SHARED; }

}  // namespace

// The table M, line by line, for regular files: MAP_COPY for ordinary ones, everything for ram files.
int LiteralModel::Check(const ModelRequest& request) const {
  const bool no_file = request.file < 0;
  if (request.offset % kPage != 0) return EINVAL;                                                            // M1
  if (!IsAnonymous(request) && no_file) return EBADF;                                                        // M2
  if ((request.flags & MAP_FIXED) != 0) return EINVAL;                                                       // M3
  if (classic_ && request.address != 0) return EINVAL;                                                       // M3
  if ((request.flags & MAP_TYPE) != MAP_SHARED && (request.flags & MAP_TYPE) != MAP_PRIVATE) return EINVAL;  // M4
  if (request.length == 0) return EINVAL;                                                                    // M5
  if (request.length > UINT64_MAX - kPage + 1) return ENOMEM;                                                // M6
  if (request.offset + RoundUp(request.length) < request.offset) return EOVERFLOW;                           // M7
  if (IsAnonymous(request)) return 0;
  const bool ram = files_[static_cast<std::size_t>(request.file)].ram;
  if (!classic_ && !request.readable) return EACCES;  // M11
  if (IsShared(request)) {
    if ((request.prot & PROT_WRITE) != 0 && !request.writable) return EACCES;  // M12
    if (!ram) return ENODEV;                                                   // M15
  }
  return 0;
}

// F1: what one ftruncate from 0 gathered lies in one run.
bool LiteralModel::GatheredTogether(const ModelFile& file, std::uint64_t first, std::uint64_t pages) const {
  for (std::uint64_t page = first; page < first + pages; ++page) {
    if (page >= file.pages.size() || file.gathered[page] == 0 || file.gathered[page] != file.gathered[first]) {
      return false;
    }
  }
  return true;
}

// S5, S7: the file's bytes now, zeros past its end.
std::vector<PagePointer> LiteralModel::Copy(const ModelRequest& request) const {
  const bool small = classic_ && request.length < kPage && (request.prot & PROT_WRITE) != 0;
  std::vector<PagePointer> pages;
  for (std::uint64_t i = 0; i < PagesOf(request.length); ++i) {
    auto page = std::make_shared<Page>();
    if (small) page->length = request.length;
    const auto bytes = Read(request.file, request.offset + i * kPage, page->length);
    std::copy(bytes.begin(), bytes.end(), page->bytes.begin());
    pages.push_back(std::move(page));
  }
  return pages;
}

int LiteralModel::Mmap(int space, const ModelRequest& request, bool contiguous) {
  if (const int error = Check(request); error != 0) return error;
  const std::uint64_t first = request.offset / kPage, count = PagesOf(request.length);
  choices_.clear();
  wanted_ = Mapping{.space = space,
                    .start = 0,
                    .length = classic_ ? request.length : RoundUp(request.length),  // P8
                    .bound = 0,
                    .pages = {},
                    .anonymous = IsAnonymous(request),
                    .own = false,
                    .prot = request.prot,
                    .flags = request.flags,
                    .file = IsAnonymous(request) ? -1 : request.file,
                    .first_page = first};
  if (wanted_.anonymous) {                      // S1, P2
    if (request.length > pool_) return ENOMEM;  // M22
    wanted_.own = true;
    for (std::uint64_t i = 0; i < count; ++i) wanted_.pages.push_back(std::make_shared<Page>());
    if (classic_ && request.length < kPage) wanted_.pages[0]->length = request.length;
    AddSlack();
    return 0;
  }
  const ModelFile& file = files_[static_cast<std::size_t>(request.file)];
  const bool writable = (request.prot & PROT_WRITE) != 0;
  if (!IsShared(request) && writable) {         // M17, S7
    if (!request.readable) return EACCES;       // P5
    if (request.length > pool_) return ENOMEM;  // M22
    wanted_.own = true;
    wanted_.pages = Copy(request);
    AddSlack();
    return 0;
  }

  const auto show = [&](const Shareable& region) {
    const auto begin = region.pages.begin() + static_cast<std::ptrdiff_t>(first - region.first);
    wanted_.pages.assign(begin, begin + static_cast<std::ptrdiff_t>(count));
  };
  const auto contains = [&](const Shareable& region) {
    return region.first <= first && first + count <= region.first + region.pages.size();
  };
  const auto equals = [&](const Shareable& region) { return region.first == first && region.pages.size() == count; };
  const auto overlaps = [&](const Shareable& region) {
    return region.first < first + count && first < region.first + region.pages.size();
  };
  for (const Shareable& region : shareable_) {  // S12
    if (region.file == request.file && region.direct && contains(region)) {
      show(region);
      return 0;
    }
  }
  if (!IsShared(request) && request.readable) {
    for (const Shareable& region : shareable_) {  // S3, P3
      if (region.file != request.file || region.direct) continue;
      if (!(classic_ ? equals(region) : contains(region))) continue;
      show(region);
      choices_.push_back(wanted_.pages);
    }
    if (!choices_.empty()) return 0;
  }
  if (file.ram) {  // S9, F3
    bool there = first + count <= PagesOf(file.size) && first + count <= file.pages.size();
    for (std::uint64_t page = first; there && page < first + count; ++page) there = file.pages[page] != nullptr;
    if (there && (contiguous || GatheredTogether(file, first, count))) {
      const auto begin = file.pages.begin() + static_cast<std::ptrdiff_t>(first);
      wanted_.pages.assign(begin, begin + static_cast<std::ptrdiff_t>(count));
      shareable_.push_back(Shareable{request.file, first, wanted_.pages, true});
      return 0;
    }
    if (IsShared(request)) return ENODEV;  // S10
  }
  if (!request.readable) return EACCES;  // P5
  if (!file.ram || classic_) {
    for (const Shareable& region : shareable_) {  // S4
      if (region.file == request.file && !region.direct && overlaps(region)) return EINVAL;
    }
  }
  if (request.length > pool_) return ENOMEM;  // M22
  wanted_.pages = Copy(request);
  shareable_.push_back(Shareable{request.file, first, wanted_.pages, false});
  return 0;
}

// P6: in classic the slack of memory of its own is the mapping's to grow into, and so nobody else's.
void LiteralModel::AddSlack() {
  if (!classic_ || !keeps_slack_ || wanted_.length < kPage) return;
  const std::size_t allocated = std::bit_ceil(wanted_.pages.size());
  while (wanted_.pages.size() < allocated) wanted_.pages.push_back(std::make_shared<Page>());
}

std::string LiteralModel::Placed(std::uint64_t start, std::uint64_t length) {
  if (length != wanted_.length) return "the length is wrong (P8)";
  for (const auto& pages : choices_) {
    if (pages.front()->address == start) wanted_.pages = pages;
  }
  wanted_.start = start;
  const bool small = classic_ && length < kPage && wanted_.own;
  wanted_.bound = start + (small ? length : wanted_.pages.size() * kPage);
  for (std::uint64_t i = 0; i < wanted_.pages.size(); ++i) {
    Page& page = *wanted_.pages[i];
    const std::uint64_t address = start + i * kPage;
    if (page.length == kPage && address % kPage != 0) return "a mapping of pages is not page-aligned";
    if (page.address != UINT64_MAX && page.address != address) return "it is not where the shared memory lies";
    page.address = address;
  }
  // Memory that is not shared is nobody else's.
  for (const Mapping& other : mappings_) {
    for (const PagePointer& theirs : other.pages) {
      for (const PagePointer& mine : wanted_.pages) {
        if (mine != theirs && mine->address < theirs->address + theirs->length &&
            theirs->address < mine->address + mine->length) {
          return "it overlaps another mapping's memory";
        }
      }
    }
  }
  mappings_.push_back(wanted_);
  return "";
}

int LiteralModel::Munmap(int space, std::uint64_t address, std::uint64_t length) {
  const auto in_space = [&](const Mapping& mapping) { return mapping.space == space; };
  if (classic_) {  // P4: one whole mapping
    const auto at = std::find_if(mappings_.begin(), mappings_.end(), [&](const Mapping& mapping) {
      return in_space(mapping) && mapping.start == address && (length == 0 || mapping.length == length);
    });
    if (at == mappings_.end()) return EINVAL;
    mappings_.erase(at);
    DropUnused();
    return 0;
  }
  if (length == 0 || length > UINT64_MAX - kPage + 1 || address + RoundUp(length) < address) return EINVAL;
  const std::uint64_t end = address + RoundUp(length);
  const auto whole = std::find_if(mappings_.begin(), mappings_.end(), [&](const Mapping& mapping) {
    return in_space(mapping) && mapping.start == address && mapping.start + mapping.length == end;
  });
  if (whole != mappings_.end()) {
    mappings_.erase(whole);
    DropUnused();
    return 0;
  }
  const auto at = std::find_if(mappings_.begin(), mappings_.end(), [&](const Mapping& mapping) {
    return in_space(mapping) && mapping.anonymous && mapping.start <= address && end <= mapping.start + mapping.length;
  });
  if (at == mappings_.end() || address % kPage != 0) return EINVAL;
  const Mapping old = *at;
  if (old.start < address && end < old.start + old.length &&
      static_cast<std::size_t>(std::count_if(mappings_.begin(), mappings_.end(), in_space)) >= max_map_count_) {
    return ENOMEM;  // M21
  }
  mappings_.erase(at);
  const auto keep = [&](std::uint64_t from, std::uint64_t to, std::uint64_t bound) {
    Mapping piece = old;
    piece.start = from;
    piece.length = to - from;
    piece.bound = bound;
    const auto begin = old.pages.begin() + static_cast<std::ptrdiff_t>((from - old.start) / kPage);
    // Pages that mremap has cut off stay with what lies before them.
    piece.pages.assign(begin, old.pages.begin() + static_cast<std::ptrdiff_t>((bound - old.start) / kPage));
    mappings_.push_back(std::move(piece));
  };
  if (old.start < address) keep(old.start, address, address);
  if (end < old.start + old.length) keep(end, old.start + old.length, old.bound);
  return 0;
}

int LiteralModel::Mremap(int space, std::uint64_t address, std::uint64_t old_length, std::uint64_t new_length,
                         std::uint32_t flags, std::uint64_t new_address) {
  constexpr std::uint64_t kLargest = UINT64_MAX - kPage + 1;
  if (old_length == 0 || new_length == 0 || old_length > kLargest || new_length > kLargest) return EINVAL;
  if (address % kPage != 0) return EINVAL;
  if ((flags & MREMAP_FIXED) != 0 && new_address != address) return EINVAL;
  Mapping* found = nullptr;
  bool starts_here = false;
  for (Mapping& mapping : mappings_) {
    if (mapping.space != space || mapping.start != address) continue;
    starts_here = true;
    if (found == nullptr && PagesOf(mapping.length) == PagesOf(old_length)) found = &mapping;
  }
  if (!starts_here) return EINVAL;
  if (found == nullptr) return classic_ ? EFAULT : EINVAL;
  if (!found->own) return EPERM;
  if (address + RoundUp(new_length) > found->bound) return ENOMEM;  // P6
  found->length = RoundUp(new_length);
  return 0;
}

void LiteralModel::End(int space) {
  std::erase_if(mappings_, [&](const Mapping& mapping) { return mapping.space == space; });
  DropUnused();
}

void LiteralModel::Unlink(int number) {
  const int retired = static_cast<int>(files_.size());
  files_.push_back(std::exchange(files_[static_cast<std::size_t>(number)], ModelFile{}));
  files_[static_cast<std::size_t>(number)].ram = true;
  for (Mapping& mapping : mappings_) {
    if (mapping.file == number) mapping.file = retired;
  }
  for (Shareable& region : shareable_) {
    if (region.file == number) region.file = retired;
  }
}

// U2: a region goes with its last mapping.
void LiteralModel::DropUnused() {
  std::erase_if(shareable_, [&](const Shareable& region) {
    return std::none_of(mappings_.begin(), mappings_.end(), [&](const Mapping& mapping) {
      return !mapping.own && mapping.file == region.file &&
             std::find(region.pages.begin(), region.pages.end(), mapping.pages.front()) != region.pages.end();
    });
  });
}

int LiteralModel::Ftruncate(int number, bool writable, std::uint64_t size) {
  if (!writable) return EINVAL;
  ModelFile& file = files_[static_cast<std::size_t>(number)];
  if (size < file.size) {  // F4
    for (const Mapping& mapping : mappings_) {
      if (mapping.file == number && (mapping.flags & MAP_TYPE) == MAP_SHARED &&
          mapping.first_page + PagesOf(mapping.length) > size / kPage) {
        return ETXTBSY;
      }
    }
    const std::uint64_t kept = PagesOf(size);
    std::erase_if(shareable_, [&](const Shareable& region) {
      return region.file == number && region.direct && region.first + region.pages.size() > kept;
    });
    if (kept < file.pages.size()) {
      file.pages.resize(kept);
      file.gathered.resize(kept);
    }
    if (size % kPage != 0 && kept == file.pages.size() && file.pages.back() != nullptr) {  // F5
      std::fill(file.pages.back()->bytes.begin() + static_cast<std::ptrdiff_t>(size % kPage),
                file.pages.back()->bytes.end(), std::uint8_t{0});
    }
    file.size = size;
    return 0;
  }
  if (file.size == 0 && size > 0) {  // F1
    if (size > pool_) return EFBIG;
    ++gatherings_;
    for (std::uint64_t i = 0; i < PagesOf(size); ++i) {
      file.pages.push_back(std::make_shared<Page>());
      file.gathered.push_back(gatherings_);
    }
  }
  file.size = size;
  return 0;
}

void LiteralModel::Write(int number, std::uint64_t offset, std::uint64_t count, std::uint8_t byte) {
  ModelFile& file = files_[static_cast<std::size_t>(number)];
  if (!file.ram) {
    if (file.bytes.size() < offset + count) file.bytes.resize(offset + count);
    std::fill_n(file.bytes.begin() + static_cast<std::ptrdiff_t>(offset), count, byte);
    return;
  }
  if (file.pages.size() < PagesOf(offset + count)) {
    file.pages.resize(PagesOf(offset + count));
    file.gathered.resize(file.pages.size());
  }
  for (std::uint64_t at = offset; at < offset + count; at = PageEnd(at)) {
    PagePointer& page = file.pages[at / kPage];
    if (page == nullptr) page = std::make_shared<Page>();
    std::fill_n(page->bytes.begin() + static_cast<std::ptrdiff_t>(at % kPage),
                std::min(PageEnd(at), offset + count) - at, byte);
  }
  file.size = std::max(file.size, offset + count);
}

std::vector<std::uint8_t> LiteralModel::Read(int number, std::uint64_t offset, std::uint64_t count) const {
  const ModelFile& file = files_[static_cast<std::size_t>(number)];
  const std::uint64_t size = file.ram ? file.size : file.bytes.size();
  const std::uint64_t end = std::min(offset + count, size);
  if (offset >= end) return {};
  if (!file.ram) {
    return {file.bytes.begin() + static_cast<std::ptrdiff_t>(offset),
            file.bytes.begin() + static_cast<std::ptrdiff_t>(end)};
  }
  std::vector<std::uint8_t> bytes(end - offset);
  for (std::uint64_t at = offset; at < end; at = PageEnd(at)) {
    const PagePointer page = at / kPage < file.pages.size() ? file.pages[at / kPage] : nullptr;
    if (page == nullptr) continue;
    std::copy_n(page->bytes.begin() + static_cast<std::ptrdiff_t>(at % kPage), std::min(PageEnd(at), end) - at,
                bytes.begin() + static_cast<std::ptrdiff_t>(at - offset));
  }
  return bytes;
}

void LiteralModel::Store(const Mapping& mapping, std::uint64_t offset, std::uint64_t count, std::uint8_t byte) {
  for (std::uint64_t at = offset; at < offset + count; at = PageEnd(at)) {
    std::fill_n(mapping.pages[at / kPage]->bytes.begin() + static_cast<std::ptrdiff_t>(at % kPage),
                std::min(PageEnd(at), offset + count) - at, byte);
  }
}

std::string LiteralModel::Compare(std::span<const std::byte> pool) const {
  for (const Mapping& mapping : mappings_) {
    for (const PagePointer& page : mapping.pages) {
      if (std::memcmp(pool.data() + page->address, page->bytes.data(), page->length) != 0) {
        return "the memory at pool address " + std::to_string(page->address) + " does not hold what it must";
      }
    }
  }
  return "";
}

}  // namespace mapbroker::fuzz
