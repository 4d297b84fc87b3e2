#include "daemon/backing/driver_device.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "daemon/backing/devices.h"
#include "daemon/nommu/refusal.h"

namespace mapbroker::backing {
namespace {

using nommu::Refuse;

// Bytes asked for in one read, so that an answer fits into a message.
constexpr std::size_t kMostRead = std::size_t{256} << 10;

const char* NameOf(DriverCall::Operation operation) {
  switch (operation) {
    case DriverCall::Operation::kGetUnmappedArea:
      return "get_unmapped_area";
    case DriverCall::Operation::kMmap:
      return "mmap";
    case DriverCall::Operation::kRead:
      return "read";
    case DriverCall::Operation::kClose:
      return "close";
  }
  return "?";
}

absl::Status Gone(const std::string& name) {
  return Refuse(EIO, "D12", absl::StrCat("the driver of ", name, " has gone: start it again to take its device over"));
}

absl::Status Nonsense(const std::string& what) {
  return Refuse(EPROTO, "D12", absl::StrCat("the driver answered nonsense: ", what));
}

}  // namespace

// The driver's memory, as the driver maps it.
class DriverDevice::MemoryFileOf final : public Backing {
 public:
  MemoryFileOf(std::shared_ptr<DriverDevice> device, const FileStat& stat) : device_(std::move(device)), stat_(stat) {
    id = {.device = kDriverMemoryDevice, .inode = stat_.inode};
    capabilities = nommu::kMapDirect | nommu::kReadMap | nommu::kWriteMap;
    readable = writable = true;
  }
  absl::StatusOr<std::uint64_t> Size() const override { return memory().bytes().size(); }
  absl::StatusOr<std::size_t> Read(std::uint64_t offset, std::span<std::byte> into) const override {
    return memory().Read(offset, into);
  }
  std::string Path() const override { return absl::StrCat(stat_.name, " (driver)"); }
  absl::StatusOr<nommu::PoolAddress> GetUnmappedArea(const nommu::MapRequest& request) const override {
    return memory().AddressOf(request.offset, request.length);
  }
  bool Restored(nommu::PoolAddress start, std::uint64_t length) const override {
    return memory().Contains(start, length);
  }
  absl::StatusOr<FileStat> Stat() const override { return stat_; }
  record::File Record() const override {
    record::File file;
    file.set_kind(record::File::KIND_DRIVER_MEMORY);
    file.set_of_device(stat_.inode);
    return file;
  }

 private:
  const DeviceMemory& memory() const { return *device_->memory_; }

