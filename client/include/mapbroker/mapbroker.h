// The C face of libmapbroker: mmap(2) and its kin on mapbrokerd's pool.
//
// Functions answer as their namesakes do: -1 or MB_MAP_FAILED with errno set. All are thread-safe and may be
// called from constructors (before main). The memory belongs to this process until it is unmapped or the process ends.
#ifndef MAPBROKER_MAPBROKER_H_
#define MAPBROKER_MAPBROKER_H_

#include <stddef.h>
#include <sys/mman.h>
#include <sys/types.h>

#include "mapbroker/export.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MB_MAP_FAILED ((void*)-1)

// A session with a daemon.
typedef struct mb_session mb_session;

// Opens a session with the daemon that serves `runtime_dir` (NULL: MAPBROKER_RUNTIME_DIR, else /run/mapbroker).
// NULL with errno: ENOENT, ECONNREFUSED (no daemon), EACCES, EPROTONOSUPPORT (no version in common).
MAPBROKER_EXPORT mb_session* mb_connect(const char* runtime_dir);

// Unmaps everything of the session and ends it. NULL is ignored. No other call on the session may run or follow.
MAPBROKER_EXPORT void mb_disconnect(mb_session* session);

// mmap(2) under no-MMU rules. `addr` must be NULL under the profile classic and is ignored under modern (P1); `length`
// and `offset` are in bytes, `offset` a multiple of the page size. Returns where the memory is attached in this
// process. MB_MAP_FAILED with errno as in rules M1 to M22.
MAPBROKER_EXPORT void* mb_mmap(mb_session* session, void* addr, size_t length, int prot, int flags, int fd,
                               off_t offset);

// munmap(2): `addr` as mb_mmap returned it. 0, or -1 with errno EINVAL if that is no mapping of the session (U1, P4).
MAPBROKER_EXPORT int mb_munmap(mb_session* session, void* addr, size_t length);

// mremap(2) (U3): changes the length of a private mapping in place, in bytes, within what it was made with (P6).
// `old_address` as mb_mmap returned it; `flags` as for mremap(2), of which MREMAP_FIXED needs the same address as a
// further argument. Returns the same address, or MB_MAP_FAILED with errno EINVAL, EFAULT, EPERM or ENOMEM.
MAPBROKER_EXPORT void* mb_mremap(mb_session* session, void* old_address, size_t old_size, size_t new_size, int flags,
                                 ... /* void *new_address */);

// The calls that do not exist without an MMU (U4): always -1 with errno ENOSYS.
MAPBROKER_EXPORT int mb_mprotect(mb_session* session, void* addr, size_t length, int prot);
MAPBROKER_EXPORT int mb_msync(mb_session* session, void* addr, size_t length, int flags);
MAPBROKER_EXPORT int mb_mlock(mb_session* session, const void* addr, size_t length);
MAPBROKER_EXPORT int mb_munlock(mb_session* session, const void* addr, size_t length);
MAPBROKER_EXPORT int mb_mlockall(mb_session* session, int flags);
MAPBROKER_EXPORT int mb_munlockall(mb_session* session);
MAPBROKER_EXPORT int mb_mincore(mb_session* session, void* addr, size_t length, unsigned char* vec);
MAPBROKER_EXPORT int mb_madvise(mb_session* session, void* addr, size_t length, int advice);
MAPBROKER_EXPORT int mb_remap_file_pages(mb_session* session, void* addr, size_t size, int prot, size_t pgoff,
                                         int flags);

// The sentence that explains the last failed call of this thread: the rule and what to do instead. Never NULL; valid
// until the thread's next call.
MAPBROKER_EXPORT const char* mb_strerror(void);

#ifdef __cplusplus
}
#endif

#endif  // MAPBROKER_MAPBROKER_H_
