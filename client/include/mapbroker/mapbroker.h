// The C face of libmapbroker: mmap(2) and its kin on mapbrokerd's pool.
//
// Functions answer as their namesakes do: -1 or MB_MAP_FAILED with errno set. All are thread-safe and may be
// called from constructors (before main). The memory belongs to this process until it is unmapped or the process ends.
#ifndef MAPBROKER_MAPBROKER_H_
#define MAPBROKER_MAPBROKER_H_

#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/stat.h>
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

// The session's token, as hexadecimal text that lives as long as the session; a secret: whoever has it can use this
// session's address space and act as the session.
MAPBROKER_EXPORT const char* mb_token(const mb_session* session);
// A session by a token. In another process than the token's: one with the same address space, which lasts until its
// last user has gone (X2). In the same process, after the connection was lost: that session again; with MB_EXECUTED, in
// a program that was executed since: one with an empty address space, and what the old one had mapped is unmapped (X4).
// NULL with errno: as mb_connect; ESRCH (the session has ended), EINVAL, EPERM, EACCES (it is read-only).
enum { MB_EXECUTED = 1 };
MAPBROKER_EXPORT mb_session* mb_connect_token(const char* runtime_dir, const char* token, int flags);

// ptrace(2) of processes with sessions, for who may trace them (X5: EPERM, ESRCH). mb_set_traced: from now on private
// mappings of the process (0: this one) are copies of its own (S2), or may be shared again. mb_peek and mb_poke read
// and write its memory at a pool address, as `mapctl maps` shows them, and answer how many bytes, fewer where the
// mapping ends; EIO where it has nothing mapped or the protection forbids it.
MAPBROKER_EXPORT int mb_set_traced(mb_session* session, pid_t pid, int traced);
MAPBROKER_EXPORT ssize_t mb_peek(mb_session* session, pid_t pid, uint64_t pool_address, void* buffer, size_t count);
MAPBROKER_EXPORT ssize_t mb_poke(mb_session* session, pid_t pid, uint64_t pool_address, const void* buffer,
                                 size_t count);

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

// The daemon's own files: open(2) and its kin on ram files "ram:/NAME", whose contents are pool memory (F), devices
// "dev:/NAME" and files of images "mnt:/MOUNT/PATH" (D), of which only ram files are created and unlinked. The
// descriptor is one of this process, so that its number is no other file's, but only the calls here and mb_mmap know
// what it stands for; close it with mb_close. `mode` is not subject to the umask. Offsets and sizes are in bytes.
//
// -1 with errno: ENOENT, EEXIST, EACCES, EINVAL, ENAMETOOLONG, EMFILE; with O_TRUNC also ETXTBSY; EROFS for
// files of images.
MAPBROKER_EXPORT int mb_open(mb_session* session, const char* name, int flags, mode_t mode);
MAPBROKER_EXPORT int mb_close(mb_session* session, int fd);
// From size 0 the file gets one contiguous run, which can be mapped shared (F1: EFBIG, ENOMEM); cutting off what a
// shared mapping uses is ETXTBSY (F4).
MAPBROKER_EXPORT int mb_ftruncate(mb_session* session, int fd, off_t length);
// All of `count` bytes, fewer only at the end of the file.
MAPBROKER_EXPORT ssize_t mb_pread(mb_session* session, int fd, void* buffer, size_t count, off_t offset);
// All of `count` bytes: EFBIG, ENOMEM.
MAPBROKER_EXPORT ssize_t mb_pwrite(mb_session* session, int fd, const void* buffer, size_t count, off_t offset);
MAPBROKER_EXPORT int mb_fstat(mb_session* session, int fd, struct stat* stat);
// EPERM for all but the file's owner and root; the memory lasts until nobody has it open or mapped (F6).
MAPBROKER_EXPORT int mb_unlink(mb_session* session, const char* name);

// shm_open(3) and shm_unlink(3) (F7): the ram files under "ram:/dev/shm/". `name` is a slash and a name without
// slashes.
MAPBROKER_EXPORT int mb_shm_open(mb_session* session, const char* name, int flags, mode_t mode);
MAPBROKER_EXPORT int mb_shm_unlink(mb_session* session, const char* name);

