#include "daemon/rpc/calls.h"

#include <google/protobuf/descriptor.h>

#include <cerrno>
#include <map>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "daemon/rpc/caller.h"
#include "daemon/rpc/roles.h"
#include "mapbroker/v1/error.pb.h"

namespace mapbroker::rpc {
namespace {

constexpr char kPackage[] = "/mapbroker.v1.";

// The refusal that ToGrpc made; of gRPC's own there is only the text.
v1::Error ErrorOf(const grpc::Status& status) {
  v1::RpcStatus details;
  v1::Error error;
  if (details.ParseFromString(status.error_details()) && details.details_size() > 0 &&
      details.details(0).UnpackTo(&error)) {
    return error;
  }
  error.set_errno_value(status.error_code() == grpc::StatusCode::CANCELLED ? ECANCELED : EIO);
  error.set_explanation(status.error_message());
  return error;
}

}  // namespace

class Calls::Interceptor final : public grpc::experimental::Interceptor {
 public:
  Interceptor(Calls& calls, grpc::experimental::ServerRpcInfo& info)
      : calls_(calls), info_(info), begin_(std::chrono::steady_clock::now()) {
    calls_.under_way_.fetch_add(1, std::memory_order_relaxed);
  }
  ~Interceptor() override { calls_.under_way_.fetch_sub(1, std::memory_order_relaxed); }

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(grpc::experimental::InterceptionHookPoints::PRE_SEND_STATUS)) {
      Answered(methods->GetSendStatus());
    }
    methods->Proceed();
  }

 private:
  void Answered(const grpc::Status& status) {
    int error = 0;
    if (!status.ok()) {
      const v1::Error refusal = ErrorOf(status);
      error = refusal.errno_value();
      Tell(refusal);
    }
    if (const auto known = calls_.methods_.find(info_.method()); known != calls_.methods_.end()) {
      known->second->Add(error, std::chrono::steady_clock::now() - begin_);
    }
  }

  void Tell(const v1::Error& refusal) const {
    calls_.events_.Tell(EventKind::kRefused, [&] {
      const grpc::ServerContextBase& context = *info_.server_context();
      Event event{.kind = EventKind::kRefused,
                  .peer = CertificateNameOf(context),
                  .call = info_.method() + std::string_view(info_.method()).rfind('/') + 1,
                  .error = refusal.errno_value(),
                  .rule = refusal.rule(),
                  .sentence = refusal.explanation()};
      if (const auto caller = SessionOf(context, calls_.sessions_)) {
        event.session = caller->id();
        event.pid = caller->peer().pid;
        event.uid = caller->peer().uid;
      }
      return event;
    });
  }

  Calls& calls_;
  grpc::experimental::ServerRpcInfo& info_;
  const std::chrono::steady_clock::time_point begin_;
};

class Calls::Factory final : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  explicit Factory(Calls& calls) : calls_(calls) {}
  grpc::experimental::Interceptor* CreateServerInterceptor(grpc::experimental::ServerRpcInfo* info) override {
    // gRPC's own services are not ours to count.
    if (!absl::StartsWith(info->method(), kPackage)) return nullptr;
    return new Interceptor(calls_, *info);
  }

 private:
  Calls& calls_;
};

Calls::Calls(Events& events, const session::SessionTable& sessions) : events_(events), sessions_(sessions) {
  const auto* const pool = google::protobuf::DescriptorPool::generated_pool();
  for (const char* file : {"administration", "devices", "files", "inspection", "memory", "ptrace", "sysv_shm"}) {
    const auto* const service = pool->FindFileByName(absl::StrCat("mapbroker/v1/", file, ".proto"))->service(0);
    for (int i = 0; i < service->method_count(); ++i) {
      const auto& method = *service->method(i);
      if (method.server_streaming() || method.client_streaming()) continue;
      methods_[absl::StrCat("/", service->full_name(), "/", method.name())] = std::make_unique<CallStatistics>();
    }
  }
}

std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> Calls::NewInterceptorFactory() {
  return std::make_unique<Factory>(*this);
}

void Calls::ForEach(const std::function<void(const std::string&, const CallStatistics&)>& method) const {
  std::map<std::string, const CallStatistics*> sorted;
  for (const auto& [name, statistics] : methods_) {
    sorted[std::string(absl::StripPrefix(name, kPackage))] = statistics.get();
  }
  for (const auto& [name, statistics] : sorted) method(name, *statistics);
}

}  // namespace mapbroker::rpc
