// mapctl read: writes what a mapping of a file holds to stdout.
#include <signal.h>
#include <unistd.h>

#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "client/mapctl/mapctl.h"

namespace mapbroker::mapctl {
namespace {

struct ReadArguments {
  std::string file;
  std::uint64_t length = 0, offset = 0;
};

absl::Status Read(const ReadArguments& arguments, const Context& context) {
  absl::StatusOr<Client> client = context.Connect();
  if (!client.ok()) return client.status();
  const absl::StatusOr<FileRange> range = OpenRange(*client, arguments.file, arguments.offset, arguments.length);
  if (!range.ok()) return range.status();
  absl::StatusOr<Mapping> mapping = client->Map({.length = range->length,
                                                 .fd = range->fd,
                                                 .file = range->file ? &*range->file : nullptr,
                                                 .offset = range->offset});
  if (!mapping.ok()) return mapping.status();
  const std::span<const std::byte> bytes = mapping->bytes().first(range->length);
  if (!context.json) return WriteAll(STDOUT_FILENO, bytes);
  const absl::string_view contents(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  std::cout << nlohmann::json{{"address", mapping->address()},
                              {"length", range->length},
                              {"base64", absl::Base64Escape(contents)}}
            << '\n';
  return absl::OkStatus();
}

}  // namespace

void AddRead(CLI::App& program, Context& context) {
  const auto arguments = std::make_shared<ReadArguments>();
  CLI::App* read = program.add_subcommand("read", "write what a shared copy of FILE holds to standard output");
  read->add_option("FILE", arguments->file, "a file, or ram:/NAME, dev:/NAME or mnt:/MOUNT/PATH of the daemon")
      ->required();
  read->add_option("--length", arguments->length, "bytes (default: to the end of the file)")->transform(Bytes());
  read->add_option("--offset", arguments->offset, "bytes from the start of the file, a multiple of the page size")
      ->transform(Bytes());
  read->callback([arguments, &context] {
    // A reader that has seen enough ends the program quietly with an error of write.
    signal(SIGPIPE, SIG_IGN);
    context.exit_status = Report(Read(*arguments, context));
  });
}

}  // namespace mapbroker::mapctl
