// Packets of the handoff socket: one message of handoff.proto and at most one descriptor each.
#pragma once

#include <google/protobuf/message_lite.h>

#include <cstddef>
#include <vector>

#include "shm_backend/unique_fd.h"

namespace mapbroker {

// Bytes; far more than any message of handoff.proto needs, so a longer packet is a mistake or an attack.
inline constexpr std::size_t kMaxHandoffPacket = 4096;

// The range of protocol versions this source speaks, both inclusive.
inline constexpr unsigned kMinProtocolVersion = 1;
inline constexpr unsigned kMaxProtocolVersion = 1;

// Name of the gRPC metadata that carries the session's token in hexadecimal.
inline constexpr char kSessionMetadata[] = "mapbroker-session";

// Name of the gRPC metadata by which a call that changes mappings can be made again after the daemon was lost: its
// number in the session, not 0, never used for another call; the number below which all calls are answered; and "again"
// where it may have been made before. Decimal, separated by spaces. A call that was made is answered as it was then.
inline constexpr char kRequestMetadata[] = "mapbroker-request";

// File names of the sockets in the runtime directory.
inline constexpr char kGrpcSocketName[] = "mapbroker.sock";
inline constexpr char kHandoffSocketName[] = "handoff.sock";

// Sends `message`, and `fd` unless it is -1 (it stays the caller's). 0 or an errno; never raises SIGPIPE.
int SendHandoffPacket(int socket, const google::protobuf::MessageLite& message, int fd = -1);

struct HandoffPacket {
  // 0; ECONNRESET: the peer closed; EMSGSIZE: too long, or its descriptors did not fit; EBADMSG: no such message or
  // more than one descriptor; else what recvmsg(2) said (EAGAIN on a non-blocking socket).
  int error = 0;
  // The descriptor that came with it, if one did; close-on-exec.
  shm::UniqueFd fd;
  // Those that came where they must not. For the caller to close, since that may wait for a hostile file server.
  std::vector<shm::UniqueFd> unwanted;
};

// Receives one packet into `message`.
HandoffPacket ReceiveHandoffPacket(int socket, google::protobuf::MessageLite& message);

}  // namespace mapbroker
