#include "daemon/rpc/drivers_service.h"

#include <cerrno>
#include <deque>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/nommu/refusal.h"
#include "daemon/rpc/caller.h"
#include "daemon/rpc/status.h"
#include "shm_backend/mutex.h"

namespace mapbroker::rpc {
namespace {

using nommu::Refuse;
using Reactor = grpc::ServerBidiReactor<v1::FromDriver, v1::ToDriver>;

// Calls that may wait to be taken by a driver.
constexpr std::size_t kMaxUntaken = 1024;

// The seed's default for character devices: readable, writable, not executable, direct only. Block devices are the
// same.
constexpr nommu::Capabilities kDefaultCapabilities = nommu::kMapDirect | nommu::kReadMap | nommu::kWriteMap;
constexpr nommu::Capabilities kAllCapabilities = kDefaultCapabilities | nommu::kMapCopy | nommu::kExecMap;

v1::ToDriver ToProto(const backing::DriverCall& call) {
  v1::ToDriver message;
  v1::DriverCall& to = *message.mutable_call();
  to.set_id(call.id);
  to.set_deadline_ms(static_cast<std::uint32_t>(call.deadline.count()));
  const auto set = [&](v1::DriverMapping& mapping) {
    mapping.set_offset(call.offset);
    mapping.set_length(call.length);
    mapping.set_prot(call.prot);
    mapping.set_flags(call.flags);
    mapping.set_memory_offset(call.memory_offset);
  };
  switch (call.operation) {
    case backing::DriverCall::Operation::kGetUnmappedArea:
      set(*to.mutable_get_unmapped_area());
      break;
    case backing::DriverCall::Operation::kMmap:
      set(*to.mutable_mmap());
      break;
    case backing::DriverCall::Operation::kRead:
      to.mutable_read()->set_offset(call.offset);
      to.mutable_read()->set_length(call.length);
      break;
    case backing::DriverCall::Operation::kClose:
      to.mutable_close()->set_memory_offset(call.memory_offset);
      to.mutable_close()->set_length(call.length);
  }
  return message;
}

backing::DriverAnswer FromProto(v1::DriverAnswer& answer) {
  backing::DriverAnswer from{.status = {}, .memory_offset = answer.memory_offset(), .bytes = {}};
  from.bytes.swap(*answer.mutable_data());
  if (answer.error() < 0 || answer.error() > 4095) {
    from.status = Refuse(EPROTO, "D12", absl::StrCat("the driver answered nonsense: an errno of ", answer.error()));
  } else if (answer.error() != 0) {
    from.status = Refuse(answer.error(), "S10",
                         answer.sentence().empty() ? "the driver refused" : "the driver: " + answer.sentence());
  }
  return from;
}

// What goes to one driver, a message at a time and in order. Shared by the stream and the device, of which either may
// be the first to go.
class Outbox final : public backing::DriverChannel {
 public:
  Outbox(Reactor& stream, grpc::CallbackServerContext& context) : stream_(&stream), context_(context) {}

  void Send(const backing::DriverCall& call) override {
    shm::MutexLock lock(mutex_);
    if (stream_ == nullptr) return;
    if (messages_.size() >= kMaxUntaken) {
      // It ends the stream, which tells the device that its driver has gone.
      context_.TryCancel();
      return;
    }
    messages_.push_back(ToProto(call));
    if (open_ && messages_.size() == 1) stream_->StartWrite(&messages_.front());
  }

  // The first message; what was sent before follows.
  void Open(v1::ToDriver registered) {
    shm::MutexLock lock(mutex_);
    messages_.push_front(std::move(registered));
    open_ = true;
    stream_->StartWrite(&messages_.front());
  }

  void Written(bool ok) {
    shm::MutexLock lock(mutex_);
    messages_.pop_front();
    if (ok && stream_ != nullptr && !messages_.empty()) stream_->StartWrite(&messages_.front());
  }

  void Close() {
    shm::MutexLock lock(mutex_);
    stream_ = nullptr;
  }

