// mapctl shm: System V shared memory segments of the pool.
#include <sys/shm.h>

#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "client/mapctl/mapctl.h"

namespace mapbroker::mapctl {
namespace {

struct ShmArguments {
  int id = 0;
  std::string key;
  std::uint64_t size = 0;
  std::string mode = "0600";
};

absl::Status List(const ShmArguments&, const Context& context) {
  absl::StatusOr<Client> client = context.Connect();
  if (!client.ok()) return client.status();
  nlohmann::json objects = nlohmann::json::array();
  if (!context.json) std::cout << "id      key         mode  user   bytes             nattch  status\n";
  const absl::Status status = client->ListShmSegments([&](const ShmSegment& segment) {
    if (context.json) {
      objects.push_back({{"id", segment.id},
                         {"key", segment.key},
                         {"size", segment.size},
                         {"uid", segment.uid},
                         {"gid", segment.gid},
                         {"mode", segment.mode},
                         {"nattch", segment.nattch},
                         {"cpid", segment.cpid},
                         {"lpid", segment.lpid},
                         {"marked_destroyed", segment.marked_destroyed}});
    } else {
      std::cout << absl::StreamFormat("%-7d 0x%08x  %04o  %-6d %-17d %-7d %s\n", segment.id, segment.key, segment.mode,
                                      segment.uid, segment.size, segment.nattch,
                                      segment.marked_destroyed ? "dest" : "");
    }
    return std::cout.good();
  });
  if (status.ok() && context.json) std::cout << objects << '\n';
  return status;
}

absl::Status Create(const ShmArguments& arguments, const Context& context) {
  absl::StatusOr<Client> client = context.Connect();
  if (!client.ok()) return client.status();
  const int key = arguments.key.empty() ? IPC_PRIVATE : static_cast<int>(std::stoul(arguments.key, nullptr, 0));
  const int mode = static_cast<int>(std::stoul(arguments.mode, nullptr, 8));
  const absl::StatusOr<int> id = client->Shmget(key, arguments.size, IPC_CREAT | IPC_EXCL | mode);
  if (!id.ok()) return id.status();
  if (context.json) {
    std::cout << nlohmann::json{{"id", *id}} << '\n';
  } else {
    std::cout << *id << '\n';
  }
  return absl::OkStatus();
}

absl::Status Remove(const ShmArguments& arguments, const Context& context) {
  absl::StatusOr<Client> client = context.Connect();
  return client.ok() ? client->ShmRemove(arguments.id) : client.status();
}

}  // namespace

void AddShm(CLI::App& program, Context& context) {
  const auto arguments = std::make_shared<ShmArguments>();
  CLI::App* shm = program.add_subcommand("shm", "System V shared memory segments")->require_subcommand(1);
  const auto add = [&](const char* name, const char* about, absl::Status (*run)(const ShmArguments&, const Context&)) {
    return shm->add_subcommand(name, about)->callback([arguments, &context, run] {
      context.exit_status = Report(run(*arguments, context));
    });
  };
  add("ls", "list segments", List);
  CLI::App* create = add("create", "make a segment and print its number", Create);
  create->add_option("SIZE", arguments->size, "bytes, also with K, M, G")->required()->transform(Bytes());
  create->add_option("--key", arguments->key, "a number, also 0x in hexadecimal (default: IPC_PRIVATE)")
      ->check(CLI::Number);
  create->add_option("--mode", arguments->mode, "permission bits, octal (default 0600)")->check(OctalMode());
  add("rm", "remove a segment; it goes with its last detach", Remove)
      ->add_option("ID", arguments->id, "the segment's number")
      ->required();
}

}  // namespace mapbroker::mapctl
