// mapctl who: which processes hold a file or an address.
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/mapctl/mapctl.h"

namespace mapbroker::mapctl {
namespace {

// Which rows are meant: of a file of the daemon by its name, of a host file, whatever its path, or at an address.
absl::StatusOr<std::function<bool(const MappingRow&)>> Meant(const std::string& what, bool remote) {
  for (const char* scheme : {"ram:", "dev:", "mnt:"}) {
    if (absl::StartsWith(what, scheme)) return [what](const MappingRow& row) { return row.path == what; };
  }
  // Files of the daemon's machine are known here by their paths alone.
  if (remote && absl::StartsWith(what, "/")) return [what](const MappingRow& row) { return row.path == what; };
  struct stat file;
  if (remote || stat(what.c_str(), &file) != 0) {
    if (std::uint64_t address; ParsePoolAddress(what, address)) {
      return [address](const MappingRow& row) { return row.start <= address && address < row.end; };
    }
    return absl::FailedPreconditionError(absl::StrCat(what, " is neither a pool address nor a file"));
  }
  return [file](const MappingRow& row) {
    return row.inode == file.st_ino && row.dev_major == major(file.st_dev) && row.dev_minor == minor(file.st_dev);
  };
}

absl::Status Who(const std::string& what, const Context& context) {
  const auto meant = Meant(what, /*remote=*/!context.remote.server.empty());
  if (!meant.ok()) return meant.status();
  absl::StatusOr<Inspector> inspector = context.Inspect();
  if (!inspector.ok()) return inspector.status();
  std::map<pid_t, std::string> commands;
  absl::Status status = inspector->ListSessions([&](const SessionRow& session) {
    commands[session.pid] = session.command;
    return true;
  });
  if (!status.ok()) return status;
  nlohmann::json holders = nlohmann::json::array();
  status = inspector->ListMappings(0, [&](const MappingRow& row) {
    if (!(*meant)(row)) return true;
    for (auto pid = row.pids.begin(); pid != row.pids.end();) {
      const auto next = std::upper_bound(pid, row.pids.end(), *pid);
      holders.push_back({{"pid", *pid},
                         {"command", commands.contains(*pid) ? commands[*pid] : "?"},
                         {"mappings", next - pid},
                         {"start", row.start},
                         {"end", row.end},
                         {"perms", row.perms},
                         {"path", row.path}});
      pid = next;
    }
    return true;
  });
  if (!status.ok()) return status;
  if (context.json) {
    std::cout << holders.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << '\n';
    return absl::OkStatus();
  }
  for (const auto& holder : holders) {
    std::cout << absl::StrFormat("%7d %-15s %08x-%08x %s", holder["pid"].get<pid_t>(),
                                 holder["command"].get<std::string>(), holder["start"].get<std::uint64_t>(),
                                 holder["end"].get<std::uint64_t>(), holder["perms"].get<std::string>());
    if (holder["mappings"] > 1) std::cout << " x" << holder["mappings"];
    std::cout << '\n';
  }
  return absl::OkStatus();
}

}  // namespace

void AddWho(CLI::App& program, Context& context) {
  const auto what = std::make_shared<std::string>();
  CLI::App* who = program.add_subcommand("who", "list the processes that hold a file or an address");
  who->add_option("WHAT", *what,
                  "a pool address as `mapctl maps` shows it, a file, or ram:/NAME, dev:/NAME or mnt:/MOUNT/PATH")
      ->required();
  who->callback([what, &context] { context.exit_status = Report(Who(*what, context)); });
}

}  // namespace mapbroker::mapctl
