// A log of changes in a mapped file: what was appended is there after the process was killed at any instant.
//
// Two halves take turns: while what one holds is carried elsewhere, the other is appended to. All of the file is
// allocated when it is opened, so that no access can fail.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "shm_backend/unique_fd.h"

namespace mapbroker::shm {

// Not thread-safe.
class WriteAheadLog {
 public:
  // Bytes of an entry.
  static constexpr std::size_t kMaxEntry = 512 << 10;

  // Opens the file, and makes it if it is missing. ResourceExhausted: there is no room for it.
  static absl::StatusOr<std::unique_ptr<WriteAheadLog>> Open(const std::string& path);
  ~WriteAheadLog();
  WriteAheadLog(const WriteAheadLog&) = delete;
  WriteAheadLog& operator=(const WriteAheadLog&) = delete;

  // What a process before left, entries with numbers above `applied`, in order. To be called once, first; entries that
  // are appended later have larger numbers.
  void Recover(std::uint64_t applied, const std::function<void(std::string_view entry)>& take);
  // The number of the entry that was appended or recovered last.
  std::uint64_t last() const { return last_; }

  // False: the half has no room for it.
  bool Append(std::string_view entry);
  // Goes on in the other half. REQUIRES: that is empty.
  void Turn();
  // The half that is not appended to holds nothing that is needed.
  void ClearOther();
  // Both.
  void Clear();

 private:
  struct Header;
  WriteAheadLog() = default;
  std::byte* Half(unsigned half) const;
  // Calls `take` for every whole entry of a half.
  void Read(unsigned half, const std::function<void(std::uint64_t number, std::string_view entry)>& take) const;

  UniqueFd fd_;
  std::byte* base_ = nullptr;
  unsigned half_ = 0;
  std::size_t used_ = 0;  // bytes of it
  std::uint64_t last_ = 0;
};

}  // namespace mapbroker::shm
