// mapbrokerd: makes the parts, joins them, and runs the event loop until it is told to stop.
#include <signal.h>
#include <sys/resource.h>
#include <systemd/sd-daemon.h>
#include <systemd/sd-event.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "daemon/activation.h"
#include "daemon/broker.h"
#include "daemon/config.h"
#include "daemon/declared.h"
#include "daemon/events.h"
#include "daemon/exit_status.h"
#include "daemon/log.h"
#include "daemon/metrics.h"
#include "daemon/nommu/refusal.h"
#include "daemon/records.h"
#include "daemon/reload.h"
#include "daemon/rpc/administration_service.h"
#include "daemon/rpc/calls.h"
#include "daemon/rpc/devices_service.h"
#include "daemon/rpc/drivers_service.h"
#include "daemon/rpc/files_service.h"
#include "daemon/rpc/inspection_service.h"
#include "daemon/rpc/memory_service.h"
#include "daemon/rpc/ptrace_service.h"
#include "daemon/rpc/roles.h"
#include "daemon/rpc/server.h"
#include "daemon/rpc/sysv_shm_service.h"
#include "daemon/rpc/tcp_server.h"
#include "daemon/runtime_dir.h"
#include "daemon/session/handoff_server.h"
#include "daemon/session/session_table.h"
#include "daemon/session/unix_listener.h"
#include "daemon/state.h"
#include "daemon/version.h"
#include "proto/handoff_packet.h"
#include "shm_backend/failure_point.h"
#include "shm_backend/page_pool.h"
#include "shm_backend/segment.h"
#include "spdlog/spdlog.h"

