// Driver: a device of this process.
#include "mapbroker/driver.h"

#include <algorithm>
#include <cerrno>
#include <thread>
#include <utility>

#include "client/src/client_impl.h"
#include "client/src/rpc_stub.h"
#include "client/src/status.h"
#include "shm_backend/mutex.h"

namespace mapbroker {
namespace {

DriverRequest FromProto(const v1::DriverMapping& mapping) {
  return {.offset = mapping.offset(),
          .length = mapping.length(),
          .prot = static_cast<int>(mapping.prot()),
          .flags = static_cast<int>(mapping.flags())};
}

}  // namespace

absl::Status DriverError(int error, const std::string& sentence) { return MakeStatus(error, sentence, "D12"); }

struct Driver::Impl {
  ~Impl() {
    Stop();
    if (memory.attachment == nullptr) return;
    memory.attachment.reset();
    session->Unmap(memory.grant.address(), memory.grant.length()).IgnoreError();
  }

  absl::Status Start(const DriverOptions& options);
  absl::Status MapMemory(int number, std::uint64_t length);
  // Runs on the thread until the stream ends.
  void Serve();
  // OK, with what is to be answered in `answer`, or why not.
  absl::Status Carry(const v1::DriverCall& call, v1::DriverAnswer& answer);
  void Stop();

  std::shared_ptr<Session> session;
  DriverOperations operations;
  std::unique_ptr<DriverStream> stream;
  Mapped memory;  // empty attachment: none
  std::vector<DriverArea> areas;
  std::thread thread;
  shm::Mutex writing;  // held while a message is written
  shm::Mutex mutex;
  bool stopping ABSL_GUARDED_BY(mutex) = false;
  bool ended ABSL_GUARDED_BY(mutex) = false;
  absl::Status why ABSL_GUARDED_BY(mutex);
  shm::CondVar end;
};

absl::Status Driver::Impl::Start(const DriverOptions& options) {
  absl::StatusOr<std::unique_ptr<DriverStream>> opened = session->stub().Drive();
  if (!opened.ok()) return opened.status();
  stream = *std::move(opened);
  v1::FromDriver message;
  v1::RegisterDriver& request = *message.mutable_register_();
  request.set_name(options.name);
  request.set_block(options.block);
  request.set_mode(options.mode);
  request.set_has_capabilities(options.capabilities.has_value());
  request.set_capabilities(options.capabilities.value_or(0));
  request.set_get_unmapped_area(operations.get_unmapped_area != nullptr);
  request.set_mmap(operations.mmap != nullptr);
  request.set_read(operations.read != nullptr);
  request.set_memory(options.memory);
  request.set_size(options.size);
  request.mutable_properties()->insert(options.properties.begin(), options.properties.end());
  v1::ToDriver reply;
  if (!stream->Write(message) || !stream->Read(reply)) return stream->Finish();
  for (const v1::DriverArea& area : reply.registered().areas()) areas.push_back({area.memory_offset(), area.length()});
  absl::Status status =
      reply.registered().fd() < 0 ? absl::OkStatus() : MapMemory(reply.registered().fd(), options.memory);
  if (!status.ok()) {
    stream->Cancel();
    stream->Finish().IgnoreError();
    return status;
  }
  thread = std::thread([this] { Serve(); });
  return absl::OkStatus();
}

absl::Status Driver::Impl::MapMemory(int number, std::uint64_t length) {
  absl::StatusOr<Mapped> mapped =
      session->MapNumber({.length = length, .prot = PROT_READ | PROT_WRITE, .flags = MAP_SHARED}, number);
  v1::CloseRequest close;
  close.set_fd(number);
  session->stub().Close(close).IgnoreError();
  if (!mapped.ok()) return mapped.status();
  memory = *std::move(mapped);
  return absl::OkStatus();
}

void Driver::Impl::Serve() {
  v1::ToDriver message;
  while (stream->Read(message)) {
    v1::FromDriver reply;
    v1::DriverAnswer& answer = *reply.mutable_answer();
    if (const absl::Status status = Carry(message.call(), answer); !status.ok()) {
      answer.set_error(ErrnoOf(status));
      answer.set_sentence(std::string(status.message()));
    }
    if (message.call().id() == 0) continue;
    answer.set_id(message.call().id());
    shm::MutexLock lock(writing);
    stream->Write(reply);
  }
  const absl::Status status = stream->Finish();
  shm::MutexLock lock(mutex);
  ended = true;
  if (!stopping) why = status;
  end.NotifyAll();
}

absl::Status Driver::Impl::Carry(const v1::DriverCall& call, v1::DriverAnswer& answer) {
  switch (call.operation_case()) {
    case v1::DriverCall::kGetUnmappedArea: {
      const absl::StatusOr<std::uint64_t> offset = operations.get_unmapped_area(FromProto(call.get_unmapped_area()));
      if (offset.ok()) answer.set_memory_offset(*offset);
      return offset.status();
    }
    case v1::DriverCall::kMmap:
      return operations.mmap(FromProto(call.mmap()), {call.mmap().memory_offset(), call.mmap().length()});
    case v1::DriverCall::kRead: {
      std::string bytes(call.read().length(), '\0');
      const absl::StatusOr<std::size_t> count =
          operations.read(call.read().offset(), {reinterpret_cast<std::byte*>(bytes.data()), bytes.size()});
      if (!count.ok()) return count.status();
      bytes.resize(std::min(*count, bytes.size()));
      answer.set_data(std::move(bytes));
      return absl::OkStatus();
    }
    case v1::DriverCall::kClose:
      if (operations.close) operations.close({call.close().memory_offset(), call.close().length()});
      return absl::OkStatus();
    default:
      return MakeStatus(ENOSYS, "this version of the library does not know the operation", "D12");
  }
}

void Driver::Impl::Stop() {
  if (!thread.joinable()) return;
  {
    shm::MutexLock lock(mutex);
    stopping = true;
  }
  {
    v1::FromDriver message;
    message.mutable_unregister();
    shm::MutexLock lock(writing);
    stream->Write(message);
  }
  thread.join();
}

Driver::Driver(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Driver::Driver(Driver&& other) noexcept = default;
Driver& Driver::operator=(Driver&& other) noexcept = default;
Driver::~Driver() = default;

absl::StatusOr<Driver> Driver::Register(Client& client, const DriverOptions& options, DriverOperations operations) {
  auto impl = std::make_unique<Impl>();
  impl->session = client.impl_->session;
  impl->operations = std::move(operations);
  if (absl::Status status = impl->Start(options); !status.ok()) return status;
  return Driver(std::move(impl));
}

std::span<std::byte> Driver::memory() const {
  if (impl_->memory.attachment == nullptr) return {};
  return {impl_->memory.attachment->At(impl_->memory.grant.address()), impl_->memory.grant.length()};
}

const std::vector<DriverArea>& Driver::areas() const { return impl_->areas; }

absl::Status Driver::Wait() {
  shm::MutexLock lock(impl_->mutex);
  while (!impl_->ended) impl_->end.Wait(impl_->mutex);
  return impl_->why;
}

void Driver::Unregister() { impl_->Stop(); }

}  // namespace mapbroker
