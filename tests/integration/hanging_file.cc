#include "tests/integration/hanging_file.h"

#include <fcntl.h>
#include <linux/fuse.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>

namespace mapbroker::testing {
namespace {

constexpr std::uint64_t kRoot = 1, kFile = 2;

fuse_attr AttributesOf(std::uint64_t node) {
  fuse_attr attributes{};
  attributes.ino = node;
  attributes.nlink = 1;
  attributes.mode = node == kRoot ? S_IFDIR | 0755u : S_IFREG | 0644u;
  attributes.size = node == kRoot ? 0 : 8192;
  return attributes;
}

template <typename Body>
void Reply(int device, std::uint64_t unique, Body body) {
  fuse_out_header header{};
  header.len = sizeof(header) + sizeof(body);
  header.unique = unique;
  const std::array<iovec, 2> parts{iovec{&header, sizeof(header)}, iovec{&body, sizeof(body)}};
  if (writev(device, parts.data(), parts.size()) < 0) return;  // it was given up meanwhile
}

// For ever. Of a forked process, which may use nothing but system calls.
[[noreturn]] void Serve(int device, pid_t victim) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  alarm(300);  // longer than any test may take
  const auto is_victims = [&](std::uint32_t thread) {
    std::array<char, 64> path;
    std::snprintf(path.data(), path.size(), "/proc/%d/task/%u", victim, thread);
    return access(path.data(), F_OK) == 0;
  };
  alignas(fuse_in_header) static std::array<char, FUSE_MIN_READ_BUFFER + 65536> request;
  for (;;) {
    const ssize_t size = read(device, request.data(), request.size());
    if (size < 0 && errno == ENODEV) _exit(0);
    if (size < static_cast<ssize_t>(sizeof(fuse_in_header))) continue;
    fuse_in_header header;
    std::memcpy(&header, request.data(), sizeof(header));
    switch (header.opcode) {
      case FUSE_INIT: {
        fuse_init_out answer{};
        answer.major = FUSE_KERNEL_VERSION;
        answer.minor = 31;
        answer.max_write = 4096;
        Reply(device, header.unique, answer);
        break;
      }
      case FUSE_LOOKUP: {
        fuse_entry_out answer{};
        answer.nodeid = kFile;
        answer.entry_valid = 3600;
        answer.attr = AttributesOf(kFile);
        Reply(device, header.unique, answer);
        break;
      }
      case FUSE_OPEN: {
        fuse_open_out answer{};
        answer.fh = 1;
        Reply(device, header.unique, answer);
        break;
      }
      case FUSE_GETATTR:
        if (header.nodeid == kRoot) {
          fuse_attr_out answer{};
          answer.attr_valid = 3600;
          answer.attr = AttributesOf(kRoot);
          Reply(device, header.unique, answer);
        }
        break;
      case FUSE_FLUSH: {
        if (is_victims(header.pid)) break;
        fuse_out_header answer{.len = sizeof(answer), .error = 0, .unique = header.unique};
        if (write(device, &answer, sizeof(answer)) < 0) break;  // it was given up meanwhile
        break;
      }
      default:
        break;  // for ever
    }
  }
}

}  // namespace

HangingFile::HangingFile(pid_t victim) {
  const shm::UniqueFd device(open("/dev/fuse", O_RDWR | O_CLOEXEC));
  const std::string options = "fd=" + std::to_string(device.get()) + ",rootmode=40000,user_id=0,group_id=0,allow_other";
  if (!device || mount("hanging", dir_.Path("").c_str(), "fuse", MS_NOSUID | MS_NODEV, options.c_str()) != 0) return;
  mounted_ = true;
  server_ = fork();
  if (server_ == 0) Serve(device.get(), victim);
  if (server_ > 0) fd_.reset(open(dir_.Path("file").c_str(), O_RDONLY | O_CLOEXEC));
}

HangingFile::~HangingFile() {
  if (!mounted_) return;
  // With the server the connection ends, and all who wait go on.
  if (server_ > 0) {
    kill(server_, SIGKILL);
    waitpid(server_, nullptr, 0);
  }
  umount2(dir_.Path("").c_str(), MNT_FORCE | MNT_DETACH);
}

}  // namespace mapbroker::testing
