#include "tests/integration/hanging_file.h"

#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <cerrno>
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

}  // namespace

HangingFile::HangingFile() : device_(open("/dev/fuse", O_RDWR | O_CLOEXEC)) {
  const std::string options =
      "fd=" + std::to_string(device_.get()) + ",rootmode=40000,user_id=0,group_id=0,allow_other";
  if (!device_ || mount("hanging", dir_.Path("").c_str(), "fuse", MS_NOSUID | MS_NODEV, options.c_str()) != 0) return;
  mounted_ = true;
  server_ = std::thread([this] { Serve(); });
  fd_ = open(dir_.Path("file").c_str(), O_RDONLY | O_CLOEXEC);
}

HangingFile::~HangingFile() {
  if (!mounted_) return;
  // Ends the connection, and with it the server's read and all who wait.
  umount2(dir_.Path("").c_str(), MNT_FORCE | MNT_DETACH);
  if (fd_ >= 0) close(fd_);
  server_.join();
}

void HangingFile::Serve() const {
  alignas(fuse_in_header) std::array<char, FUSE_MIN_READ_BUFFER + 65536> request;
  for (;;) {
    const ssize_t size = read(device_.get(), request.data(), request.size());
    if (size < 0 && errno == ENODEV) return;
    if (size < static_cast<ssize_t>(sizeof(fuse_in_header))) continue;
    fuse_in_header header;
    std::memcpy(&header, request.data(), sizeof(header));
    switch (header.opcode) {
      case FUSE_INIT: {
        fuse_init_out answer{};
        answer.major = FUSE_KERNEL_VERSION;
        answer.minor = 31;
        answer.max_write = 4096;
        Reply(device_.get(), header.unique, answer);
        break;
      }
      case FUSE_LOOKUP: {
        fuse_entry_out answer{};
        answer.nodeid = kFile;
        answer.entry_valid = 3600;
        answer.attr = AttributesOf(kFile);
        Reply(device_.get(), header.unique, answer);
        break;
      }
      case FUSE_OPEN: {
        fuse_open_out answer{};
        answer.fh = 1;
        Reply(device_.get(), header.unique, answer);
        break;
      }
      case FUSE_GETATTR:
        if (header.nodeid == kRoot) {
          fuse_attr_out answer{};
          answer.attr_valid = 3600;
          answer.attr = AttributesOf(kRoot);
          Reply(device_.get(), header.unique, answer);
        }
        break;
      default:
        break;  // for ever
    }
  }
}

}  // namespace mapbroker::testing