// System V shared memory (V): shmget(2), shmat(2), shmdt(2) and shmctl(2) with IPC_STAT, IPC_SET and IPC_RMID, their
// arguments and errors. `addr` of mb_shmat must be NULL, SHM_REMAP is EINVAL. What mb_shmat returned may also be given
// to mb_munmap.
MAPBROKER_EXPORT int mb_shmget(mb_session* session, key_t key, size_t size, int flags);
MAPBROKER_EXPORT void* mb_shmat(mb_session* session, int id, const void* addr, int flags);
MAPBROKER_EXPORT int mb_shmdt(mb_session* session, const void* addr);
MAPBROKER_EXPORT int mb_shmctl(mb_session* session, int id, int command, struct shmid_ds* buffer);

// Devices that this process drives (D12). The operations are the kernel's; NULL is one that the driver does not have:
// without mmap the device cannot be mapped (M8), without get_unmapped_area not directly, without read not as a copy
// (M10). They are called one at a time on a thread of the library with `context`, and fail with a negative errno: that
// is the caller's answer, but for -ENOSYS of the first two: then a private mapping becomes a copy if the device has
// MB_MAP_COPY, and anything else is ENODEV (S10, S11). Offsets and lengths are in bytes.
enum { MB_MAP_COPY = 1, MB_MAP_DIRECT = 2, MB_READ_MAP = 4, MB_WRITE_MAP = 8, MB_EXEC_MAP = 16 };
struct mb_driver_operations {
  // Where the range of the device lies: bytes from the start of the driver's memory, a multiple of the page size.
  int64_t (*get_unmapped_area)(void* context, uint64_t offset, uint64_t length, int prot, int flags);
  // A mapping of that memory is about to stand: 0.
  int (*mmap)(void* context, uint64_t offset, uint64_t length, int prot, int flags, uint64_t memory_offset);
  // How many bytes of the device are in `buffer` now, 0 at its end.
  ssize_t (*read)(void* context, uint64_t offset, void* buffer, size_t count);
  // P7: classic: nobody maps any more what one mmap stood for; modern: one mapping of it has gone.
  void (*close)(void* context, uint64_t memory_offset, uint64_t length);
};
struct mb_driver_options {
  const char* name;       // "dev:/" and a name without slashes
  int block;              // a block device; otherwise a character device
  mode_t mode;            // permission bits
  unsigned capabilities;  // MB_*; 0: readable, writable, not executable and direct only
  uint64_t memory;        // bytes of the pool that the device needs, one zeroed run; 0: none
  uint64_t size;          // bytes that can be read from it; 0: as many as `memory`
};
typedef struct mb_driver mb_driver;

// Registers the device, or takes over one of this user whose driver has gone, with its memory as it is. `options` and
// `operations` are copied. NULL with errno: EEXIST, EBUSY (it has a driver), EPERM, EINVAL, ENOMEM.
MAPBROKER_EXPORT mb_driver* mb_driver_register(mb_session* session, const struct mb_driver_options* options,
                                               const struct mb_driver_operations* operations, void* context);
// The device's memory, writable; NULL if it has none.
MAPBROKER_EXPORT void* mb_driver_memory(mb_driver* driver);
// Blocks until there is no way to go on; a restart of the daemon is none, since the driver registers again by itself: 0
// after mb_driver_unregister, -1 with errno otherwise.
MAPBROKER_EXPORT int mb_driver_wait(mb_driver* driver);
// The device goes; who has it open or mapped keeps the memory. Before mb_disconnect. NULL is ignored.
MAPBROKER_EXPORT void mb_driver_unregister(mb_driver* driver);

// execve(2) out of the pool (X4): the program at `path`, linked -static-pie, whose text is shared with all processes
// that run it so, and whose data and stack are mappings of this process; with the daemon that MAPBROKER_RUNTIME_DIR
// names, else /run/mapbroker. Everything else that this process has mapped goes. Returns only on failure, -1 with
// errno: ENOEXEC (mb_strerror has the reason), EACCES, ENOENT, E2BIG (more than half of the stack), ENOMEM,
// ECONNREFUSED. Not for a child of fork or vfork: start `mapctl exec` by posix_spawn there.
MAPBROKER_EXPORT int mb_exec(const char* path, char* const argv[], char* const envp[]);

// The sentence that explains the last failed call of this thread: the rule and what to do instead. Never NULL; valid
// until the thread's next call.
MAPBROKER_EXPORT const char* mb_strerror(void);

#ifdef __cplusplus
}
#endif

#endif  // MAPBROKER_MAPBROKER_H_
