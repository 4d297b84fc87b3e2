#include "proto/handoff_packet.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

namespace mapbroker {
namespace {

// Room for more descriptors than are allowed, so that a surplus is seen and closed instead of silently cut off.
constexpr int kReceivedDescriptors = 4;

}  // namespace

int SendHandoffPacket(int socket, const google::protobuf::MessageLite& message, int fd) {
  std::string bytes = message.SerializeAsString();
  iovec part{bytes.data(), bytes.size()};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  if (fd >= 0) {
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    cmsghdr* ancillary = CMSG_FIRSTHDR(&header);
    ancillary->cmsg_level = SOL_SOCKET;
    ancillary->cmsg_type = SCM_RIGHTS;
    ancillary->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(ancillary), &fd, sizeof(int));
  }
  ssize_t sent;
  do {
    sent = sendmsg(socket, &header, MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  return sent < 0 ? errno : 0;
}

HandoffPacket ReceiveHandoffPacket(int socket, google::protobuf::MessageLite& message) {
  std::array<char, kMaxHandoffPacket> bytes;
  iovec part{bytes.data(), bytes.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * kReceivedDescriptors)> control{};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  ssize_t received;
  do {
    received = recvmsg(socket, &header, MSG_CMSG_CLOEXEC);
  } while (received < 0 && errno == EINTR);

  HandoffPacket packet;
  if (received < 0) {
    packet.error = errno;
    return packet;
  }
  for (cmsghdr* ancillary = CMSG_FIRSTHDR(&header); ancillary != nullptr; ancillary = CMSG_NXTHDR(&header, ancillary)) {
    if (ancillary->cmsg_level != SOL_SOCKET || ancillary->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (ancillary->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(ancillary) + i * sizeof(int), sizeof(int));
      packet.unwanted.emplace_back(fd);
    }
  }
  // No message of handoff.proto serializes to nothing, so an empty packet is the end of the connection.
  if (received == 0) {
    packet.error = ECONNRESET;
  } else if ((header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) {
    packet.error = EMSGSIZE;
  } else if (packet.unwanted.size() > 1 || !message.ParseFromArray(bytes.data(), static_cast<int>(received))) {
    packet.error = EBADMSG;
  }
  if (packet.error == 0 && !packet.unwanted.empty()) {
    packet.fd = std::move(packet.unwanted.front());
    packet.unwanted.clear();
  }
  return packet;
}

}  // namespace mapbroker
