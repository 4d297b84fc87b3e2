// What the kinds of device have in common. A kind is a class of its own in a file of its own and one line in
// device_kinds.cc; docs/adding-a-backing.md shows how.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "daemon/account.h"
#include "daemon/backing/backing.h"
#include "daemon/credentials.h"
#include "daemon/nommu/profile.h"
#include "daemon/record.pb.h"
#include "shm_backend/page_pool.h"

namespace mapbroker::backing {

inline constexpr char kDeviceScheme[] = "dev:";

// What devices are made of; outlives them.
struct DeviceEnvironment {
  const nommu::Profile& profile;
  shm::PagePool& pages;
  std::span<std::byte> pool;     // where this process has the pool's bytes
  Accounts* accounts = nullptr;  // where owners are charged, null for nowhere
  Account* payer = nullptr;      // the owner's, of a device that is being made

  // For a device of this user's.
  DeviceEnvironment For(uid_t owner) const {
    DeviceEnvironment environment = *this;
    if (accounts != nullptr) environment.payer = &accounts->Of(owner);
    return environment;
  }
};

// What a device is to be.
struct DeviceSpec {
  std::string name;                            // "dev:/fb0"
  std::string kind;                            // "framebuffer"
  std::map<std::string, std::string> options;  // by name, as the kind defines them
  Credentials owner;
  mode_t mode = 0600;                           // permission bits
  std::shared_ptr<Backing> contents = nullptr;  // what a device with memory holds at first; null: blank
  // The memory of a device that a daemon before this one had: it is taken as it is.
  std::optional<shm::Run> restored = std::nullopt;
};

// Options of a DeviceSpec, read with their bounds; what is left over is unknown and so a mistake.
class DeviceOptions {
 public:
  explicit DeviceOptions(const DeviceSpec& spec) : kind_(spec.kind), left_(spec.options) {}

  // Bytes ("64K") or a number; EINVAL outside of least to most. `otherwise` where it is not given; without it the
  // option is required.
  absl::StatusOr<std::uint64_t> Number(const std::string& name, std::uint64_t least, std::uint64_t most,
                                       std::optional<std::uint64_t> otherwise = std::nullopt);
  absl::StatusOr<std::string> Choice(const std::string& name, const std::vector<std::string>& choices,
                                     const std::string& otherwise);
  // EINVAL names an option that the kind does not have.
  absl::Status Finish() const;

 private:
  const std::string kind_;
  std::map<std::string, std::string> left_;
};

// A device, open or not. Thread-safe. It lasts as long as it has a name, is open or is mapped.
class Device {
 public:
  virtual ~Device() = default;

  // How it may be mapped (D1 to D12).
  virtual nommu::File::Kind file_kind() const { return nommu::File::Kind::kMappable; }
  virtual nommu::Capabilities capabilities() const = 0;
  // Whether a copy of it may be shared (S3).
  virtual bool shareable() const { return true; }
  // EPERM or EACCES where more than the permission bits decides. `wanted`: Access bits.
  virtual absl::Status MayOpen(const Credentials& who, unsigned wanted) const;

  virtual std::uint64_t size() const = 0;  // bytes
  virtual absl::StatusOr<std::size_t> Read(std::uint64_t offset, std::span<std::byte> into) const = 0;
  virtual absl::Status Write(std::uint64_t offset, std::span<const std::byte> from);
  // As Backing's.
  virtual absl::StatusOr<nommu::PoolAddress> GetUnmappedArea(const nommu::MapRequest& request);
  virtual void Close(nommu::PoolAddress, std::uint64_t, bool /*last*/) {}
  virtual bool Restored(nommu::PoolAddress, std::uint64_t) { return false; }
  // Flash: sets the range to erased. ENOTTY for what is no flash.
  virtual absl::Status Erase(std::uint64_t offset, std::uint64_t length);
  // What `mapctl device info` shows beside name, size and owner.
  virtual std::map<std::string, std::string> Properties() const { return {}; }
  // What a daemon that is started later must know of it beside its DeviceSpec.
  virtual void Record(record::Device&) const {}
};

// A kind of device. `make` gets what the options left open; EINVAL, ENOMEM.
struct DeviceKind {
  const char* name;
  absl::StatusOr<std::shared_ptr<Device>> (*make)(const DeviceSpec& spec, const DeviceEnvironment& environment);
};

// All kinds; null if there is none of that name.
const DeviceKind* FindDeviceKind(const std::string& name);

// One contiguous run of the pool that a device owns. Who maps it directly keeps the device.
class DeviceMemory {
 public:
  // Whole pages for `size` bytes, zeroed; or of a device that is made again the run that it had. ENOMEM; EINVAL: the
  // run is not as long or not the pool's.
  static absl::StatusOr<std::unique_ptr<DeviceMemory>> Allocate(std::uint64_t size,
                                                                const std::optional<shm::Run>& restored,
                                                                const DeviceEnvironment& environment);
  // The same, filled with `blank` and then with the contents, unless it is made again. ENOSPC if those do not fit, and
  // as Backing::Read.
  static absl::StatusOr<std::unique_ptr<DeviceMemory>> Make(std::uint64_t size, const DeviceSpec& spec,
                                                            const DeviceEnvironment& environment,
                                                            std::byte blank = std::byte{0});
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  std::span<std::byte> bytes() const { return bytes_; }
  absl::StatusOr<std::size_t> Read(std::uint64_t offset, std::span<std::byte> into) const;
  // ENOSPC past its end.
  absl::Status CheckWrite(std::uint64_t offset, std::size_t count) const;
  // EINVAL past its end.
  absl::StatusOr<nommu::PoolAddress> AddressOf(std::uint64_t offset, std::uint64_t length) const;
  // Bytes from its start.
  std::uint64_t OffsetOf(nommu::PoolAddress address) const { return address - run_.first * shm::kPageSize; }
  bool Contains(nommu::PoolAddress start, std::uint64_t length) const;
  void Record(record::Device& to) const;

 private:
  DeviceMemory(shm::Run run, std::uint64_t size, const DeviceEnvironment& environment, Charge charge);

  const Charge charge_;
  const shm::Run run_;
  shm::PagePool& pages_;
  const std::span<std::byte> bytes_;  // as many as were asked for
  const std::uint64_t room_;          // bytes of the whole pages
};

// A device that is its memory and nothing else: read, written and mapped as it lies.
class MemoryDevice : public Device {
 public:
  explicit MemoryDevice(std::unique_ptr<DeviceMemory> memory) : memory_(std::move(memory)) {}

  std::uint64_t size() const override { return memory_->bytes().size(); }
  absl::StatusOr<std::size_t> Read(std::uint64_t offset, std::span<std::byte> into) const override {
    return memory_->Read(offset, into);
  }
  absl::Status Write(std::uint64_t offset, std::span<const std::byte> from) override;
  absl::StatusOr<nommu::PoolAddress> GetUnmappedArea(const nommu::MapRequest& request) override {
    return memory_->AddressOf(request.offset, request.length);
  }
  bool Restored(nommu::PoolAddress start, std::uint64_t length) override { return memory_->Contains(start, length); }
  void Record(record::Device& to) const override { memory_->Record(to); }

 private:
  const std::unique_ptr<DeviceMemory> memory_;
};

}  // namespace mapbroker::backing
