// The C++ face: Inspector.
#include "mapbroker/inspector.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "client/src/client_impl.h"
#include "client/src/rpc_stub.h"
#include "client/src/session.h"
#include "client/src/status.h"
#include "mapbroker/client.h"

namespace mapbroker {
namespace {

constexpr char kKindPrefix[] = "EVENT_KIND_";

template <typename Duration>
std::chrono::system_clock::time_point SinceEpoch(Duration duration) {
  return std::chrono::system_clock::time_point(duration);
}

MappingRow RowOf(const v1::MappingRow& row) {
  return MappingRow{.start = row.start(),
                    .end = row.end(),
                    .perms = row.perms(),
                    .offset = row.offset(),
                    .dev_major = row.dev_major(),
                    .dev_minor = row.dev_minor(),
                    .inode = row.inode(),
                    .path = row.path(),
                    .pids = {row.pids().begin(), row.pids().end()}};
}

SessionRow RowOf(const v1::SessionInfo& session) {
  return SessionRow{.session = session.session(),
                    .pid = session.pid(),
                    .uid = session.uid(),
                    .gid = session.gid(),
                    .command = session.command(),
                    .read_only = session.read_only(),
                    .traced = session.traced(),
                    .revoked = session.revoked(),
                    .address_space = session.address_space(),
                    .mappings = session.mappings(),
                    .mapped = session.mapped(),
                    .files = session.files(),
                    .calls = session.calls()};
}

DaemonStatus StatusOf(const v1::DaemonStatus& now) {
  const v1::PoolStatus& pool = now.pool();
  const v1::LedgerStatus& ledger = now.ledger();
  return DaemonStatus{.version = now.version(),
                      .started = SinceEpoch(std::chrono::milliseconds(now.started_ms())),
                      .uptime = std::chrono::milliseconds(now.uptime_ms()),
                      .taken_over = now.taken_over(),
                      .state_since = SinceEpoch(std::chrono::milliseconds(now.state_since_ms())),
                      .pool = {.pool_size = pool.size(),
                               .used = pool.used(),
                               .free = pool.free(),
                               .scrubbing = pool.scrubbing(),
                               .largest_free_run = pool.largest_free_run(),
                               .regions = now.regions(),
                               .mappings = now.mappings(),
                               .sessions = now.sessions(),
                               .saved_by_sharing = pool.saved_by_sharing(),
                               .filling = now.filling(),
                               .fills_total = now.fills_total(),
                               .prefaulted = pool.prefaulted(),
                               .profile = now.profile()},
                      .ledger = {.records = ledger.records(),
                                 .bytes = ledger.bytes(),
                                 .waiting = ledger.waiting(),
                                 .deferred = ledger.deferred(),
                                 .failing = ledger.failing()},
                      .refused_total = now.refused_total(),
                      .watchers = now.watchers(),
                      .limits = {now.limits().begin(), now.limits().end()}};
}

// "EVENT_KIND_SESSION_OPENED" is "session-opened".
std::string KindOf(v1::EventKind kind) {
  const std::string name = v1::EventKind_Name(kind);
  if (name.empty()) return absl::StrCat("kind-", static_cast<int>(kind));  // of a newer daemon
  return absl::StrReplaceAll(absl::AsciiStrToLower(name.substr(sizeof(kKindPrefix) - 1)), {{"_", "-"}});
}

absl::StatusOr<v1::EventKind> KindOf(const std::string& name) {
  v1::EventKind kind;
  std::string all;
  if (v1::EventKind_Parse(kKindPrefix + absl::AsciiStrToUpper(absl::StrReplaceAll(name, {{"-", "_"}})), &kind) &&
      kind != v1::EVENT_KIND_UNSPECIFIED) {
    return kind;
  }
  for (int known = 1; known <= v1::EventKind_MAX; ++known) {
    absl::StrAppend(&all, known == 1 ? "" : ", ", KindOf(static_cast<v1::EventKind>(known)));
  }
  return MakeStatus(EINVAL, absl::StrCat("there is no kind of event \"", name, "\": there are ", all));
}

DaemonEvent EventOf(const v1::Event& event) {
  DaemonEvent from{.kind = KindOf(event.kind()),
                   .time = SinceEpoch(std::chrono::microseconds(event.time_us())),
                   .session = event.session(),
                   .pid = event.pid(),
                   .uid = event.uid(),
                   .peer = event.peer(),
                   .call = event.call(),
                   .error = event.errno_value(),
                   .rule = event.rule(),
                   .sentence = event.sentence(),
                   .address = {},
                   .length = event.length(),
                   .path = event.path()};
  if (event.has_address()) from.address = event.address();
  return from;
}

}  // namespace

struct Inspector::Impl {
  std::shared_ptr<Session> session;  // of a daemon of this machine
  std::unique_ptr<RpcStub> remote;   // or else
  RpcStub& stub() { return remote != nullptr ? *remote : session->stub(); }
};

Inspector::Inspector(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
Inspector::Inspector(Inspector&& other) noexcept = default;
Inspector& Inspector::operator=(Inspector&& other) noexcept = default;
Inspector::~Inspector() = default;

Inspector Inspector::Of(const Client& client) {
  return Inspector(std::make_shared<Impl>(Impl{.session = client.impl_->session, .remote = nullptr}));
}

absl::StatusOr<Inspector> Inspector::Connect(const RemoteOptions& options) {
  absl::StatusOr<std::unique_ptr<RpcStub>> stub = RpcStub::Remote(options);
  if (!stub.ok()) return stub.status();
  return Inspector(std::make_shared<Impl>(Impl{.session = nullptr, .remote = *std::move(stub)}));
}

absl::StatusOr<DaemonStatus> Inspector::Status() {
  const absl::StatusOr<v1::DaemonStatus> now = impl_->stub().GetStatus();
  if (!now.ok()) return now.status();
  return StatusOf(*now);
}

absl::Status Inspector::ListMappings(pid_t pid, const std::function<bool(const MappingRow&)>& row) {
  v1::ListMappingsRequest request;
  request.set_pid(pid);
  return impl_->stub().ListMappings(request, [&](const v1::MappingRow& next) { return row(RowOf(next)); });
}

absl::Status Inspector::ListSessions(const std::function<bool(const SessionRow&)>& row) {
  return impl_->stub().ListSessions([&](const v1::SessionInfo& next) { return row(RowOf(next)); });
}

absl::Status Inspector::Watch(const WatchOptions& options,
                              const std::function<bool(std::uint64_t, const std::vector<DaemonEvent>&)>& portion) {
  v1::WatchRequest request;
  request.set_session(options.session);
  request.set_pid(options.pid);
  for (const std::string& name : options.kinds) {
    const absl::StatusOr<v1::EventKind> kind = KindOf(name);
    if (!kind.ok()) return kind.status();
    request.add_kinds(*kind);
  }
  return impl_->stub().Watch(request, [&](const v1::WatchResponse& next) {
    std::vector<DaemonEvent> events;
    for (const v1::Event& event : next.events()) events.push_back(EventOf(event));
    return portion(next.lost(), events);
  });
}

absl::Status Inspector::EndSession(std::uint64_t session, bool kill) {
  v1::EndSessionRequest request;
  request.set_session(session);
  request.set_kill(kill);
  return impl_->stub().EndSession(request);
}

absl::StatusOr<std::string> Inspector::SetLogLevel(const std::string& level) {
  v1::SetLogLevelRequest request;
  request.set_level(level);
  const absl::StatusOr<v1::SetLogLevelResponse> response = impl_->stub().SetLogLevel(request);
  if (!response.ok()) return response.status();
  return response->previous();
}

}  // namespace mapbroker
