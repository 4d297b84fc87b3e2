#include "daemon/nommu/validate.h"

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "daemon/nommu/refusal.h"

namespace mapbroker::nommu {
namespace {

absl::Status ValidateArguments(const MapRequest& request, const File* file, const Profile& profile) {
  if (request.offset % kPageSize != 0) {
    return Refuse(EINVAL, "M1",
                  absl::StrCat("offset ", request.offset, " is not a multiple of the page size ", kPageSize));
  }
  if (!request.anonymous() && (file == nullptr || file->kind == File::Kind::kNotOpen)) {
    return Refuse(EBADF, "M2",
                  "no such open file: pass a descriptor that is open for reading (not O_PATH), or MAP_ANONYMOUS");
  }
  if ((request.flags & MAP_FIXED) != 0) {
    return Refuse(EINVAL, "M3",
                  "MAP_FIXED: without an MMU addresses cannot be chosen; leave it out and take the answer");
  }
  if (request.address != 0 && profile.refuses_address_hint) {
    return Refuse(EINVAL, "M3", "an address was asked for: without an MMU addresses cannot be chosen; pass 0");
  }
  const std::uint32_t type = request.flags & MAP_TYPE;
  if (type != MAP_SHARED && type != MAP_PRIVATE) {
    return Refuse(EINVAL, "M4", "exactly one of MAP_SHARED and MAP_PRIVATE must be given");
  }
  if (request.length == 0) return Refuse(EINVAL, "M5", "length 0: ask for at least one byte");
  const std::uint64_t rounded = (request.length + kPageSize - 1) / kPageSize * kPageSize;
  if (request.length > UINT64_MAX - (kPageSize - 1)) {
    return Refuse(ENOMEM, "M6", absl::StrCat("length ", request.length, " rounds up past the address space"));
  }
  if (request.offset + rounded < request.offset) {
    return Refuse(EOVERFLOW, "M7", "offset + length goes past the largest possible file");
  }
  return absl::OkStatus();
}

// M12 to M15: what a shared mapping needs.
absl::Status ValidateShared(const MapRequest& request, const File& file, Capabilities capabilities) {
  if ((request.prot & PROT_WRITE) != 0 && !file.writable) {
    return Refuse(EACCES, "M12", "shared and writable, but the descriptor is not open for writing: open it O_RDWR");
  }
  if (file.append_only && file.writable) {
    return Refuse(EACCES, "M13", "the file is append-only and open for writing: open it O_RDONLY to map it shared");
  }
  if (file.mandatory_lock) {
    return Refuse(EAGAIN, "M14", "a mandatory lock is held on the file: try again when it is released");
  }
  if ((capabilities & kMapDirect) == 0) {
    return Refuse(
        ENODEV, "M15",
        "the file cannot be mapped shared, since it is not memory itself: map it MAP_PRIVATE, or use a ram file");
  }
  return absl::OkStatus();
}

// The capabilities that allow this protection on a device's own memory.
Capabilities NeededFor(std::uint32_t prot) {
  Capabilities needed = 0;
  if ((prot & PROT_READ) != 0) needed |= kReadMap;
  if ((prot & PROT_WRITE) != 0) needed |= kWriteMap;
  if ((prot & PROT_EXEC) != 0) needed |= kExecMap;
  return needed;
}

// P5: where mmap itself does not look, the copy that must be read fails. An existing copy is no way round that.
absl::Status ValidateReading(const File& file) {
  if (file.readable) return absl::OkStatus();
  return Refuse(EACCES, "P5", "the descriptor is not open for reading, so the file cannot be copied: open it O_RDONLY");
}

}  // namespace

absl::StatusOr<Capabilities> ValidateMmapRequest(const MapRequest& request, const File* file, const Profile& profile) {
  if (absl::Status status = ValidateArguments(request, file, profile); !status.ok()) return status;
  if (request.anonymous()) return Capabilities{0};

  if (file->kind == File::Kind::kNoMmap) {
    return Refuse(ENODEV, "M8",
                  "this kind of file has no mmap (a pipe, a directory, a character device): use a regular file");
  }
  if (file->kind == File::Kind::kNoCapabilities) {
    return Refuse(EINVAL, "M9", "this kind of file has no mapping capabilities (a socket): use a regular file");
  }
  // M10, the dropping of what the device has no operation for, is done by the backing that states its capabilities.
  Capabilities capabilities = file->capabilities;
  if (profile.checks_read_mode_first && !file->readable) {
    return Refuse(EACCES, "M11", "the descriptor is not open for reading: open it O_RDONLY or O_RDWR");
  }

  if (request.shared()) {
    if (absl::Status status = ValidateShared(request, *file, capabilities); !status.ok()) return status;
    capabilities &= ~kMapCopy;
  } else {
    if ((capabilities & kMapCopy) == 0) {
      return Refuse(ENODEV, "M16", "the device cannot be copied: map it MAP_SHARED");
    }
    if ((request.prot & PROT_WRITE) != 0) capabilities &= ~kMapDirect;  // M17
  }

  if ((capabilities & kMapDirect) != 0 && (NeededFor(request.prot) & ~capabilities) != 0) {
    capabilities &= ~kMapDirect;  // M18
    if (request.shared()) {
      return Refuse(EINVAL, "M18", "the device does not allow this protection on its own memory: ask for less");
    }
  }
  if ((request.prot & PROT_EXEC) != 0) {
    if (file->noexec) {
      return Refuse(EPERM, "M19", "PROT_EXEC of a file on a file system mounted noexec: map it without PROT_EXEC");
    }
    if ((request.prot & PROT_READ) != 0 && (capabilities & kExecMap) == 0) capabilities &= ~kMapDirect;  // M20
  }
  if (DetermineKind(request, capabilities) != MappingKind::kDirect) {
    if (absl::Status status = ValidateReading(*file); !status.ok()) return status;
  }
  return capabilities;
}

absl::StatusOr<Capabilities> ValidateCopyInstead(const MapRequest& request, const File& file,
                                                 Capabilities capabilities) {
  if (request.shared()) {
    return Refuse(ENODEV, "S10",
                  "the file's memory is not contiguous there or ends before the mapping does, so it cannot be mapped "
                  "shared: set its size once, by ftruncate from 0, before writing to it");
  }
  if ((capabilities & kMapCopy) == 0) {
    return Refuse(ENODEV, "S10", "the device sites no mapping in its own memory and cannot be copied");
  }
  if (absl::Status status = ValidateReading(file); !status.ok()) return status;
  return capabilities & ~kMapDirect;
}

MappingKind DetermineKind(const MapRequest& request, Capabilities capabilities) {
  if (request.anonymous()) return MappingKind::kAnonymous;
  if (request.shared()) return MappingKind::kDirect;
  if (request.traced || (request.prot & PROT_WRITE) != 0) return MappingKind::kPrivateCopy;
  return (capabilities & kMapDirect) != 0 ? MappingKind::kDirect : MappingKind::kSharedCopy;
}

}  // namespace mapbroker::nommu
