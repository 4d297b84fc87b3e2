// A device that this process drives (rule D12): its operations are functions here, its memory is a run of the pool.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "mapbroker/client.h"
#include "mapbroker/export.h"

namespace mapbroker {

// How a device may be mapped (the kernel's NOMMU_MAP_* and BDI_CAP_*).
inline constexpr unsigned kMapCopy = 1, kMapDirect = 2, kReadMap = 4, kWriteMap = 8, kExecMap = 16;

struct DriverOptions {
  std::string name;    // "dev:/" and a name without slashes
  bool block = false;  // a block device; otherwise a character device
  mode_t mode = 0600;  // permission bits
  // By default readable, writable, not executable and direct only.
  std::optional<unsigned> capabilities = std::nullopt;
  // Bytes of the pool that the device needs, one zeroed run; 0: none.
  std::uint64_t memory = 0;
  // Bytes that can be read from it; 0: as many as `memory`.
  std::uint64_t size = 0;
  // What `mapctl device info` shows; width, height, stride and format let `mapctl screenshot` read a frame buffer.
  std::map<std::string, std::string> properties = {};
};

// What is to be mapped.
struct DriverRequest {
  std::uint64_t offset = 0;  // bytes from the start of the device
  std::uint64_t length = 0;  // bytes, whole pages
  int prot = 0;              // PROT_*
  int flags = 0;             // MAP_*
};

// A part of the driver's memory.
struct DriverArea {
  std::uint64_t offset = 0;  // bytes from the start of the memory
  std::uint64_t length = 0;  // bytes
};

// The operations that a driver has, in the kernel's sense; an empty one it does not have. They are called one at a time
// on a thread of the library, and have the daemon's deadline (5 s unless configured otherwise) to answer. A failure is
// the caller's answer: make it with DriverError. ENOSYS means that the driver does not want to handle the call: a
// private mapping becomes a copy if the device has kMapCopy, anything else is ENODEV (S10, S11).
struct DriverOperations {
  // Where the range lies, in bytes from the start of the driver's memory, a multiple of the page size. Without it
  // nothing is mapped directly.
  std::function<absl::StatusOr<std::uint64_t>(const DriverRequest&)> get_unmapped_area;
  // A mapping of the area is about to stand. Without it the device cannot be mapped.
  std::function<absl::Status(const DriverRequest&, const DriverArea&)> mmap;
  // Bytes of the device from `offset` into `into`: how many, 0 at the end. Without it nothing is copied.
  std::function<absl::StatusOr<std::size_t>(std::uint64_t offset, std::span<std::byte> into)> read;
  // P7: under classic nobody maps any more what one call of mmap stood for; under modern one mapping of it has gone.
  std::function<void(const DriverArea&)> close;
};

// A failure with an errno, 1 to 4095, and a sentence for the caller.
MAPBROKER_EXPORT absl::Status DriverError(int error, const std::string& sentence = "");

// A registered device. When the daemon is restarted it registers with the next by itself, within reconnect_timeout:
// memory and mappings stand, and `close` is called for what went meanwhile. Move-only. Thread-safe, but not to be
// destroyed by one of its own operations. It keeps its client's session open.
class MAPBROKER_EXPORT Driver {
 public:
  // Registers the device, or takes over one of this user whose driver has gone, with its memory as it is. EEXIST, EBUSY
  // (it has a driver), EPERM, EACCES, EINVAL, ENOMEM.
  static absl::StatusOr<Driver> Register(Client& client, const DriverOptions& options, DriverOperations operations);

  Driver(Driver&& other) noexcept;
  Driver& operator=(Driver&& other) noexcept;
  // As Unregister.
  ~Driver();

  // The device's memory, writable; empty if it has none.
  std::span<std::byte> memory() const;
  // What was mapped already when the device was taken over.
  const std::vector<DriverArea>& areas() const;
  // Blocks until there is no way to go on, and says why: EPROTO, ECONNRESET (the daemon was stopped, or did not come
  // back), and what Register may say. OK once Unregister was called.
  absl::Status Wait();
  // The device goes, and no operation is called any more; who has it open or mapped keeps the memory.
  void Unregister();

 private:
  struct Impl;
  explicit Driver(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace mapbroker