 private:
  shm::Mutex mutex_;
  Reactor* stream_ ABSL_GUARDED_BY(mutex_);
  grpc::CallbackServerContext& context_;  // lives as long as stream_ is not null
  bool open_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<v1::ToDriver> messages_ ABSL_GUARDED_BY(mutex_);
};

// One driver's stream. gRPC calls it from one thread at a time, but for Outbox.
class Stream final : public Reactor {
 public:
  Stream(Broker& broker, const session::SessionTable& sessions, grpc::CallbackServerContext& context)
      : broker_(broker), outbox_(std::make_shared<Outbox>(*this, context)) {
    const auto caller = CallerOf(context, sessions);
    if (!caller.ok()) {
      End(caller.status());
      return;
    }
    caller_ = *caller;
    StartRead(&message_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) return End(absl::OkStatus());
    if (caller_->revoked()) return End(Refuse(ESRCH, "", "the session was ended by an administrator"));
    const absl::Status status = Take();
    if (!status.ok() || message_.has_unregister()) return End(status);
    StartRead(&message_);
  }

  void OnWriteDone(bool ok) override { outbox_->Written(ok); }

  void OnDone() override { delete this; }

 private:
  absl::Status Take() {
    if (registered_.device == nullptr) {
      if (!message_.has_register_()) return Refuse(EPROTO, "D12", "a driver registers before anything else");
      return Register(message_.register_());
    }
    switch (message_.message_case()) {
      case v1::FromDriver::kAnswer: {
        backing::DriverAnswer answer = FromProto(*message_.mutable_answer());
        return registered_.device->Answer(message_.answer().id(), std::move(answer));
      }
      case v1::FromDriver::kUnregister:
        broker_.drivers().Unregister(*registered_.device, name_);
        return absl::OkStatus();
      default:
        return Refuse(EPROTO, "D12", "a driver that has registered gives answers or unregisters");
    }
  }

  absl::Status Register(const v1::RegisterDriver& request) {
    if (request.memory() > 0 && caller_->read_only()) {
      return Refuse(EACCES, "D12", "the session is read-only: a driver with memory writes to it");
    }
    const unsigned capabilities = request.has_capabilities() ? request.capabilities() : kDefaultCapabilities;
    if ((capabilities & ~kAllCapabilities) != 0) return Refuse(EINVAL, "D12", "unknown capabilities");
    name_ = request.name();
    auto registered =
        broker_.drivers().Register({.name = name_,
                                    .block = request.block(),
                                    .owner = caller_->peer(),
                                    .mode = request.mode() & 0777,
                                    .capabilities = capabilities,
                                    .operations = {request.get_unmapped_area(), request.mmap(), request.read()},
                                    .memory = request.memory(),
                                    .size = request.size() == 0 ? request.memory() : request.size(),
                                    .properties = {request.properties().begin(), request.properties().end()}},
                                   outbox_);
    if (!registered.ok()) return registered.status();
    registered_ = *std::move(registered);
    v1::ToDriver answer;
    answer.mutable_registered()->set_fd(-1);
    if (registered_.memory != nullptr) {
      const absl::StatusOr<int> fd = caller_->AddFile(registered_.memory);
      if (!fd.ok()) return fd.status();
      answer.mutable_registered()->set_fd(*fd);
    }
    for (const auto& [offset, length] : registered_.areas) {
      v1::DriverArea& area = *answer.mutable_registered()->add_areas();
      area.set_memory_offset(offset);
      area.set_length(length);
    }
    outbox_->Open(std::move(answer));
    Tell(EventKind::kDriverConnected);
    return absl::OkStatus();
  }

  void Tell(EventKind kind) {
    broker_.events().Tell(kind, [&] {
      return Event{.kind = kind,
                   .session = caller_->id(),
                   .pid = caller_->peer().pid,
                   .uid = caller_->peer().uid,
                   .path = name_};
    });
  }

  void End(const absl::Status& status) {
    outbox_->Close();
    if (registered_.device != nullptr) {
      registered_.device->Disconnect(*outbox_);
      Tell(EventKind::kDriverGone);
    }
    Finish(ToGrpc(status));
  }

  Broker& broker_;
  const std::shared_ptr<Outbox> outbox_;
  std::shared_ptr<session::Session> caller_;
  std::string name_;
  backing::Drivers::Registered registered_;
  v1::FromDriver message_;
};

}  // namespace

grpc::ServerBidiReactor<v1::FromDriver, v1::ToDriver>* DriversService::Drive(grpc::CallbackServerContext* context) {
  return new Stream(broker_, sessions_, *context);
}

}  // namespace mapbroker::rpc
