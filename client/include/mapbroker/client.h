// A session with mapbrokerd: the way to map memory of its pool.
#pragma once

#include <sys/mman.h>
#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "mapbroker/device.h"
#include "mapbroker/export.h"
#include "mapbroker/file.h"
#include "mapbroker/inspector.h"
#include "mapbroker/mapping.h"

namespace mapbroker {

class Driver;
class Session;  // the library's own

// How granted memory appears in this process.
enum class Attach {
  // Each mapping by itself: only the granted pages, read-only unless PROT_WRITE. (On a pool of huge pages the
  // enclosing huge pages are attached.)
  kRegion,
  // The whole pool once, at the base address that the daemon names to all its clients: a pointer into the pool is
  // equal in all processes that attach this way. The memory is writable unless the session is read-only, whatever the
  // mapping's protection.
  kWholePool,
};

struct ConnectOptions {
  // Directory of the daemon's sockets. Empty: MAPBROKER_RUNTIME_DIR if set, else /run/mapbroker.
  std::string runtime_dir = {};
  // Ask for a session that can never write: requests with PROT_WRITE are refused with EACCES.
  bool read_only = false;
  Attach attach = Attach::kRegion;
  // What Client::Token said. In another process than the one that asked: the session uses the same address space (X2),
  // with its mappings; what one user maps or unmaps, all have mapped or unmapped, and it lasts until its last user has
  // gone. Best with Attach::kWholePool, since what the others have mapped is found by pool address. In the same
  // process, after the connection was lost: the same session.
  std::string token = {};
  // With the token, in a program that its process has executed since: an empty address space (X4), and the daemon's
  // files that were open, under their numbers (Client::FileOf). What was mapped before is unmapped.
  bool executed = false;
  // How long a call waits for a daemon that was restarted, from when it was lost. Until then the memory that is mapped
  // is used as before. 0: not at all.
  std::chrono::milliseconds reconnect_timeout{10'000};
};

// The arguments of mmap(2), with its names and units.
struct MapOptions {
  // Bytes; 0 is EINVAL (M5).
  std::uint64_t length = 0;
  // PROT_READ | PROT_WRITE | PROT_EXEC, or PROT_NONE.
  int prot = PROT_READ;
  // Exactly one of MAP_PRIVATE and MAP_SHARED (M4); MAP_ANONYMOUS; the flags that change nothing (S8a).
  int flags = MAP_PRIVATE;
  // An open descriptor, ignored with MAP_ANONYMOUS. It is only borrowed: the caller may close it when Map returns.
  int fd = -1;
  // Instead of `fd`; must belong to the same client. Only borrowed.
  const File* file = nullptr;
  // Bytes, a multiple of the page size (M1).
  std::uint64_t offset = 0;
  // A wanted pool address; must be 0 under the profile classic (M3), is ignored under modern (P1).
  std::uint64_t address = 0;
};

// A System V segment, as shmctl(IPC_STAT) has it. Times are in seconds since the epoch, 0 for never.
struct ShmSegment {
  int id = 0;
  int key = 0;             // 0: IPC_PRIVATE
  std::uint64_t size = 0;  // bytes, as asked for
  uid_t uid = 0, cuid = 0;
  gid_t gid = 0, cgid = 0;
  mode_t mode = 0;                // permission bits
  std::uint64_t nattch = 0;       // mappings
  bool marked_destroyed = false;  // goes with its last detach
  pid_t cpid = 0, lpid = 0;
  std::int64_t atime = 0, dtime = 0, ctime = 0;
};

// When the daemon is killed or restarted, calls connect again by themselves and go on: those that change mappings are
// carried out exactly once, those that only ask are asked again, and of others that were under way it is not known
// whether they were done: ECONNRESET. Where no daemon comes back in time, or one that does not know the session, calls
// fail with ECONNRESET or ESRCH.
//
// One session. Thread-safe. The session ends, and everything in it is unmapped, when the Client and all its mappings
// are gone or the process ends, however it ends.
class MAPBROKER_EXPORT Client {
 public:
  // Fails with ENOENT or ECONNREFUSED if no daemon serves the directory, EACCES if its sockets may not be used or the
  // user is not allowed, EAGAIN if he has as many sessions or connections as he may,
  // EPROTONOSUPPORT if daemon and library have no protocol version in common.
  static absl::StatusOr<Client> Connect(const ConnectOptions& options = {});

  Client(Client&& other) noexcept;
  Client& operator=(Client&& other) noexcept;
  ~Client();

  // Maps and attaches. Errors are those of rules M1 to M22; ENOMEM also where this process has no room to attach.
  // Blocks while the daemon reads the range.
  absl::StatusOr<Mapping> Map(const MapOptions& options);

  // The calls by pool address, for programs written for a machine without an MMU, which keep addresses and not objects.
  // They say nothing of attachments and so are meant for sessions that attach the whole pool.
  //
  // munmap(2): EINVAL if no mapping of this session fits (U1, P4). Lengths are in bytes.
  absl::Status Munmap(std::uint64_t address, std::uint64_t length);
  // mremap(2): the new length in bytes, whole pages; the mapping stays where it is. Refusals: U3.
  absl::StatusOr<std::uint64_t> Mremap(std::uint64_t address, std::uint64_t old_length, std::uint64_t new_length,
                                       int flags = 0, std::uint64_t new_address = 0);
  // Where the whole pool is attached: the byte at pool address 0. Null for Attach::kRegion.
  std::byte* pool_base() const;

