#include "daemon/rpc/inspection_service.h"

#include <sys/mman.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/nommu/refusal.h"
#include "daemon/process.h"
#include "daemon/rpc/caller.h"
#include "daemon/rpc/roles.h"
#include "daemon/rpc/status.h"
#include "daemon/version.h"

namespace mapbroker::rpc {
namespace {

// Sessions in one message of a listing.
constexpr std::size_t kPortion = 256;

// Events in one message: few enough that a message stays far below what gRPC accepts, 4 MiB.
constexpr std::size_t kMostEvents = 512;

// How soon it is noticed that a watcher has hung up while nothing happens.
constexpr std::chrono::milliseconds kLook(500);

static_assert(v1::EVENT_KIND_ADMINISTERED == kEventKinds && v1::EventKind_MAX == kEventKinds);

std::int64_t Millis(std::chrono::nanoseconds time) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(time).count();
}

void ToProto(const ListedMapping& listed, v1::MappingRow& row) {
  const nommu::Row& from = listed.row;
  row.set_start(from.start);
  row.set_end(from.end);
  const auto letter = [&](int bit, char name) { return (from.prot & bit) != 0 ? name : '-'; };
  row.set_perms(
      std::string{letter(PROT_READ, 'r'), letter(PROT_WRITE, 'w'), letter(PROT_EXEC, 'x'), from.shared ? 'S' : 'p'});
  row.set_offset(from.offset);
  if (from.file != nullptr) {
    row.set_dev_major(major(from.file->id.device));
    row.set_dev_minor(minor(from.file->id.device));
    row.set_inode(from.file->id.inode);
    row.set_path(listed.path);
  }
  for (const std::int32_t pid : from.pids) row.add_pids(pid);
}

void ToProto(const Event& from, v1::Event& to) {
  to.set_kind(static_cast<v1::EventKind>(static_cast<int>(from.kind) + 1));
  to.set_time_us(std::chrono::duration_cast<std::chrono::microseconds>(from.time.time_since_epoch()).count());
  to.set_session(from.session);
  to.set_pid(from.pid);
  to.set_uid(from.uid);
  to.set_peer(from.peer);
  to.set_call(from.call);
  to.set_errno_value(from.error);
  if (const char* name = strerrorname_np(from.error); from.error != 0 && name != nullptr) to.set_errno_name(name);
  to.set_rule(from.rule);
  to.set_sentence(from.sentence);
  if (from.address) to.set_address(*from.address);
  to.set_length(from.length);
  to.set_path(from.path);
}

bool IsWanted(const Event& event, const v1::WatchRequest& request) {
  if (request.session() != 0 && event.session != request.session()) return false;
  if (request.pid() != 0 && event.pid != request.pid()) return false;
  const auto& kinds = request.kinds();
  return kinds.empty() || std::find(kinds.begin(), kinds.end(), static_cast<int>(event.kind) + 1) != kinds.end();
}

}  // namespace

grpc::Status InspectionService::GetStatus(grpc::ServerContext* context, const v1::GetStatusRequest*,
                                          v1::DaemonStatus* response) {
  const absl::StatusOr<Charge> call = Admit(*context, sessions_);
  if (!call.ok()) return ToGrpc(call.status());
  response->set_version(kVersion);
  response->set_profile(broker_.profile().name);
  response->set_started_ms(Millis(facts_.started.time_since_epoch()));
  response->set_uptime_ms(Millis(std::chrono::steady_clock::now() - facts_.began));
  response->set_taken_over(facts_.taken_over);
  response->set_state_since_ms(facts_.state_since_ms);
  for (const auto& [name, limit] : facts_.limits()) (*response->mutable_limits())[name] = limit;

  const Statistics statistics = broker_.GetStatistics();
  const std::uint64_t mapped = statistics.map.mapped_pages, held = statistics.map.region_pages;
  v1::PoolStatus& pool = *response->mutable_pool();
  pool.set_size(statistics.pool.total);
  pool.set_used(statistics.pool.total - statistics.pool.free - statistics.pool.scrubbing);
  pool.set_free(statistics.pool.free);
  pool.set_scrubbing(statistics.pool.scrubbing);
  pool.set_largest_free_run(statistics.pool.largest_free_run);
  pool.set_prefaulted(statistics.pool.prefaulted);
  pool.set_saved_by_sharing(mapped > held ? (mapped - held) * nommu::kPageSize : 0);
  response->set_regions(statistics.map.regions);
  response->set_mappings(statistics.map.mappings);
  response->set_sessions(sessions_.size());
  response->set_filling(statistics.filling);
  response->set_fills_total(statistics.fills_total);
  response->set_refused_total(events_.told(EventKind::kRefused));
  response->set_watchers(events_.watchers());

  const auto ledger = ledger_.GetStatistics();
  if (!ledger.ok()) return ToGrpc(ledger.status());
  v1::LedgerStatus& to = *response->mutable_ledger();
  to.set_records(ledger->records);
  to.set_bytes(ledger->bytes);
  to.set_waiting(ledger->waiting);
  to.set_deferred(ledger->deferred);
  to.set_failing(ledger->failing);
  return grpc::Status::OK;
}

