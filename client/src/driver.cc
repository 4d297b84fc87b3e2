// Driver: a device of this process.
#include "mapbroker/driver.h"

#include <algorithm>
#include <cerrno>
#include <memory>
#include <set>
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

// A driver's conversation with the daemon. When the daemon is lost it is begun anew with the next: the device stands,
// and so do its memory and what is mapped of it.
struct Driver::Impl {
  ~Impl() {
    Stop();
    if (memory.attachment == nullptr) return;
    memory.attachment.reset();
    session->Unmap(memory.grant.address(), memory.grant.length()).IgnoreError();
  }

  absl::Status Start();
  absl::Status MapMemory(int number);
  // Registers on a new stream, which is the driver's from then on.
  absl::StatusOr<v1::DriverRegistered> Register();
  // Runs on the thread until the driver stops or its device cannot be had any more.
  void Serve();
  // Carries out what is asked until the stream ends; why it did.
  absl::Status ServeStream();
  // After the daemon was lost.
  absl::Status TakeUp();
  bool Stopping() {
    shm::MutexLock lock(mutex);
    return stopping;
  }
  // OK, with what is to be answered in `answer`, or why not.
  absl::Status Carry(const v1::DriverCall& call, v1::DriverAnswer& answer);
  void Close(const DriverArea& area);
  void Unregister();
  void Stop();

  std::shared_ptr<Session> session;
  DriverOptions options;
  DriverOperations operations;
  std::uint64_t epoch = 0;  // of the connection that the stream is of
  Mapped memory;            // empty attachment: none
  std::vector<DriverArea> areas;
  // What is mapped, as the operations have been told; the thread's.
  std::multiset<std::pair<std::uint64_t, std::uint64_t>> mapped;
  std::thread thread;
  shm::Mutex writing;                    // held while a message is written
  std::unique_ptr<DriverStream> stream;  // exchanged by the thread, under `writing`
  shm::Mutex mutex;
  bool stopping ABSL_GUARDED_BY(mutex) = false;
  bool ended ABSL_GUARDED_BY(mutex) = false;
  absl::Status why ABSL_GUARDED_BY(mutex);
  shm::CondVar end;
};

absl::StatusOr<v1::DriverRegistered> Driver::Impl::Register() {
  epoch = session->epoch();
  absl::StatusOr<std::unique_ptr<DriverStream>> opened = session->stub().Drive();
  if (!opened.ok()) return opened.status();
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
  if (!(*opened)->Write(message) || !(*opened)->Read(reply)) {
    const absl::Status refused = (*opened)->Finish();
    return refused.ok() ? MakeStatus(EPROTO, "the daemon did not answer the registration", "D12") : refused;
  }
  shm::MutexLock lock(writing);
  stream = *std::move(opened);
  return reply.registered();
}

absl::Status Driver::Impl::Start() {
  const absl::StatusOr<v1::DriverRegistered> registered = Register();
  if (!registered.ok()) return registered.status();
  for (const v1::DriverArea& area : registered->areas()) {
    areas.push_back({area.memory_offset(), area.length()});
    mapped.emplace(area.memory_offset(), area.length());
  }
  if (registered->fd() >= 0) {
    if (absl::Status status = MapMemory(registered->fd()); !status.ok()) {
      stream->Cancel();
      stream->Finish().IgnoreError();
      return status;
    }
  }
  thread = std::thread([this] { Serve(); });
  return absl::OkStatus();
}

absl::Status Driver::Impl::MapMemory(int number) {
  absl::StatusOr<Mapped> attached =
      session->MapNumber({.length = options.memory, .prot = PROT_READ | PROT_WRITE, .flags = MAP_SHARED}, number);
  session->CloseNumber(number);
  if (!attached.ok()) return attached.status();
  memory = *std::move(attached);
  return absl::OkStatus();
}

void Driver::Impl::Serve() {
  absl::Status status;
  do {
    status = ServeStream();
    if (absl::IsUnavailable(status) && !Stopping()) status = TakeUp();
  } while (status.ok() && !Stopping());
  shm::MutexLock lock(mutex);
  ended = true;
  if (!stopping) why = status;
  end.NotifyAll();
}

absl::Status Driver::Impl::TakeUp() {
  for (;;) {
    if (absl::Status status = session->TakeUpAgain(epoch); !status.ok()) return status;
    const absl::StatusOr<v1::DriverRegistered> registered = Register();
    // It may be lost again meanwhile.
    if (absl::IsUnavailable(registered.status()) && !Stopping()) continue;
    if (!registered.ok()) return registered.status();
    // Its memory is mapped since before.
    if (registered->fd() >= 0) session->CloseNumber(registered->fd());
    auto gone = mapped;
    for (const v1::DriverArea& area : registered->areas()) {
      const auto stands = gone.find({area.memory_offset(), area.length()});
      if (stands != gone.end()) gone.erase(stands);
    }
    for (const auto& [offset, length] : gone) Close({offset, length});
    if (Stopping()) Unregister();
    return absl::OkStatus();
  }
}

absl::Status Driver::Impl::ServeStream() {
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
  return stream->Finish();
}

void Driver::Impl::Close(const DriverArea& area) {
  const auto found = mapped.find({area.offset, area.length});
  if (found != mapped.end()) mapped.erase(found);
  if (operations.close) operations.close(area);
}

void Driver::Impl::Unregister() {
  v1::FromDriver message;
  message.mutable_unregister();
  shm::MutexLock lock(writing);
  stream->Write(message);
}

absl::Status Driver::Impl::Carry(const v1::DriverCall& call, v1::DriverAnswer& answer) {
  switch (call.operation_case()) {
    case v1::DriverCall::kGetUnmappedArea: {
      const absl::StatusOr<std::uint64_t> offset = operations.get_unmapped_area(FromProto(call.get_unmapped_area()));
      if (offset.ok()) answer.set_memory_offset(*offset);
      return offset.status();
    }
    case v1::DriverCall::kMmap: {
      absl::Status status =
          operations.mmap(FromProto(call.mmap()), {call.mmap().memory_offset(), call.mmap().length()});
      if (status.ok()) mapped.emplace(call.mmap().memory_offset(), call.mmap().length());
      return status;
    }
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
      Close({call.close().memory_offset(), call.close().length()});
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
  Unregister();
  thread.join();
}

Driver::Driver(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Driver::Driver(Driver&& other) noexcept = default;
Driver& Driver::operator=(Driver&& other) noexcept = default;
Driver::~Driver() = default;

absl::StatusOr<Driver> Driver::Register(Client& client, const DriverOptions& options, DriverOperations operations) {
  auto impl = std::make_unique<Impl>();
  impl->session = client.impl_->session;
  impl->options = options;
  impl->operations = std::move(operations);
  if (absl::Status status = impl->Start(); !status.ok()) return status;
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
