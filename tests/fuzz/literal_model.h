// The rules once more, as literally as they are written in docs/semantics.md: lists, walks, no index. What the daemon
// answers is held against it.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace mapbroker::fuzz {

inline constexpr std::uint64_t kPage = 4096;

// Memory shorter than a page (P2) or a page, wherever it lies. Who refers to it keeps it.
struct Page {
  std::uint64_t address = UINT64_MAX;  // in the pool; learned from the first mapping that shows it
  std::uint64_t length = kPage;        // bytes
  std::array<std::uint8_t, kPage> bytes{};
};
using PagePointer = std::shared_ptr<Page>;

// An ordinary file holds `bytes`; a ram file holds pages, of which a hole is null.
struct ModelFile {
  bool ram = false;
  std::vector<std::uint8_t> bytes;
  std::vector<PagePointer> pages;
  std::vector<int> gathered;  // of each page: the ftruncate from 0 that made it (F1), 0 for none
  std::uint64_t size = 0;     // bytes of a ram file
};

struct ModelRequest {
  std::uint64_t length = 0, offset = 0, address = 0;
  std::uint32_t prot = 0, flags = 0;
  int file = -1;  // number of the file, -1: there is none
  bool readable = false, writable = false;
};

class LiteralModel {
 public:
  // `pool`: bytes. `max_map_count`: M21. `keeps_slack`: memory of its own comes as a power of two of pages (P6).
  LiteralModel(bool classic, std::uint64_t pool, std::size_t max_map_count, bool keeps_slack)
      : classic_(classic), keeps_slack_(keeps_slack), pool_(pool), max_map_count_(max_map_count) {}

  struct Mapping {
    int space = 0;
    std::uint64_t start = 0, length = 0;
    std::uint64_t bound = 0;  // P6: the address up to which mremap may grow it
    std::vector<PagePointer> pages;
    bool anonymous = false, own = false;  // own: nobody else can ever have it
    std::uint32_t prot = 0, flags = 0;
    int file = -1;
    std::uint64_t first_page = 0;
  };

  std::vector<ModelFile>& files() { return files_; }
  const std::vector<Mapping>& mappings() const { return mappings_; }

  // What mmap must answer: an errno, or 0 and the pages that the mapping must show. `contiguous` says whether the
  // implementation has the ram file's pages in one run, which the rules leave to it where F1 does not speak.
  int Mmap(int space, const ModelRequest& request, bool contiguous);
  // After a Mmap that must succeed: where it lies. An empty text, or what is wrong with that.
  std::string Placed(std::uint64_t start, std::uint64_t length);

  int Munmap(int space, std::uint64_t address, std::uint64_t length);
  int Mremap(int space, std::uint64_t address, std::uint64_t old_length, std::uint64_t new_length, std::uint32_t flags,
             std::uint64_t new_address);
  void End(int space);

  // F6: the number is an empty file's afterwards; what maps the old one keeps it.
  void Unlink(int file);

  int Ftruncate(int file, bool writable, std::uint64_t size);
  void Write(int file, std::uint64_t offset, std::uint64_t count, std::uint8_t byte);
  std::vector<std::uint8_t> Read(int file, std::uint64_t offset, std::uint64_t count) const;
  void Store(const Mapping& mapping, std::uint64_t offset, std::uint64_t count, std::uint8_t byte);

  // Whether the pool holds what every mapping must show; the first difference as a sentence.
  std::string Compare(std::span<const std::byte> pool) const;

 private:
  // A range of a file that mappings may share (S2, S3).
  struct Shareable {
    int file = -1;
    std::uint64_t first = 0;
    std::vector<PagePointer> pages;
    bool direct = false;
  };

  int Check(const ModelRequest& request) const;
  bool GatheredTogether(const ModelFile& file, std::uint64_t first, std::uint64_t pages) const;
  std::vector<PagePointer> Copy(const ModelRequest& request) const;
  void AddSlack();
  void DropUnused();

  const bool classic_;
  const bool keeps_slack_;
  const std::uint64_t pool_;
  const std::size_t max_map_count_;
  std::vector<ModelFile> files_;
  std::vector<Mapping> mappings_;  // in the order they were made
  std::vector<Shareable> shareable_;
  Mapping wanted_;                                 // by the last Mmap
  std::vector<std::vector<PagePointer>> choices_;  // what else it may show: P3 leaves open which copy is shared
  int gatherings_ = 0;
};

}  // namespace mapbroker::fuzz
