// D12: a device whose operations another process, its driver, carries out.
//
// What is asked of a driver has a deadline, and what it answers is checked: a slow, dead or lying driver fails the
// calls on its own device and disturbs nobody else.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "daemon/backing/device.h"
#include "shm_backend/mutex.h"

namespace mapbroker::backing {

// Calls that may wait for one driver at a time.
inline constexpr std::size_t kMaxDriverCalls = 64;

// Which operations a driver has. Without mmap its device cannot be mapped (M8), without get_unmapped_area not directly,
// without read not as a copy (M10).
struct DriverOperations {
  bool get_unmapped_area = false;
  bool mmap = false;
  bool read = false;
};

// What a driver registers.
struct DriverSpec {
  std::string name;    // "dev:/" and a name without slashes
  bool block = false;  // a block device; else a character device
  Credentials owner;   // the driver's process
  mode_t mode = 0600;  // permission bits
  nommu::Capabilities capabilities = 0;
  DriverOperations operations;
  std::uint64_t memory = 0;  // bytes of the pool that the device has; 0 for none
  std::uint64_t size = 0;    // bytes that can be read from it
  std::map<std::string, std::string> properties;
};

// What is asked of a driver, or told (close).
struct DriverCall {
  enum class Operation { kGetUnmappedArea, kMmap, kRead, kClose };
  std::uint64_t id = 0;  // of the answer; 0 where none is expected
  Operation operation = Operation::kRead;
  std::uint64_t offset = 0;         // bytes from the start of the device; not for close
  std::uint64_t length = 0;         // bytes
  std::uint64_t memory_offset = 0;  // bytes from the start of the driver's memory; for mmap and close
  std::uint32_t prot = 0, flags = 0;
  std::chrono::milliseconds deadline{0};
};

struct DriverAnswer {
  absl::Status status;
  std::uint64_t memory_offset = 0;  // of get_unmapped_area
  std::string bytes;                // of read
};

// The way to a driver's process. Thread-safe.
class DriverChannel {
 public:
  virtual ~DriverChannel() = default;
  // Never blocks; calls arrive in order. A driver that takes too few of them is cut off.
  virtual void Send(const DriverCall& call) = 0;
};

// A part of the driver's memory that is mapped: its first byte, from the start of that memory, and its length.
using DriverArea = std::pair<std::uint64_t, std::uint64_t>;

class DriverDevice final : public Device {
 public:
  // ENOMEM. `deadline`: for each call.
  static absl::StatusOr<std::shared_ptr<DriverDevice>> Make(const DriverSpec& spec,
                                                            const DeviceEnvironment& environment,
                                                            std::chrono::milliseconds deadline);
  // One that was recorded, without its driver, which is expected to register again: for as long as a deadline, calls
  // wait for it. EINVAL: the record contradicts itself.
  static absl::StatusOr<std::shared_ptr<DriverDevice>> Restore(const record::Device& recorded,
                                                               const DeviceEnvironment& environment,
                                                               std::chrono::milliseconds deadline);

  // The process behind the channel is the driver from now on, with what `spec` says of operations, capabilities, size
  // and properties. What is mapped already; whatever goes from then on is told by the channel. EBUSY if it has a
  // driver; EINVAL if the memory is to be of another size.
  absl::StatusOr<std::vector<DriverArea>> Connect(const DriverSpec& spec, std::shared_ptr<DriverChannel> channel);
  // The process behind the channel is not the driver any more: calls that wait for it fail with EIO.
  void Disconnect(const DriverChannel& channel);
  // EPROTO if nothing with this number was ever asked; answers that come too late are ignored.
  absl::Status Answer(std::uint64_t id, DriverAnswer answer);

  // The driver's memory as a file of its own, so that mapping it is neither asked of the driver nor shared with its
  // device's mappings; null if it has none. It keeps the device, of which `stat` speaks.
  static std::shared_ptr<Backing> MemoryFile(std::shared_ptr<DriverDevice> device, const FileStat& stat);

  nommu::File::Kind file_kind() const override;
  nommu::Capabilities capabilities() const override;
  // ENXIO while it has no driver.
  absl::Status MayOpen(const Credentials& who, unsigned wanted) const override;
  std::uint64_t size() const override;
  // Refusals: those of the driver; ETIMEDOUT, EIO (it has gone), EPROTO (it answered nonsense), EBUSY (too many calls).
  absl::StatusOr<std::size_t> Read(std::uint64_t offset, std::span<std::byte> into) const override;
  absl::StatusOr<nommu::PoolAddress> GetUnmappedArea(const nommu::MapRequest& request) override;
  void Close(nommu::PoolAddress start, std::uint64_t length, bool last) override;
  bool Restored(nommu::PoolAddress start, std::uint64_t length) override;
  void Record(record::Device& to) const override;
  std::map<std::string, std::string> Properties() const override;

 private:
  struct Waiting {
    bool done = false;
    DriverAnswer answer;
    shm::CondVar answered;
  };
  // What the present driver said when it registered.
  struct Driver {
    std::shared_ptr<DriverChannel> channel;  // null: there is none
    DriverSpec spec;
  };

  class MemoryFileOf;

  DriverDevice(std::unique_ptr<DeviceMemory> memory, const DriverSpec& spec, std::chrono::milliseconds deadline);
  absl::StatusOr<DriverAnswer> Ask(DriverCall call) const;
  bool IsExpected() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::uint64_t room() const { return memory_ == nullptr ? 0 : memory_->bytes().size(); }

  const std::unique_ptr<DeviceMemory> memory_;  // null: none
  const std::chrono::milliseconds deadline_;
  std::chrono::steady_clock::time_point expected_until_;  // set before anybody else has it
  mutable shm::Mutex mutex_;
  mutable shm::CondVar connected_;
  Driver driver_ ABSL_GUARDED_BY(mutex_);
  mutable std::uint64_t last_id_ ABSL_GUARDED_BY(mutex_) = 0;
  mutable std::map<std::uint64_t, Waiting*> waiting_ ABSL_GUARDED_BY(mutex_);
  std::map<DriverArea, std::uint64_t> areas_ ABSL_GUARDED_BY(mutex_);  // how many mappings' regions are there
};

}  // namespace mapbroker::backing