  const std::shared_ptr<DriverDevice> device_;
  const FileStat stat_;
};

absl::StatusOr<std::shared_ptr<DriverDevice>> DriverDevice::Make(const DriverSpec& spec,
                                                                 const DeviceEnvironment& environment,
                                                                 std::chrono::milliseconds deadline) {
  std::unique_ptr<DeviceMemory> memory;
  if (spec.memory > 0) {
    absl::StatusOr<std::unique_ptr<DeviceMemory>> allocated =
        DeviceMemory::Allocate(spec.memory, /*restored=*/std::nullopt, environment);
    if (!allocated.ok()) return allocated.status();
    memory = *std::move(allocated);
  }
  return std::shared_ptr<DriverDevice>(new DriverDevice(std::move(memory), spec, deadline));
}

absl::StatusOr<std::shared_ptr<DriverDevice>> DriverDevice::Restore(const record::Device& recorded,
                                                                    const DeviceEnvironment& environment,
                                                                    std::chrono::milliseconds deadline) {
  const record::Driver& driver = recorded.driver();
  std::unique_ptr<DeviceMemory> memory;
  if (driver.memory() > 0) {
    absl::StatusOr<std::unique_ptr<DeviceMemory>> restored =
        DeviceMemory::Allocate(driver.memory(), shm::Run{recorded.first(), recorded.pages()}, environment);
    if (!restored.ok()) return restored.status();
    memory = *std::move(restored);
  }
  const DriverSpec spec{.name = recorded.name(),
                        .block = driver.block(),
                        .owner = {.uid = recorded.uid(), .gid = recorded.gid()},
                        .mode = recorded.mode(),
                        .capabilities = driver.capabilities(),
                        .operations = {driver.get_unmapped_area(), driver.mmap(), driver.read()},
                        .memory = driver.memory(),
                        .size = driver.size(),
                        .properties = {driver.properties().begin(), driver.properties().end()}};
  std::shared_ptr<DriverDevice> device(new DriverDevice(std::move(memory), spec, deadline));
  device->expected_until_ = std::chrono::steady_clock::now() + deadline;
  return device;
}

DriverDevice::DriverDevice(std::unique_ptr<DeviceMemory> memory, const DriverSpec& spec,
                           std::chrono::milliseconds deadline)
    : memory_(std::move(memory)), deadline_(deadline), driver_{nullptr, spec} {}

absl::StatusOr<std::vector<DriverArea>> DriverDevice::Connect(const DriverSpec& spec,
                                                              std::shared_ptr<DriverChannel> channel) {
  if (spec.memory != room()) {
    return Refuse(EINVAL, "D12",
                  absl::StrCat(spec.name, " has ", room(), " bytes of memory, which whoever takes it over keeps: ",
                               "ask for as many, or remove the device first"));
  }
  shm::MutexLock lock(mutex_);
  if (driver_.channel != nullptr) {
    return Refuse(EBUSY, "D12", absl::StrCat(spec.name, " has a driver: process ", driver_.spec.owner.pid));
  }
  driver_ = Driver{std::move(channel), spec};
  connected_.NotifyAll();
  std::vector<DriverArea> areas;
  for (const auto& [area, count] : areas_) areas.insert(areas.end(), count, area);
  return areas;
}

void DriverDevice::Disconnect(const DriverChannel& channel) {
  shm::MutexLock lock(mutex_);
  if (driver_.channel.get() != &channel) return;
  driver_.channel = nullptr;
  for (const auto& [id, waiting] : waiting_) {
    waiting->done = true;
    waiting->answer.status = Gone(driver_.spec.name);
    waiting->answered.NotifyOne();
  }
  waiting_.clear();
}

absl::Status DriverDevice::Answer(std::uint64_t id, DriverAnswer answer) {
  shm::MutexLock lock(mutex_);
  const auto found = waiting_.find(id);
  if (found == waiting_.end()) {
    if (id != 0 && id <= last_id_) return absl::OkStatus();
    return Refuse(EPROTO, "D12", absl::StrCat("nothing with the number ", id, " was asked of this driver"));
  }
  found->second->done = true;
  found->second->answer = std::move(answer);
  found->second->answered.NotifyOne();
  waiting_.erase(found);
  return absl::OkStatus();
}

absl::StatusOr<DriverAnswer> DriverDevice::Ask(DriverCall call) const {
  const auto until = std::chrono::steady_clock::now() + deadline_;
  Waiting waiting;
  shm::MutexLock lock(mutex_);
  const std::string& name = driver_.spec.name;
  while (IsExpected()) connected_.WaitUntil(mutex_, expected_until_);
  if (driver_.channel == nullptr) return Gone(name);
  if (waiting_.size() >= kMaxDriverCalls) {
    return Refuse(EBUSY, "D12", absl::StrCat(waiting_.size(), " calls wait for the driver of ", name, " already"));
  }
  call.id = ++last_id_;
  call.deadline = deadline_;
  waiting_[call.id] = &waiting;
  driver_.channel->Send(call);
  while (!waiting.done) {
    if (!waiting.answered.WaitUntil(mutex_, until) && !waiting.done) {
      waiting_.erase(call.id);
      return Refuse(ETIMEDOUT, "D12",
                    absl::StrCat("the driver of ", name, " did not answer ", NameOf(call.operation), " within ",
                                 deadline_.count(), " ms"));
    }
  }
  if (!waiting.answer.status.ok()) return waiting.answer.status;
  return std::move(waiting.answer);
}

bool DriverDevice::IsExpected() const {
  return driver_.channel == nullptr && std::chrono::steady_clock::now() < expected_until_;
}

std::shared_ptr<Backing> DriverDevice::MemoryFile(std::shared_ptr<DriverDevice> device, const FileStat& stat) {
  if (device->memory_ == nullptr) return nullptr;
  return std::make_shared<MemoryFileOf>(std::move(device), stat);
}

nommu::File::Kind DriverDevice::file_kind() const {
  shm::MutexLock lock(mutex_);
  return driver_.spec.operations.mmap ? nommu::File::Kind::kMappable : nommu::File::Kind::kNoMmap;
}

nommu::Capabilities DriverDevice::capabilities() const {
  shm::MutexLock lock(mutex_);
  nommu::Capabilities capabilities = driver_.spec.capabilities;
  if (!driver_.spec.operations.get_unmapped_area) capabilities &= ~nommu::kMapDirect;
  if (!driver_.spec.operations.read) capabilities &= ~nommu::kMapCopy;
  return capabilities;
}

absl::Status DriverDevice::MayOpen(const Credentials&, unsigned) const {
  shm::MutexLock lock(mutex_);
  if (driver_.channel != nullptr || IsExpected()) return absl::OkStatus();
  return Refuse(ENXIO, "D12",
                absl::StrCat("the driver of ", driver_.spec.name, " has gone: start it again to take its device over"));
}

std::uint64_t DriverDevice::size() const {
  shm::MutexLock lock(mutex_);
  return driver_.spec.size;
}

absl::StatusOr<std::size_t> DriverDevice::Read(std::uint64_t offset, std::span<std::byte> into) const {
  {
    shm::MutexLock lock(mutex_);
    if (!driver_.spec.operations.read) {
      return Refuse(EINVAL, "D12", absl::StrCat("the driver of ", driver_.spec.name, " has no read operation"));
    }
  }
  const std::size_t most = std::min(into.size(), kMostRead);
  const absl::StatusOr<DriverAnswer> answer =
      Ask({.operation = DriverCall::Operation::kRead, .offset = offset, .length = most});
  if (!answer.ok()) return answer.status();
  if (answer->bytes.size() > most) {
    return Nonsense(absl::StrCat(answer->bytes.size(), " bytes to a read of ", most));
  }
  std::memcpy(into.data(), answer->bytes.data(), answer->bytes.size());
  return answer->bytes.size();
}

absl::StatusOr<nommu::PoolAddress> DriverDevice::GetUnmappedArea(const nommu::MapRequest& request) {
  DriverCall call{.operation = DriverCall::Operation::kGetUnmappedArea,
                  .offset = request.offset,
                  .length = request.length,
                  .prot = request.prot,
                  .flags = request.flags};
  absl::StatusOr<DriverAnswer> area = Ask(call);
  if (!area.ok()) return area.status();
  if (area->memory_offset % nommu::kPageSize != 0 || area->memory_offset >= room() ||
      request.length > nommu::PagesOf(room()) * nommu::kPageSize - area->memory_offset) {
    return Nonsense(absl::StrCat("an area of ", request.length, " bytes at ", area->memory_offset, " of its ", room(),
                                 " bytes of memory"));
  }
  // S11: the driver may still say no.
  call.operation = DriverCall::Operation::kMmap;
  call.memory_offset = area->memory_offset;
  if (const auto mapped = Ask(call); !mapped.ok()) return mapped.status();
  const absl::StatusOr<nommu::PoolAddress> start = memory_->AddressOf(area->memory_offset, request.length);
  if (!start.ok()) return start.status();
  shm::MutexLock lock(mutex_);
  ++areas_[DriverArea(area->memory_offset, request.length)];
  return start;
}

void DriverDevice::Close(nommu::PoolAddress start, std::uint64_t length, bool last) {
  const std::uint64_t offset = memory_->OffsetOf(start);
  shm::MutexLock lock(mutex_);
  if (driver_.channel != nullptr) {
    driver_.channel->Send({.operation = DriverCall::Operation::kClose, .length = length, .memory_offset = offset});
  }
  const auto area = areas_.find(DriverArea(offset, length));
  if (last && area != areas_.end() && --area->second == 0) areas_.erase(area);
}

bool DriverDevice::Restored(nommu::PoolAddress start, std::uint64_t length) {
  if (memory_ == nullptr || !memory_->Contains(start, length)) return false;
  shm::MutexLock lock(mutex_);
  ++areas_[DriverArea(memory_->OffsetOf(start), length)];
  return true;
}

void DriverDevice::Record(record::Device& to) const {
  if (memory_ != nullptr) memory_->Record(to);
  shm::MutexLock lock(mutex_);
  const DriverSpec& spec = driver_.spec;
  record::Driver& driver = *to.mutable_driver();
  driver.set_block(spec.block);
  driver.set_capabilities(spec.capabilities);
  driver.set_get_unmapped_area(spec.operations.get_unmapped_area);
  driver.set_mmap(spec.operations.mmap);
  driver.set_read(spec.operations.read);
  driver.set_memory(spec.memory);
  driver.set_size(spec.size);
  driver.mutable_properties()->insert(spec.properties.begin(), spec.properties.end());
}

std::map<std::string, std::string> DriverDevice::Properties() const {
  shm::MutexLock lock(mutex_);
  std::map<std::string, std::string> properties = driver_.spec.properties;
  properties["type"] = driver_.spec.block ? "block" : "char";
  properties["memory"] = absl::StrCat(room());
  properties["driver"] = driver_.channel == nullptr ? "gone" : absl::StrCat("process ", driver_.spec.owner.pid);
  return properties;
}

}  // namespace mapbroker::backing