namespace mapbroker {
namespace {

int Refused(const absl::Status& status) {
  spdlog::critical("{}", std::string(status.message()));
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
      return kUsage;
    case absl::StatusCode::kResourceExhausted:
      return kNoMemory;
    case absl::StatusCode::kAlreadyExists:
      return kAlreadyServed;
    default:
      return nommu::ErrnoOf(status) == EBUSY ? kAlreadyServed : kFailed;
  }
}

// Every session costs descriptors, so as many as the system allows.
void RaiseDescriptorLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

struct LoopCloser {
  void operator()(sd_event* loop) const { sd_event_unref(loop); }
};

// Before any thread is started, so that the signals are blocked in all of them and reach the loop alone.
std::unique_ptr<sd_event, LoopCloser> NewLoop() {
  sd_event* loop = nullptr;
  if (sd_event_default(&loop) < 0) std::abort();
  sigset_t stop;
  sigemptyset(&stop);
  sigaddset(&stop, SIGTERM);
  sigaddset(&stop, SIGINT);
  sigaddset(&stop, SIGHUP);
  pthread_sigmask(SIG_BLOCK, &stop, nullptr);
  // Without a handler the default is to leave the loop with a status, here the signal.
  for (const std::intptr_t signal : {SIGTERM, SIGINT}) {
    if (sd_event_add_signal(loop, nullptr, static_cast<int>(signal), nullptr, reinterpret_cast<void*>(signal)) < 0) {
      std::abort();
    }
  }
  sd_event_set_watchdog(loop, 1);
  return std::unique_ptr<sd_event, LoopCloser>(loop);
}

v1::Welcome WelcomeOf(const Config& config, const shm::Segment& segment) {
  v1::Welcome welcome;
  welcome.set_pool_size(segment.bytes().size());
  welcome.set_page_size(shm::kPageSize);
  welcome.set_attach_granularity(segment.attach_granularity());
  welcome.set_pool_base(config.pool_base);
  welcome.set_profile(config.profile->name);
  return welcome;
}

// Files, then whose address spaces there are, then what is mapped in them, then what is open.
absl::Status Restore(shm::Ledger& ledger, Broker& broker, session::SessionTable& sessions,
                     session::HandoffServer& handoff_server) {
  absl::Status status = broker.RestoreFiles();
  if (status.ok()) status = handoff_server.Restore();
  if (status.ok()) status = broker.RestoreMappings();
  if (!status.ok()) return status;
  // A call that was under way when its session ended may have been recorded after all that the session had was
  // forgotten.
  std::vector<shm::Ledger::Change> ownerless;
  status = ledger.ForEach(kResults, [&](std::string_view key, std::string_view) -> absl::Status {
    const std::vector<std::uint64_t> numbers = shm::LedgerNumbers(key);
    if (numbers.size() != 2) return Contradiction("an answer");
    const auto session = sessions.FindById(numbers[0]);
    if (session == nullptr) {
      ownerless.push_back({kResults, std::string(key)});
    } else {
      session->NoteResult(numbers[1]);
    }
    return absl::OkStatus();
  });
  if (!status.ok()) return status;
  status = ledger.ForEach(kSessionFiles, [&](std::string_view key, std::string_view value) -> absl::Status {
    const std::vector<std::uint64_t> numbers = shm::LedgerNumbers(key);
    if (numbers.size() != 2) return Contradiction("an open file");
    const auto session = sessions.FindById(numbers[0]);
    if (session != nullptr) return broker.RestoreSessionFile(*session, static_cast<int>(numbers[1]), value);
    ownerless.push_back({kSessionFiles, std::string(key)});
    return absl::OkStatus();
  });
  if (!status.ok()) return status;
  return ledger.Apply(ownerless);
}

// The service manager's socket, else one of our own in the runtime directory.
absl::StatusOr<session::UnixListener> ListenerOf(shm::UniqueFd passed, const std::string& path, int type,
                                                 const Config& config) {
  if (passed) return session::UnixListener::Adopt(std::move(passed));
  return session::UnixListener::Listen(path, type, config.socket_mode, config.socket_group);
}

int Serve(const Options& options, const Config& config) {
  const auto loop = NewLoop();
  RaiseDescriptorLimit();
  signal(SIGPIPE, SIG_IGN);

  Activation activation = Activation::Take();
  const absl::StatusOr<RuntimeDir> dir =
      RuntimeDir::Hold(config.runtime_dir, config.directory_mode, config.socket_group);
  if (!dir.ok()) return Refused(dir.status());
  absl::StatusOr<State> state = State::Open(dir->path(), config, std::move(activation.pool));
  if (!state.ok()) return Refused(state.status());
  shm::Segment& segment = state->segment();
  // A start that fails loses nobody's memory.
  const auto refuse = [&](const absl::Status& why) {
    if (state->restored()) state->Leave();
    return Refused(why);
  };
  const std::string prefix = absl::StrCat(dir->path(), "/");
  auto handoff = ListenerOf(std::move(activation.handoff), prefix + kHandoffSocketName, SOCK_SEQPACKET, config);
  if (!handoff.ok()) return refuse(handoff.status());
  auto grpc = ListenerOf(std::move(activation.grpc), prefix + kGrpcSocketName, SOCK_STREAM, config);
  if (!grpc.ok()) return refuse(grpc.status());

  shm::PagePool pages(segment.bytes(), /*prefault=*/true, /*in_use=*/state->restored());
  Events events;
  Broker broker(*config.profile, pages, segment.bytes(), config.limits, &state->ledger(), &events);
  session::SessionTable sessions(state->ledger(), &broker.accounts());
  session::Access access(config.access);
  session::HandoffServer handoff_server(
      loop.get(), *handoff, sessions, access, broker.accounts(), events,
      {.welcome = WelcomeOf(config, segment),
       .pool_descriptor = [&](bool writable) { return segment.ClientDescriptor(writable); },
       .open_space =
           [&](const Credentials& peer) { return broker.OpenSpace(peer.pid, &broker.accounts().Of(peer.uid)); },
       .join_space =
           [&](nommu::SpaceId space, const Credentials& peer) {
             broker.JoinSpace(space, peer.pid, &broker.accounts().Of(peer.uid));
           },
       .move_files = [&](session::Session& from, session::Session& to) { broker.MoveFiles(from, to); },
       .leave_space = [&](nommu::SpaceId space, pid_t pid) { return broker.LeaveSpace(space, pid); }});
  absl::Status made;
  if (state->restored()) made = Restore(state->ledger(), broker, sessions, handoff_server);
  shm::FailAt(shm::Point::kRestored);
  if (made.ok()) {
    broker.StartRecording();
    handoff_server.EndDead();
    made = MakeDeclared(config, broker, state->restored());
  }
  if (!made.ok()) return refuse(absl::IsDataLoss(made) ? DoesNotFit(std::string(made.message())) : made);
  rpc::MemoryService memory(broker, sessions);
  rpc::DevicesService devices(broker, sessions);
  rpc::DriversService drivers(broker, sessions);
  rpc::FilesService files(broker, sessions);
  rpc::PtraceService ptrace(broker, sessions);
  rpc::SysvShmService sysv_shm(broker, sessions);
  Reloader reloader(options, config, broker, access);
  rpc::InspectionService inspection(broker, sessions, state->ledger(), events,
                                    {.taken_over = state->restored(), .state_since_ms = state->since(), .limits = [&] {
                                       return LimitsByName(reloader.limits());
                                     }});
  rpc::AdministrationService administration(sessions, events, config.tcp.roles);
  rpc::Calls calls(events, sessions);
  rpc::Server server(loop.get(), *grpc, access, broker.accounts(),
                     {&administration, &devices, &drivers, &files, &inspection, &memory, &ptrace, &sysv_shm}, &calls);
  std::unique_ptr<rpc::TcpServer> tcp;
  std::unique_ptr<Metrics> metrics;
  if (config.tcp.listen) {
    auto listening = rpc::TcpServer::Listen(config.tcp, {&administration, &inspection}, calls, events);
    if (!listening.ok()) return refuse(listening.status());
    tcp = *std::move(listening);
    spdlog::info("inspection and administration over TLS on {}", tcp->endpoint().ToString());
  }
  if (config.metrics.listen) {
    auto listening = Metrics::Listen(*config.metrics.listen, broker, sessions, state->ledger(), events, calls);
    if (!listening.ok()) return refuse(listening.status());
    metrics = *std::move(listening);
    spdlog::info("metrics on http://{}/metrics", metrics->endpoint().ToString());
  }
  reloader.OnHangup(loop.get());

  // Where clients find it, which under a service manager is not where the ledger is.
  const std::string served = std::filesystem::path(handoff->path()).parent_path();
  const std::string what =
      absl::StrCat(served, ": pool of ", segment.bytes().size(), " bytes, profile ", config.profile->name);
  spdlog::info("mapbrokerd {} serves {}", kVersion, what);
  sd_notify(0, absl::StrCat("READY=1\nSTATUS=serves ", what).c_str());
  const int status = sd_event_loop(loop.get());
  events.Close();
  sd_notify(0, "STOPPING=1");
  spdlog::info("mapbrokerd stops");
  // For the next daemon this is as a crash, since a call that is answered while things are taken down could not be
  // recorded any more; and clients wait no longer than they must. SIGINT says that there will be none.
  if (config.keep_state && status != SIGINT) std::_Exit(kStopped);
  handoff_server.SayFarewell();
  return status < 0 ? kFailed : kStopped;
}

}  // namespace
}  // namespace mapbroker

int main(int argc, char** argv) {
  const mapbroker::CommandLine command = mapbroker::ParseCommandLine(argc, argv);
  if (command.exit_status >= 0) return command.exit_status;
  mapbroker::StartLog(command.config.log_level);
  return mapbroker::Serve(command.options, command.config);
}
