// What the rules know of an open file. What can be done with it (reading, siting) is for backing/.
#pragma once

#include <cstdint>

namespace mapbroker::nommu {

// A file's identity: st_dev and st_ino. Two open files with the same identity share copies (S3).
struct FileId {
  std::uint64_t device = 0;
  std::uint64_t inode = 0;
  // When it was made, in nanoseconds, since inode numbers are given again; 0 where that is not known.
  std::uint64_t birth = 0;
  friend bool operator==(const FileId&, const FileId&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const FileId& id) {
    return H::combine(std::move(h), id.device, id.inode, id.birth);
  }
};

// Bits of Capabilities: how a backing device may be mapped (the kernel's NOMMU_MAP_* and BDI_CAP_*).
enum Capability : unsigned {
  kMapCopy = 1,
  kMapDirect = 2,
  kReadMap = 4,
  kWriteMap = 8,
  kExecMap = 16,
};
using Capabilities = unsigned;

// One open file description.
struct File {
  // How the file answers mmap at all.
  enum class Kind {
    kMappable,       // `capabilities` says how
    kNotOpen,        // O_PATH: no file as far as mmap is concerned (M2)
    kNoMmap,         // a pipe, a directory and others without an mmap operation (M8)
    kNoCapabilities  // a kind without capabilities of its own or by default, such as a socket (M9)
  };

  virtual ~File() = default;

  Kind kind = Kind::kMappable;
  FileId id;
  Capabilities capabilities = 0;
  bool shareable = true;        // false: every copy is its mapper's own, as of zero (D9)
  bool readable = false;        // open for reading
  bool writable = false;        // open for writing
  bool append_only = false;     // the file may only be appended to (its inode's attribute)
  bool mandatory_lock = false;  // a mandatory lock is held on it (M14)
  bool noexec = false;          // on a file system mounted noexec
};

}  // namespace mapbroker::nommu
