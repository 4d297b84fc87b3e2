// mapctl maps: the list of mappings in the columns of /proc/maps.
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "client/mapctl/mapctl.h"

namespace mapbroker::mapctl {
namespace {

// Where the path begins: 73 columns on a 64-bit kernel.
constexpr std::size_t kPathColumn = 73;

std::string Line(const MappingRow& row) {
  std::string line = absl::StrFormat("%08x-%08x %s %08x %02x:%02x %d ", row.start, row.end, row.perms, row.offset,
                                     row.dev_major, row.dev_minor, row.inode);
  if (!row.path.empty()) {
    if (line.size() < kPathColumn) line.resize(kPathColumn, ' ');
    // A line is a line: the kernel writes a newline in a path as \012.
    line += absl::StrReplaceAll(row.path, {{"\n", "\\012"}});
  }
  return line;
}

nlohmann::json Object(const MappingRow& row) {
  return {{"start", row.start},
          {"end", row.end},
          {"perms", row.perms},
          {"offset", row.offset},
          {"dev", absl::StrFormat("%02x:%02x", row.dev_major, row.dev_minor)},
          {"inode", row.inode},
          {"path", row.path},
          {"pids", row.pids}};
}

absl::Status Maps(pid_t pid, const Context& context) {
  absl::StatusOr<Inspector> inspector = context.Inspect();
  if (!inspector.ok()) return inspector.status();
  if (!context.json) {
    return inspector->ListMappings(pid, [](const MappingRow& row) {
      std::cout << Line(row) << '\n';
      return std::cout.good();
    });
  }
  // Row by row: a listing may be longer than memory.
  const char* separator = "[";
  const absl::Status status = inspector->ListMappings(pid, [&](const MappingRow& row) {
    // Paths need not be UTF-8; what is not is replaced.
    std::cout << separator << Object(row).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    separator = ",\n";
    return std::cout.good();
  });
  if (status.ok()) std::cout << (*separator == '[' ? "[]\n" : "]\n");
  return status;
}

}  // namespace

void AddMaps(CLI::App& program, Context& context) {
  const auto pid = std::make_shared<pid_t>(0);
  CLI::App* maps = program.add_subcommand("maps", "list all regions of the pool, or one process's mappings");
  maps->add_option("--pid", *pid, "the process")->check(CLI::PositiveNumber);
  maps->callback([pid, &context] { context.exit_status = Report(Maps(*pid, context)); });
}

}  // namespace mapbroker::mapctl
