// Whatever a peer sends on the handoff socket: one packet, with up to three descriptors.
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "mapbroker/v1/handoff.pb.h"
#include "proto/handoff_packet.h"

namespace {

void Demand(bool holds) {
  if (!holds) std::abort();
}

void Send(int socket, int descriptor, std::size_t descriptors, const std::uint8_t* data, std::size_t size) {
  iovec bytes{const_cast<std::uint8_t*>(data), size};
  alignas(cmsghdr) char control[CMSG_SPACE(3 * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  if (descriptors > 0) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(descriptors * sizeof(int));
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(descriptors * sizeof(int));
    for (std::size_t i = 0; i < descriptors; ++i) {
      std::memcpy(CMSG_DATA(header) + i * sizeof(int), &descriptor, sizeof(int));
    }
  }
  Demand(sendmsg(socket, &message, MSG_NOSIGNAL) == static_cast<ssize_t>(size));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 1) return 0;
  static const int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
  int sockets[2];
  Demand(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, sockets) == 0);
  const std::size_t descriptors = data[0] % 4;
  Send(sockets[0], null, descriptors, data + 1, size - 1);

  // The lowest free number: what is received and not kept must have been closed.
  const int before = dup(null);
  close(before);
  {
    mapbroker::v1::HandoffRequest request;
    const mapbroker::HandoffPacket packet = mapbroker::ReceiveHandoffPacket(sockets[1], request);
    constexpr int kErrors[] = {0, ECONNRESET, EMSGSIZE, EBADMSG};
    Demand(std::find(std::begin(kErrors), std::end(kErrors), packet.error) != std::end(kErrors));
    if (packet.error != 0) Demand(!packet.fd);
    if (descriptors > 1) Demand(packet.error != 0);
    if (packet.error == 0 && size > 1) Demand(bool(packet.fd) == (descriptors == 1));
  }
  const int after = dup(null);
  close(after);
  Demand(before == after);
  close(sockets[0]);
  close(sockets[1]);
  return 0;
}
