// The C face: mmap and munmap by address.
#include <cerrno>
#include <cstdarg>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/src/c_session.h"
#include "client/src/status.h"
#include "mapbroker/mapbroker.h"

namespace mapbroker::c_face {

thread_local std::string last_error = "no call has failed";

void Fail(const absl::Status& status) {
  last_error = std::string(status.message());
  const std::string rule = RuleOf(status);
  if (!rule.empty()) last_error += absl::StrCat(" (rule ", rule, ")");
  errno = ErrnoOf(status);
}

void* Keep(mb_session& session, Mapped mapped) {
  std::byte* const at = mapped.attachment->At(mapped.grant.address());
  shm::MutexLock lock(session.mutex);
  session.pieces[at] = Piece{.length = mapped.grant.length(),
                             .pool_address = mapped.grant.address(),
                             .attachment = std::move(mapped.attachment),
                             .file = std::move(mapped.file)};
  return at;
}

}  // namespace mapbroker::c_face

namespace {

using mapbroker::Mapped;
using mapbroker::c_face::Fail;
using mapbroker::c_face::Piece;

// U4.
int NoSuchCall(const char* name) {
  Fail(mapbroker::MakeStatus(ENOSYS, absl::StrCat(name, " does not exist without an MMU: do without it"), "U4"));
  return -1;
}

}  // namespace

extern "C" {

mb_session* mb_connect(const char* runtime_dir) { return mb_connect_token(runtime_dir, "", 0); }

mb_session* mb_connect_token(const char* runtime_dir, const char* token, int flags) {
  auto session = mapbroker::Session::Open({.runtime_dir = runtime_dir == nullptr ? "" : runtime_dir,
                                           .token = token,
                                           .executed = (flags & MB_EXECUTED) != 0});
  if (!session.ok()) {
    Fail(session.status());
    return nullptr;
  }
  return new mb_session(*std::move(session));
}

const char* mb_token(const mb_session* session) { return session->token.c_str(); }

void mb_disconnect(mb_session* session) { delete session; }

void* mb_mmap(mb_session* session, void* addr, size_t length, int prot, int flags, int fd, off_t offset) {
  mapbroker::MapOptions options{.length = length,
                                .prot = prot,
                                .flags = flags,
                                .fd = fd,
                                .offset = static_cast<std::uint64_t>(offset),
                                .address = reinterpret_cast<std::uint64_t>(addr)};
  const std::shared_ptr<mapbroker::File> file = mapbroker::c_face::PoolFileOf(*session, fd);
  if ((flags & MAP_ANONYMOUS) == 0) options.file = file.get();
  absl::StatusOr<Mapped> mapped = session->session->Map(options);
  if (!mapped.ok()) {
    Fail(mapped.status());
    return MB_MAP_FAILED;
  }
  return mapbroker::c_face::Keep(*session, *std::move(mapped));
}

int mb_munmap(mb_session* session, void* addr, size_t length) {
  auto* const start = static_cast<std::byte*>(addr);
  Piece old;
  {
    mapbroker::shm::MutexLock lock(session->mutex);
    auto found = session->pieces.upper_bound(start);
    if (found == session->pieces.begin() ||
        start >= (--found)->first + static_cast<std::ptrdiff_t>(found->second.length)) {
      Fail(mapbroker::MakeStatus(EINVAL, "no mapping of this session lies at the address", "U1"));
      return -1;
    }
    const std::uint64_t before = static_cast<std::uint64_t>(start - found->first);
    // The daemon decides, and by calling this the process has said that it does not use the memory any more; so the
    // memory may be given away before it is detached below.
    const absl::Status status = session->session->Unmap(found->second.pool_address + before, length);
    if (!status.ok()) {
      Fail(status);
      return -1;
    }
    old = std::move(found->second);
    std::byte* const first = found->first;
    session->pieces.erase(found);
    const std::uint64_t page = session->session->welcome().page_size();
    const std::uint64_t gone = length == 0 ? old.length : (length + page - 1) / page * page;
    const std::uint64_t end = before + gone;
    if (before > 0) session->pieces[first] = Piece{before, old.pool_address, old.attachment, nullptr};
    if (end < old.length) {
      session->pieces[first + end] = Piece{old.length - end, old.pool_address + end, old.attachment, nullptr};
    }
    if (before > 0 || end < old.length) old.attachment->DetachPart(old.pool_address + before, gone);
  }
  return 0;
}

void* mb_mremap(mb_session* session, void* old_address, size_t old_size, size_t new_size, int flags, ...) {
  void* new_address = nullptr;
  if ((flags & MREMAP_FIXED) != 0) {
    va_list arguments;
    va_start(arguments, flags);
    new_address = va_arg(arguments, void*);
    va_end(arguments);
  }
  mapbroker::shm::MutexLock lock(session->mutex);
  const auto found = session->pieces.find(static_cast<std::byte*>(old_address));
  if (found == session->pieces.end()) {
    Fail(mapbroker::MakeStatus(EINVAL, "no mapping of this session starts at the address", "U3"));
    return MB_MAP_FAILED;
  }
  Piece& piece = found->second;
  // The rules know pool addresses; all that matters of the new one is whether it is another.
  const std::uint64_t target =
      piece.pool_address + (new_address == old_address ? 0 : session->session->welcome().page_size());
  const absl::StatusOr<std::uint64_t> length =
      session->session->Remap(piece.pool_address, old_size, new_size, flags, target);
  if (!length.ok()) {
    Fail(length.status());
    return MB_MAP_FAILED;
  }
  piece.length = *length;
  return old_address;
}

int mb_mprotect(mb_session*, void*, size_t, int) { return NoSuchCall("mprotect"); }
int mb_msync(mb_session*, void*, size_t, int) { return NoSuchCall("msync"); }
int mb_mlock(mb_session*, const void*, size_t) { return NoSuchCall("mlock"); }
int mb_munlock(mb_session*, const void*, size_t) { return NoSuchCall("munlock"); }
int mb_mlockall(mb_session*, int) { return NoSuchCall("mlockall"); }
int mb_munlockall(mb_session*) { return NoSuchCall("munlockall"); }
int mb_mincore(mb_session*, void*, size_t, unsigned char*) { return NoSuchCall("mincore"); }
int mb_madvise(mb_session*, void*, size_t, int) { return NoSuchCall("madvise"); }
int mb_remap_file_pages(mb_session*, void*, size_t, int, size_t, int) { return NoSuchCall("remap_file_pages"); }

const char* mb_strerror(void) { return mapbroker::c_face::last_error.c_str(); }

}  // extern "C"
