// Peek and poke, both faces (X5).
#include <sys/types.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <span>

#include "client/src/c_session.h"
#include "client/src/client_impl.h"
#include "client/src/status.h"
#include "mapbroker/mapbroker.h"

namespace mapbroker {
namespace {

// Bytes that one call carries (ptrace.proto).
constexpr std::size_t kMaxTransfer = 64 << 10;

// The mapping ends exactly where the bytes before end.
bool EndsThere(const absl::Status& status, std::size_t done) { return done > 0 && ErrnoOf(status) == EIO; }

ssize_t Count(const absl::StatusOr<std::size_t>& count) {
  if (count.ok()) return static_cast<ssize_t>(*count);
  c_face::Fail(count.status());
  return -1;
}

}  // namespace

absl::Status Client::SetTraced(pid_t pid, bool traced) {
  v1::SetTracedRequest request;
  request.set_pid(pid);
  request.set_traced(traced);
  return impl_->session->stub().SetTraced(request);
}

absl::StatusOr<std::size_t> Client::Peek(pid_t pid, std::uint64_t address, std::span<std::byte> into) {
  v1::PeekRequest request;
  request.set_pid(pid);
  std::size_t done = 0, part = 0;
  do {
    request.set_address(address + done);
    request.set_length(std::min(into.size() - done, kMaxTransfer));
    const absl::StatusOr<v1::PeekResponse> response = impl_->session->stub().Peek(request);
    if (EndsThere(response.status(), done)) break;
    if (!response.ok()) return response.status();
    part = std::min<std::size_t>(response->data().size(), request.length());
    std::memcpy(into.data() + done, response->data().data(), part);
    done += part;
  } while (done < into.size() && part == request.length());
  return done;
}

absl::StatusOr<std::size_t> Client::Poke(pid_t pid, std::uint64_t address, std::span<const std::byte> from) {
  v1::PokeRequest request;
  request.set_pid(pid);
  std::size_t done = 0, part = 0;
  do {
    const std::size_t wanted = std::min(from.size() - done, kMaxTransfer);
    request.set_address(address + done);
    request.set_data(from.data() + done, wanted);
    const absl::StatusOr<v1::PokeResponse> response = impl_->session->stub().Poke(request);
    if (EndsThere(response.status(), done)) break;
    if (!response.ok()) return response.status();
    part = std::min<std::size_t>(response->length(), wanted);
    done += part;
  } while (done < from.size() && part == request.data().size());
  return done;
}

}  // namespace mapbroker

extern "C" {

int mb_set_traced(mb_session* session, pid_t pid, int traced) {
  const absl::Status status = session->client.SetTraced(pid, traced != 0);
  if (status.ok()) return 0;
  mapbroker::c_face::Fail(status);
  return -1;
}

ssize_t mb_peek(mb_session* session, pid_t pid, uint64_t pool_address, void* buffer, size_t count) {
  return mapbroker::Count(session->client.Peek(pid, pool_address, {static_cast<std::byte*>(buffer), count}));
}

ssize_t mb_poke(mb_session* session, pid_t pid, uint64_t pool_address, const void* buffer, size_t count) {
  return mapbroker::Count(session->client.Poke(pid, pool_address, {static_cast<const std::byte*>(buffer), count}));
}

}  // extern "C"