  // Calls `row` for every region of the pool (pid 0, L1) or every mapping of one process (L2) in address order, until
  // it returns false. ESRCH if the process has no session.
  absl::Status ListMappings(pid_t pid, const std::function<bool(const MappingRow&)>& row);

  // The pool in numbers. Inspector has more.
  absl::StatusOr<PoolStatistics> Statistics();

  // The daemon's own files: ram files "ram:/NAME" (F), devices "dev:/NAME" and files of images "mnt:/MOUNT/PATH" (D),
  // of which only ram files are created and unlinked here. `flags` as for open(2): O_ACCMODE, O_CREAT, O_EXCL, O_TRUNC,
  // O_APPEND, O_PATH. `mode`: permission bits of a new file; no umask is applied. ENOENT, EEXIST, EACCES, EINVAL,
  // ENAMETOOLONG, EMFILE; with O_TRUNC also ETXTBSY; EROFS for files of images.
  absl::StatusOr<File> Open(const std::string& name, int flags, mode_t mode = 0600);
  absl::StatusOr<FileStat> Stat(const std::string& name);
  // ENOENT; EPERM for all but its owner and root. The memory stays until the last mapping and descriptor go (F6).
  absl::Status Unlink(const std::string& name);
  // Calls `file` for every file whose name begins with `prefix`, by name, until it returns false.
  absl::Status ListFiles(const std::string& prefix, const std::function<bool(const FileStat&)>& file);

  // System V shared memory (V): shmget(2), shmat(2) and shmctl(2) with their arguments and errors. Unmapping what Shmat
  // returns detaches.
  absl::StatusOr<int> Shmget(int key, std::uint64_t size, int flags);
  absl::StatusOr<Mapping> Shmat(int id, int flags = 0, std::uint64_t address = 0);
  // shmdt(2) by pool address, for those who keep addresses.
  absl::Status Shmdt(std::uint64_t address);
  absl::StatusOr<ShmSegment> ShmStat(int id);
  absl::Status ShmSet(int id, uid_t uid, gid_t gid, mode_t mode);
  absl::Status ShmRemove(int id);
  absl::Status ListShmSegments(const std::function<bool(const ShmSegment&)>& segment);

  // "classic" or "modern".
  std::string profile() const;
  // Bytes.
  std::uint64_t page_size() const;

  // Devices (D) are opened and mapped by their names with Open, images are read and mapped by "mnt:/MOUNT/PATH".
  //
  // EEXIST, EINVAL (name, kind, options), ENOMEM, ENOSPC (the contents do not fit), EPERM (kind mem).
  absl::Status CreateDevice(const DeviceOptions& options);
  // Who has it open or mapped keeps it. ENOENT; EPERM for all but its owner and root.
  absl::Status RemoveDevice(const std::string& name);
  absl::StatusOr<DeviceInfo> GetDevice(const std::string& name);
  // Calls `device` for every device, by name, until it returns false.
  absl::Status ListDevices(const std::function<bool(const DeviceInfo&)>& device);
  // Sets a range of a flash to erased, in bytes: multiples of its erase size. Programming is File::Pwrite. EBUSY where
  // it is mapped directly, EROFS, EINVAL, ENOSPC, ENOTTY.
  absl::Status EraseFlash(const std::string& name, std::uint64_t offset, std::uint64_t length);
  // Mounts the romfs or cramfs image on a device as "mnt:/NAME"; `type` empty: whichever it is. EEXIST, EINVAL (no
  // image), EIO (a broken one).
  absl::Status Mount(const std::string& name, const std::string& device, const std::string& type = "");
  absl::Status Unmount(const std::string& name);

  // A secret: whoever has it can use this session's address space and act as this session. Hand it over explicitly, by
  // a pipe or the environment. Worth nothing once the session has ended.
  std::string Token() const;
  // The file that is open in this session under a number that File::number said.
  File FileOf(int number);

  // ptrace(2) of processes with sessions (X5), for who may trace them: EPERM, ESRCH.
  //
  // Marks a process's sessions (0: this process's) as traced: from then on its private mappings are copies of its own
  // (S2). A process under the kernel's ptrace counts as traced anyway.
  absl::Status SetTraced(pid_t pid, bool traced);
  // Reads or writes memory of a process at a pool address; how many bytes, fewer where its mapping ends. EIO where it
  // has nothing mapped or the mapping's protection forbids it; memory that can have no other user may always be
  // written.
  absl::StatusOr<std::size_t> Peek(pid_t pid, std::uint64_t address, std::span<std::byte> into);
  absl::StatusOr<std::size_t> Poke(pid_t pid, std::uint64_t address, std::span<const std::byte> from);

  // For the library: a client of a session that is open already.
  static Client Of(std::shared_ptr<Session> session);

 private:
  struct Impl;
  explicit Client(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
  friend struct Mapping::Impl;
  friend class Driver;
  friend class Inspector;
};

}  // namespace mapbroker
