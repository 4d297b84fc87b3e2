// A process of another user that has a session and tries to do with the pool's descriptor what it must not: one line an
// attempt, its name and what came of it, "0" or the errno's name.
//
//   stranger HANDOFF_SOCKET USER read-only|read-write DAEMON_PID POOL_PATH
#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iostream>
#include <string>

#include "mapbroker/v1/handoff.pb.h"
#include "proto/handoff_packet.h"
#include "shm_backend/unique_fd.h"
#include "tests/integration/raw_socket.h"

namespace mapbroker::testing {
namespace {

constexpr std::size_t kPage = 4096;

void Try(const std::string& name, const std::function<bool()>& attempt) {
  errno = 0;
  const bool done = attempt();
  std::cout << name << ' ' << (done ? "0" : errno == 0 ? "?" : strerrorname_np(errno)) << std::endl;
}

bool Opens(const std::string& path, int flags) { return static_cast<bool>(shm::UniqueFd(open(path.c_str(), flags))); }

// As if another user had started it. Dumpable, or /proc/self would be root's and the attempts would fail for that.
bool Become(uid_t user) {
  return setgroups(0, nullptr) == 0 && setresgid(user, user, user) == 0 && setresuid(user, user, user) == 0 &&
         prctl(PR_SET_DUMPABLE, 1) == 0;
}

// The pool's descriptor, as a session gets it.
shm::UniqueFd PoolOf(int connection, bool read_only) {
  v1::HandoffRequest request;
  request.mutable_hello()->set_min_version(kMinProtocolVersion);
  request.mutable_hello()->set_max_version(kMaxProtocolVersion);
  request.mutable_hello()->set_read_only(read_only);
  v1::HandoffReply reply;
  if (SendHandoffPacket(connection, request) != 0) return {};
  HandoffPacket packet = ReceiveHandoffPacket(connection, reply);
  if (!reply.has_welcome()) std::cerr << reply.error().explanation() << '\n';
  return std::move(packet.fd);
}

void Attack(int pool, const std::string& daemon, const std::string& path) {
  const std::string self = "/proc/self/fd/" + std::to_string(pool);
  struct stat stat {};
  fstat(pool, &stat);
  Try("reopen-read-write", [&] { return Opens(self, O_RDWR); });
  Try("reopen-write", [&] { return Opens(self, O_WRONLY); });
  Try("reopen-truncate", [&] { return Opens(self, O_RDONLY | O_TRUNC); });
  Try("chmod", [&] { return fchmod(pool, 0777) == 0; });
  Try("chmod-by-proc", [&] { return chmod(self.c_str(), 0777) == 0; });
  Try("chown", [&] { return fchown(pool, getuid(), getgid()) == 0; });
  Try("set-flags", [&] { return fcntl(pool, F_SETFL, O_RDWR) == 0 && (fcntl(pool, F_GETFL) & O_ACCMODE) == O_RDWR; });
  Try("map-writable", [&] { return mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, pool, 0) != MAP_FAILED; });
  Try("pwrite", [&] { return pwrite(pool, "x", 1, 0) == 1; });
  Try("shrink", [&] { return ftruncate(pool, 0) == 0; });
  Try("grow", [&] { return ftruncate(pool, 2 * stat.st_size) == 0; });
  Try("allocate-beyond", [&] { return fallocate(pool, 0, stat.st_size, kPage) == 0; });
  Try("punch", [&] { return fallocate(pool, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kPage) == 0; });
  Try("zero-range", [&] { return fallocate(pool, FALLOC_FL_ZERO_RANGE, 0, kPage) == 0; });
  Try("collapse", [&] { return fallocate(pool, FALLOC_FL_COLLAPSE_RANGE, 0, kPage) == 0; });
  Try("seal-write", [&] { return fcntl(pool, F_ADD_SEALS, F_SEAL_WRITE) == 0; });
  Try("seal-future", [&] { return fcntl(pool, F_ADD_SEALS, F_SEAL_FUTURE_WRITE) == 0; });
  Try("lease", [&] { return fcntl(pool, F_SETLEASE, F_WRLCK) == 0; });

  void* const mapped = mmap(nullptr, kPage, PROT_READ, MAP_SHARED, pool, 0);
  Try("map-readable", [&] { return mapped != MAP_FAILED; });
  Try("protect-writable", [&] { return mprotect(mapped, kPage, PROT_READ | PROT_WRITE) == 0; });
  mprotect(mapped, kPage, PROT_READ);
  Try("advise-remove", [&] { return madvise(mapped, kPage, MADV_REMOVE) == 0; });
  Try("write-by-proc-mem", [&] {
    const shm::UniqueFd memory(open("/proc/self/mem", O_RDWR));
    return pwrite(memory.get(), "x", 1, static_cast<off_t>(reinterpret_cast<std::uintptr_t>(mapped))) == 1;
  });
  // Allowed, and changes nothing for anybody else.
  void* const own = mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE, pool, 0);
  if (own != MAP_FAILED) std::memset(own, 0xee, kPage);

  Try("daemon-fd-list", [&] {
    DIR* const dir = opendir((daemon + "/fd").c_str());
    if (dir != nullptr) closedir(dir);
    return dir != nullptr;
  });
  for (int fd = 0; fd < 64; ++fd) {
    if (Opens(daemon + "/fd/" + std::to_string(fd), O_RDONLY)) std::cout << "daemon-fd 0" << std::endl;
  }
  Try("daemon-mem", [&] { return Opens(daemon + "/mem", O_RDWR); });
  Try("daemon-map-files", [&] { return opendir((daemon + "/map_files").c_str()) != nullptr; });
  if (!path.empty()) {
    Try("path-read", [&] { return Opens(path, O_RDONLY); });
    Try("path-write", [&] { return Opens(path, O_RDWR); });
  }
}

}  // namespace
}  // namespace mapbroker::testing

int main(int argc, char** argv) {
  using namespace mapbroker;
  if (argc != 6) return 2;
  if (!testing::Become(static_cast<uid_t>(std::stoul(argv[2])))) return 1;
  const shm::UniqueFd connection = testing::ConnectTo(argv[1], SOCK_SEQPACKET, std::chrono::seconds(60));
  if (!connection) return 1;
  const shm::UniqueFd pool = testing::PoolOf(connection.get(), argv[3] == std::string("read-only"));
  if (!pool) return 1;
  testing::Attack(pool.get(), std::string("/proc/") + argv[4], argv[5]);
  return 0;
}
