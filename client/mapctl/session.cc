// mapctl session and mapctl log-level: what an administrator does.
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/str_format.h"
#include "client/mapctl/mapctl.h"

namespace mapbroker::mapctl {
namespace {

absl::Status List(const Context& context) {
  absl::StatusOr<Inspector> inspector = context.Inspect();
  if (!inspector.ok()) return inspector.status();
  nlohmann::json listed = nlohmann::json::array();
  if (!context.json) {
    std::cout << absl::StreamFormat("%7s %7s %7s %8s %12s %6s %9s  %s\n", "SESSION", "PID", "UID", "MAPPINGS", "MAPPED",
                                    "FILES", "CALLS", "COMMAND");
  }
  const absl::Status status = inspector->ListSessions([&](const SessionRow& row) {
    if (context.json) {
      listed.push_back(Object(row));
      return true;
    }
    std::cout << absl::StreamFormat("%7d %7d %7d %8d %12s %6d %9d  %s", row.session, row.pid, row.uid, row.mappings,
                                    HumanBytes(row.mapped), row.files, row.calls, Printable(row.command))
              << Marks(row) << '\n';
    return std::cout.good();
  });
  if (status.ok() && context.json) {
    std::cout << listed.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << '\n';
  }
  return status;
}

absl::Status End(std::uint64_t session, bool kill, const Context& context) {
  absl::StatusOr<Inspector> inspector = context.Inspect();
  if (!inspector.ok()) return inspector.status();
  return inspector->EndSession(session, kill);
}

absl::Status SetLogLevel(const std::string& level, const Context& context) {
  absl::StatusOr<Inspector> inspector = context.Inspect();
  if (!inspector.ok()) return inspector.status();
  const absl::StatusOr<std::string> previous = inspector->SetLogLevel(level);
  if (!previous.ok()) return previous.status();
  if (context.json) {
    std::cout << nlohmann::json{{"previous", *previous}} << '\n';
  } else {
    std::cout << "the level was " << *previous << '\n';
  }
  return absl::OkStatus();
}

}  // namespace

nlohmann::json Object(const SessionRow& row) {
  return {{"session", row.session},   {"pid", row.pid},         {"uid", row.uid},
          {"gid", row.gid},           {"command", row.command}, {"read_only", row.read_only},
          {"traced", row.traced},     {"revoked", row.revoked}, {"address_space", row.address_space},
          {"mappings", row.mappings}, {"mapped", row.mapped},   {"files", row.files},
          {"calls", row.calls}};
}

std::string Marks(const SessionRow& row) {
  std::string marks;
  if (row.read_only) marks += " (read-only)";
  if (row.traced) marks += " (traced)";
  if (row.revoked) marks += " (revoked)";
  return marks;
}

void AddSession(CLI::App& program, Context& context) {
  CLI::App* session = program.add_subcommand("session", "list the sessions, or end one");
  session->require_subcommand(1);
  session->add_subcommand("ls", "list the sessions")->callback([&context] {
    context.exit_status = Report(List(context));
  });
  const auto number = std::make_shared<std::uint64_t>(0);
  const auto kill = std::make_shared<bool>(false);
  CLI::App* end = session->add_subcommand(
      "end", "refuse all that a session asks; its memory comes back when its process ends (for administrators)");
  end->add_option("SESSION", *number, "the number that `mapctl session ls` shows")
      ->required()
      ->check(CLI::PositiveNumber);
  end->add_flag("--kill", *kill, "kill its process");
  end->callback([number, kill, &context] { context.exit_status = Report(End(*number, *kill, context)); });

  const auto level = std::make_shared<std::string>();
  CLI::App* log_level = program.add_subcommand("log-level", "set the daemon's log level (for administrators)");
  log_level->add_option("LEVEL", *level, "trace, debug, info, warning, error, critical or off")->required();
  log_level->callback([level, &context] { context.exit_status = Report(SetLogLevel(*level, context)); });
}

}  // namespace mapbroker::mapctl
