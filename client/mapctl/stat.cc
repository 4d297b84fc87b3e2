// mapctl stat: the pool in numbers.
#include <iostream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "client/mapctl/mapctl.h"

namespace mapbroker::mapctl {
namespace {

absl::Status Stat(const Context& context) {
  absl::StatusOr<Client> client = context.Connect();
  if (!client.ok()) return client.status();
  const absl::StatusOr<PoolStatistics> now = client->Statistics();
  if (!now.ok()) return now.status();
  if (context.json) {
    std::cout << nlohmann::json{{"pool_size", now->pool_size},
                                {"used", now->used},
                                {"free", now->free},
                                {"scrubbing", now->scrubbing},
                                {"largest_free_run", now->largest_free_run},
                                {"regions", now->regions},
                                {"mappings", now->mappings},
                                {"sessions", now->sessions},
                                {"saved_by_sharing", now->saved_by_sharing},
                                {"filling", now->filling},
                                {"fills_total", now->fills_total},
                                {"prefaulted", now->prefaulted},
                                {"profile", now->profile}}
              << '\n';
    return absl::OkStatus();
  }
  const auto bytes = [](const char* name, std::uint64_t amount) {
    std::cout << absl::StreamFormat("%-18s %16d bytes  %s\n", name, amount, HumanBytes(amount));
  };
  const auto count = [](const char* name, std::uint64_t amount) {
    std::cout << absl::StreamFormat("%-18s %16d\n", name, amount);
  };
  bytes("pool size", now->pool_size);
  bytes("used", now->used);
  bytes("free", now->free);
  bytes("being scrubbed", now->scrubbing);
  bytes("largest free run", now->largest_free_run);
  bytes("saved by sharing", now->saved_by_sharing);
  bytes("prefaulted", now->prefaulted);
  count("regions", now->regions);
  count("mappings", now->mappings);
  count("sessions", now->sessions);  // this command's own included
  count("being filled", now->filling);
  count("fills so far", now->fills_total);
  std::cout << absl::StreamFormat("%-18s %16s\n", "profile", now->profile);
  return absl::OkStatus();
}

}  // namespace

void AddStat(CLI::App& program, Context& context) {
  program.add_subcommand("stat", "show the pool in numbers")->callback([&context] {
    context.exit_status = Report(Stat(context));
  });
}

}  // namespace mapbroker::mapctl
