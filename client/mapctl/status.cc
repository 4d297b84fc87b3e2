// mapctl status: the daemon in numbers.
#include <iostream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "client/mapctl/mapctl.h"

namespace mapbroker::mapctl {
namespace {

std::string When(std::chrono::system_clock::time_point time) {
  return absl::FormatTime("%Y-%m-%d %H:%M:%S", absl::FromChrono(time), absl::LocalTimeZone());
}

std::int64_t Seconds(std::chrono::system_clock::time_point time) { return absl::ToUnixSeconds(absl::FromChrono(time)); }

nlohmann::json Object(const DaemonStatus& now) {
  return {{"version", now.version},
          {"profile", now.pool.profile},
          {"started", Seconds(now.started)},
          {"uptime_ms", now.uptime.count()},
          {"taken_over", now.taken_over},
          {"state_since", Seconds(now.state_since)},
          {"pool_size", now.pool.pool_size},
          {"used", now.pool.used},
          {"free", now.pool.free},
          {"scrubbing", now.pool.scrubbing},
          {"largest_free_run", now.pool.largest_free_run},
          {"prefaulted", now.pool.prefaulted},
          {"saved_by_sharing", now.pool.saved_by_sharing},
          {"regions", now.pool.regions},
          {"mappings", now.pool.mappings},
          {"sessions", now.pool.sessions},
          {"filling", now.pool.filling},
          {"fills_total", now.pool.fills_total},
          {"refused_total", now.refused_total},
          {"watchers", now.watchers},
          {"ledger",
           {{"records", now.ledger.records},
            {"bytes", now.ledger.bytes},
            {"waiting", now.ledger.waiting},
            {"deferred", now.ledger.deferred},
            {"failing", now.ledger.failing}}},
          {"limits", now.limits}};
}

void Print(const DaemonStatus& now) {
  const auto text = [](const char* name, const std::string& value) {
    std::cout << absl::StreamFormat("%-18s %s\n", name, value);
  };
  const auto bytes = [](const char* name, std::uint64_t amount) {
    std::cout << absl::StreamFormat("%-18s %20d bytes  %s\n", name, amount, HumanBytes(amount));
  };
  const auto count = [](const char* name, std::uint64_t amount) {
    std::cout << absl::StreamFormat("%-18s %20d\n", name, amount);
  };
  text("version", now.version + ", profile " + now.pool.profile);
  text("running since", When(now.started) + ", for " +
                            absl::FormatDuration(absl::Trunc(absl::FromChrono(now.uptime), absl::Seconds(1))));
  text("state", (now.taken_over ? "taken over, of " : "made at the start, ") + When(now.state_since));
  bytes("pool size", now.pool.pool_size);
  bytes("used", now.pool.used);
  bytes("free", now.pool.free);
  bytes("being scrubbed", now.pool.scrubbing);
  bytes("largest free run", now.pool.largest_free_run);
  bytes("prefaulted", now.pool.prefaulted);
  bytes("saved by sharing", now.pool.saved_by_sharing);
  count("regions", now.pool.regions);
  count("mappings", now.pool.mappings);
  count("sessions", now.pool.sessions);  // this command's own included
  count("being filled", now.pool.filling);
  count("fills so far", now.pool.fills_total);
  count("calls refused", now.refused_total);
  count("watchers", now.watchers);
  text("ledger", now.ledger.failing ? "CANNOT BE WRITTEN: is its file system full?" : "is written");
  count("ledger records", now.ledger.records);
  bytes("ledger in use", now.ledger.bytes);
  count("changes waiting", now.ledger.waiting);
  count("changes deferred", now.ledger.deferred);
  for (const auto& [name, limit] : now.limits) count(name.c_str(), limit);
}

absl::Status Status(const Context& context) {
  absl::StatusOr<Inspector> inspector = context.Inspect();
  if (!inspector.ok()) return inspector.status();
  const absl::StatusOr<DaemonStatus> now = inspector->Status();
  if (!now.ok()) return now.status();
  if (context.json) {
    std::cout << Object(*now) << '\n';
  } else {
    Print(*now);
  }
  return absl::OkStatus();
}

}  // namespace

void AddStatus(CLI::App& program, Context& context) {
  program.add_subcommand("status", "show the daemon in numbers")->callback([&context] {
    context.exit_status = Report(Status(context));
  });
}

}  // namespace mapbroker::mapctl
