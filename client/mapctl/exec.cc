// mapctl exec: runs a program out of the pool, or shows how it would be loaded.
#include "mapbroker/exec.h"

#include <sys/mman.h>
#include <unistd.h>

#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/str_format.h"
#include "client/mapctl/mapctl.h"

namespace mapbroker::mapctl {
namespace {

struct ExecArguments {
  std::uint64_t stack_size = 0;
  bool dry_run = false;
};

// For how many instances a dry run says what they need.
constexpr std::uint64_t kInstances[] = {1, 10, 100};

const char* MemoryName(ProgramMemory memory) {
  switch (memory) {
    case ProgramMemory::kShared:
      return "shared";
    case ProgramMemory::kCopied:
      return "copied";
    case ProgramMemory::kZeroed:
      return "zeroed";
  }
  return "?";
}

std::string Perms(int prot) {
  return {(prot & PROT_READ) != 0 ? 'r' : '-', (prot & PROT_WRITE) != 0 ? 'w' : '-',
          (prot & PROT_EXEC) != 0 ? 'x' : '-'};
}

std::uint64_t BytesFor(const LoadMap& map, std::uint64_t instances) {
  return map.shared_bytes() + instances * map.instance_bytes();
}

void PrintJson(const LoadMap& map) {
  nlohmann::json mappings = nlohmann::json::array(), pieces = nlohmann::json::array();
  for (const ProgramMapping& mapping : map.mappings) {
    mappings.push_back({{"memory", MemoryName(mapping.memory)},
                        {"perms", Perms(mapping.prot)},
                        {"offset", mapping.offset},
                        {"length", mapping.length},
                        {"file_length", mapping.file_length}});
  }
  for (const ProgramPiece& piece : map.pieces) {
    pieces.push_back({{"name", piece.name},
                      {"address", piece.address},
                      {"length", piece.length},
                      {"perms", Perms(piece.prot)},
                      {"memory", MemoryName(map.mappings[piece.mapping].memory)},
                      {"mapping", piece.mapping},
                      {"start", piece.start}});
  }
  nlohmann::json bytes;
  for (const std::uint64_t instances : kInstances) bytes[std::to_string(instances)] = BytesFor(map, instances);
  std::cout << nlohmann::json{{"format", map.format},
                              {"machine", map.machine},
                              {"mappings", mappings},
                              {"pieces", pieces},
                              {"shared_bytes", map.shared_bytes()},
                              {"instance_bytes", map.instance_bytes()},
                              {"bytes_for_instances", bytes},
                              {"notes", map.notes}}
            << '\n';
}

void PrintTable(const LoadMap& map) {
  std::cout << map.format << (map.machine.empty() ? "" : " for ") << map.machine << '\n'
            << absl::StreamFormat("%-8s %-10s %12s  %-5s  %-7s %s\n", "piece", "address", "bytes", "perms", "memory",
                                  "file");
  for (const ProgramPiece& piece : map.pieces) {
    const ProgramMapping& mapping = map.mappings[piece.mapping];
    std::cout << absl::StreamFormat("%-8s %-10s %12d  %-5s  %-7s", piece.name, Address(piece.address), piece.length,
                                    Perms(piece.prot), MemoryName(mapping.memory));
    if (mapping.memory != ProgramMemory::kZeroed && piece.start < mapping.file_length) {
      std::cout << " from " << Address(mapping.offset + piece.start);
    }
    std::cout << '\n';
  }
  for (const std::string& note : map.notes) std::cout << "note: " << note << '\n';
  std::cout << absl::StreamFormat("shared by all %d bytes (%s), for each instance %d bytes (%s)\n", map.shared_bytes(),
                                  HumanBytes(map.shared_bytes()), map.instance_bytes(),
                                  HumanBytes(map.instance_bytes()));
  for (const std::uint64_t instances : kInstances) {
    const std::uint64_t bytes = BytesFor(map, instances);
    std::cout << absl::StreamFormat("%3d instance%s %12d bytes (%s)\n", instances, instances == 1 ? " " : "s", bytes,
                                    HumanBytes(bytes));
  }
}

absl::Status Run(const ExecArguments& arguments, std::vector<std::string> command, const Context& context) {
  const std::string path = command.front();
  const ExecOptions options{.stack_size = arguments.stack_size, .runtime_dir = context.runtime_dir};
  if (arguments.dry_run) {
    const absl::StatusOr<LoadMap> map = PlanExec(path, options);
    if (!map.ok()) return map.status();
    context.json ? PrintJson(*map) : PrintTable(*map);
    return absl::OkStatus();
  }
  std::vector<char*> argv;
  for (std::string& word : command) argv.push_back(word.data());
  argv.push_back(nullptr);
  return Exec(path, argv.data(), environ, options);
}

}  // namespace

void AddExec(CLI::App& program, Context& context) {
  const auto arguments = std::make_shared<ExecArguments>();
  CLI::App* exec = program.add_subcommand(
      "exec",
      "run the program FILE [ARGS...] out of the pool, its text shared by all who run it so (build it with "
      "-static-pie); options come before FILE");
  // What follows FILE is the program's, whatever it looks like.
  exec->fallthrough(false)->prefix_command();
  exec->add_option("--stack", arguments->stack_size, "bytes of stack, also with K, M, G (default: what FILE asks for)")
      ->transform(Bytes());
  exec->add_flag("--dry-run", arguments->dry_run, "print how FILE would be loaded and what memory that takes");
  exec->add_flag("--json", context.json, "print JSON for programs, with --dry-run");
  exec->callback([arguments, &context, exec] {
    std::vector<std::string> command = exec->remaining();
    if (!command.empty() && command.front() == "--") command.erase(command.begin());
    if (command.empty()) throw CLI::ValidationError("exec", "give FILE");
    if (command.front().starts_with('-')) {
      throw CLI::ValidationError("exec", command.front() + " is no option of it: FILE comes first, then its ARGS");
    }
    context.exit_status = Report(Run(*arguments, std::move(command), context));
  });
}

}  // namespace mapbroker::mapctl
