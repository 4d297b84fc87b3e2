// mapctl map: maps a file or anonymous memory, says where, and may keep it.
#include <signal.h>
#include <sys/mman.h>

#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "client/mapctl/mapctl.h"

namespace mapbroker::mapctl {
namespace {

struct MapArguments {
  std::string file;
  bool anonymous = false;
  std::uint64_t length = 0, offset = 0;
  std::string prot = "r";
  bool shared = false;
  bool private_mapping = false;
  bool hold = false;
};

int ProtOf(const std::string& letters) {
  int prot = PROT_NONE;
  for (const char letter : letters) prot |= letter == 'r' ? PROT_READ : letter == 'w' ? PROT_WRITE : PROT_EXEC;
  return prot;
}

absl::StatusOr<Mapping> MapWith(Client& client, const MapArguments& arguments) {
  MapOptions options{.length = arguments.length,
                     .prot = ProtOf(arguments.prot),
                     .flags = arguments.shared ? MAP_SHARED : MAP_PRIVATE,
                     .offset = arguments.offset};
  if (arguments.anonymous) {
    options.flags |= MAP_ANONYMOUS;
    return client.Map(options);
  }
  const bool writable = arguments.shared && (options.prot & PROT_WRITE) != 0;
  const absl::StatusOr<FileRange> range =
      OpenRange(client, arguments.file, arguments.offset, arguments.length, writable);
  if (!range.ok()) return range.status();
  options.fd = range->fd;
  options.file = range->file ? &*range->file : nullptr;
  options.length = range->length;
  return client.Map(options);
}

void Print(const Mapping& mapping, bool json) {
  if (json) {
    std::cout << nlohmann::json{{"address", mapping.address()},
                                {"length", mapping.length()},
                                {"kind", KindName(mapping.kind())},
                                {"existing", mapping.existing()}}
              << std::endl;
    return;
  }
  std::cout << Address(mapping.address()) << "  " << mapping.length() << " bytes (" << HumanBytes(mapping.length())
            << ")  " << KindName(mapping.kind()) << (mapping.existing() ? ", existed" : ", new") << std::endl;
}

absl::Status Map(const MapArguments& arguments, const Context& context) {
  // Blocked before there are threads, so that the wait below gets the signals and none is lost before it.
  sigset_t stop;
  sigemptyset(&stop);
  sigaddset(&stop, SIGINT);
  sigaddset(&stop, SIGTERM);
  if (arguments.hold) pthread_sigmask(SIG_BLOCK, &stop, nullptr);

  absl::StatusOr<Client> client = context.Connect();
  if (!client.ok()) return client.status();
  absl::StatusOr<Mapping> mapping = MapWith(*client, arguments);
  if (!mapping.ok()) return mapping.status();
  Print(*mapping, context.json);
  if (arguments.hold) {
    int signal;
    sigwait(&stop, &signal);
  }
  return mapping->Unmap();
}

}  // namespace

void AddMap(CLI::App& program, Context& context) {
  const auto arguments = std::make_shared<MapArguments>();
  CLI::App* map = program.add_subcommand("map", "map a file or anonymous memory and print where it lies in the pool");
  auto* file =
      map->add_option("FILE", arguments->file, "a file, or ram:/NAME, dev:/NAME or mnt:/MOUNT/PATH of the daemon");
  auto* anonymous = map->add_flag("--anonymous", arguments->anonymous, "zeroed memory instead of a file");
  file->excludes(anonymous);
  auto* length =
      map->add_option("--length", arguments->length, "bytes, also with K, M, G (default: to the end of the file)")
          ->transform(Bytes());
  anonymous->needs(length);
  map->add_option("--offset", arguments->offset, "bytes from the start of the file, a multiple of the page size")
      ->transform(Bytes());
  map->add_option("--prot", arguments->prot, "r (default), rw, rx or rwx")
      ->check(CLI::IsMember({"r", "rw", "rx", "rwx"}));
  auto* shared = map->add_flag("--shared", arguments->shared, "MAP_SHARED");
  map->add_flag("--private", arguments->private_mapping, "MAP_PRIVATE (default)")->excludes(shared);
  map->add_flag("--hold", arguments->hold, "keep it until SIGINT or SIGTERM");
  map->callback([arguments, &context] {
    if (arguments->file.empty() && !arguments->anonymous) throw CLI::ValidationError("map", "give FILE or --anonymous");
    context.exit_status = Report(Map(*arguments, context));
  });
}

}  // namespace mapbroker::mapctl