grpc::Status InspectionService::ListMappings(grpc::ServerContext* context, const v1::ListMappingsRequest* request,
                                             grpc::ServerWriter<v1::ListMappingsResponse>* writer) {
  const absl::StatusOr<Charge> call = Admit(*context, sessions_);
  if (!call.ok()) return ToGrpc(call.status());
  nommu::MemoryMap::Cursor cursor;
  for (;;) {
    const auto portion = broker_.List(request->pid(), cursor);
    if (!portion.ok()) return ToGrpc(portion.status());
    if (portion->empty()) return grpc::Status::OK;
    v1::ListMappingsResponse response;
    for (const ListedMapping& listed : *portion) ToProto(listed, *response.add_rows());
    if (!writer->Write(response)) return grpc::Status::OK;  // the reader has gone
  }
}

grpc::Status InspectionService::ListSessions(grpc::ServerContext* context, const v1::ListSessionsRequest*,
                                             grpc::ServerWriter<v1::ListSessionsResponse>* writer) {
  const absl::StatusOr<Charge> call = Admit(*context, sessions_);
  if (!call.ok()) return ToGrpc(call.status());
  std::uint64_t last = 0;
  for (;;) {
    const auto portion = sessions_.List(last, kPortion);
    if (portion.empty()) return grpc::Status::OK;
    v1::ListSessionsResponse response;
    for (const auto& session : portion) {
      const nommu::SpaceUse use = broker_.UseOf(session->space());
      v1::SessionInfo& to = *response.add_sessions();
      to.set_session(last = session->id());
      to.set_pid(session->peer().pid);
      to.set_uid(session->peer().uid);
      to.set_gid(session->peer().gid);
      to.set_command(CommandOf(session->peer().pid));
      to.set_read_only(session->read_only());
      to.set_traced(session->marked_traced());
      to.set_revoked(session->revoked());
      to.set_address_space(session->space());
      to.set_mappings(use.mappings);
      to.set_mapped(use.mapped_pages * nommu::kPageSize);
      to.set_files(session->CountFiles());
      to.set_calls(session->calls());
    }
    if (!writer->Write(response)) return grpc::Status::OK;  // the reader has gone
  }
}

grpc::Status InspectionService::Watch(grpc::ServerContext* context, const v1::WatchRequest* request,
                                      grpc::ServerWriter<v1::WatchResponse>* writer) {
  std::string who = CertificateNameOf(*context);
  if (who.empty()) {
    const auto caller = CallerOf(*context, sessions_);
    if (!caller.ok()) return ToGrpc(caller.status());
    const uid_t uid = (*caller)->peer().uid;
    if (uid != 0) who = absl::StrCat("uid ", uid);
  }
  const auto watcher = events_.Watch(who);
  if (!watcher.ok()) return ToGrpc(watcher.status());
  writer->Write({});
  while (!context->IsCancelled()) {
    const auto portion = (*watcher)->Next(kMostEvents, std::chrono::steady_clock::now() + kLook);
    if (!portion) return ToGrpc(nommu::Refuse(ECANCELED, "", "the daemon stops"));
    v1::WatchResponse response;
    response.set_lost(portion->lost);
    for (const auto& event : portion->events) {
      if (IsWanted(*event, *request)) ToProto(*event, *response.add_events());
    }
    if ((response.lost() > 0 || response.events_size() > 0) && !writer->Write(response)) break;
  }
  return grpc::Status::OK;
}

}  // namespace mapbroker::rpc
