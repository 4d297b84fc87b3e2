#include "shm_backend/write_ahead_log.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <zlib.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <map>

#include "absl/strings/str_cat.h"
#include "shm_backend/failure_point.h"

namespace mapbroker::shm {
namespace {

// Bytes of a half; an entry of a call takes some hundreds.
constexpr std::size_t kHalf = std::size_t{4} << 20;

constexpr std::size_t Rounded(std::size_t bytes) { return (bytes + 7) / 8 * 8; }

}  // namespace

// Before each entry. It counts once `length`, which is written last, is not 0.
struct WriteAheadLog::Header {
  std::uint64_t number;
  std::uint32_t checksum;  // of number and entry
  std::atomic<std::uint32_t> length;

  static std::uint32_t ChecksumOf(std::uint64_t number, std::string_view entry) {
    const uLong of_number = crc32(0, reinterpret_cast<const Bytef*>(&number), sizeof(number));
    return static_cast<std::uint32_t>(
        crc32(of_number, reinterpret_cast<const Bytef*>(entry.data()), static_cast<uInt>(entry.size())));
  }
};

absl::StatusOr<std::unique_ptr<WriteAheadLog>> WriteAheadLog::Open(const std::string& path) {
  std::unique_ptr<WriteAheadLog> log(new WriteAheadLog);
  const auto failed = [&](const char* what) {
    const int error = errno;
    const std::string text = absl::StrCat(what, " ", path, ": ", std::strerror(error));
    return error == ENOSPC ? absl::ResourceExhaustedError(text + ": make room in its directory")
                           : absl::InternalError(text);
  };
  log->fd_ = UniqueFd(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!log->fd_) return failed("cannot open");
  if (FailAt(Point::kLogOpen) || ftruncate(log->fd_.get(), 2 * kHalf) != 0 ||
      fallocate(log->fd_.get(), 0, 0, 2 * kHalf) != 0) {
    return failed("cannot allocate");
  }
  void* const base = mmap(nullptr, 2 * kHalf, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, log->fd_.get(), 0);
  if (base == MAP_FAILED) return failed("cannot map");
  log->base_ = static_cast<std::byte*>(base);
  return log;
}

WriteAheadLog::~WriteAheadLog() {
  if (base_ != nullptr) munmap(base_, 2 * kHalf);
}

std::byte* WriteAheadLog::Half(unsigned half) const { return base_ + half * kHalf; }

void WriteAheadLog::Read(unsigned half,
                         const std::function<void(std::uint64_t number, std::string_view entry)>& take) const {
  for (std::size_t at = 0; kHalf - at >= sizeof(Header);) {
    const auto* const header = reinterpret_cast<const Header*>(Half(half) + at);
    const std::size_t length = header->length.load(std::memory_order_acquire);
    if (length == 0 || length > kHalf - at - sizeof(Header)) return;
    const std::string_view entry(reinterpret_cast<const char*>(header + 1), length);
    if (header->checksum != Header::ChecksumOf(header->number, entry)) return;
    take(header->number, entry);
    at += sizeof(Header) + Rounded(length);
  }
}

void WriteAheadLog::Recover(std::uint64_t applied, const std::function<void(std::string_view entry)>& take) {
  std::map<std::uint64_t, std::string_view> entries;
  last_ = applied;
  for (const unsigned half : {0u, 1u}) {
    Read(half, [&](std::uint64_t number, std::string_view entry) {
      if (number > applied) entries.emplace(number, entry);
    });
  }
  // Whatever stands behind a gap is of an older turn.
  for (const auto& [number, entry] : entries) {
    if (number != last_ + 1) break;
    take(entry);
    last_ = number;
  }
}

bool WriteAheadLog::Append(std::string_view entry) {
  const std::size_t size = sizeof(Header) + Rounded(entry.size());
  // Room for the end as well.
  if (entry.empty() || entry.size() > kMaxEntry || size + sizeof(Header) > kHalf - used_) return false;
  auto* const header = reinterpret_cast<Header*>(Half(half_) + used_);
  auto* const end = reinterpret_cast<Header*>(Half(half_) + used_ + size);
  end->length.store(0, std::memory_order_relaxed);
  header->number = last_ + 1;
  header->checksum = Header::ChecksumOf(header->number, entry);
  std::memcpy(Half(half_) + used_ + sizeof(Header), entry.data(), entry.size());
  header->length.store(static_cast<std::uint32_t>(entry.size()), std::memory_order_release);
  ++last_;
  used_ += size;
  return true;
}

void WriteAheadLog::Turn() {
  half_ ^= 1;
  used_ = 0;
}

void WriteAheadLog::ClearOther() {
  reinterpret_cast<Header*>(Half(half_ ^ 1))->length.store(0, std::memory_order_release);
}

void WriteAheadLog::Clear() {
  ClearOther();
  Turn();
  ClearOther();
}

}  // namespace mapbroker::shm
