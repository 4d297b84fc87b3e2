// mapctl peek, poke, trace: another process's memory, and whether it shares any.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "client/mapctl/mapctl.h"
#include "mapbroker/error.h"

namespace mapbroker::mapctl {
namespace {

// Bytes.
constexpr std::size_t kPart = 1 << 20;

struct PtraceArguments {
  pid_t pid = 0;
  std::uint64_t address = 0, length = 0;
  bool off = false;
};

absl::Status Peek(const PtraceArguments& arguments, const Context& context) {
  absl::StatusOr<Client> client = context.Connect();
  if (!client.ok()) return client.status();
  // By parts: what is asked for may be more than there is, here and there.
  std::vector<std::byte> part(std::min<std::uint64_t>(arguments.length, kPart));
  std::string all;
  for (std::uint64_t done = 0; done < arguments.length;) {
    const auto wanted = std::span(part).first(std::min<std::uint64_t>(arguments.length - done, part.size()));
    const absl::StatusOr<std::size_t> count = client->Peek(arguments.pid, arguments.address + done, wanted);
    if (done > 0 && ErrnoOf(count.status()) == EIO) break;  // there the mapping ends
    if (!count.ok()) return count.status();
    if (context.json) {
      all.append(reinterpret_cast<const char*>(part.data()), *count);
    } else if (absl::Status status = WriteAll(STDOUT_FILENO, wanted.first(*count)); !status.ok()) {
      return status;
    }
    done += *count;
    if (*count < wanted.size()) break;
  }
  if (context.json) {
    std::cout << nlohmann::json{{"length", all.size()}, {"base64", absl::Base64Escape(all)}} << '\n';
  }
  return absl::OkStatus();
}

absl::Status Poke(const PtraceArguments& arguments, const Context& context) {
  absl::StatusOr<Client> client = context.Connect();
  if (!client.ok()) return client.status();
  const std::string bytes(std::istreambuf_iterator<char>(std::cin), {});
  const absl::StatusOr<std::size_t> count =
      client->Poke(arguments.pid, arguments.address, std::as_bytes(std::span(bytes)));
  if (!count.ok()) return count.status();
  if (context.json) {
    std::cout << nlohmann::json{{"length", *count}} << '\n';
  } else if (*count < bytes.size()) {
    std::cerr << "mapctl: only " << *count << " of " << bytes.size() << " bytes were written: there the mapping ends\n";
  }
  return absl::OkStatus();
}

absl::Status Trace(const PtraceArguments& arguments, const Context& context) {
  absl::StatusOr<Client> client = context.Connect();
  if (!client.ok()) return client.status();
  return client->SetTraced(arguments.pid, !arguments.off);
}

}  // namespace

void AddPtrace(CLI::App& program, Context& context) {
  const auto arguments = std::make_shared<PtraceArguments>();
  const auto add = [&](const char* name, const char* about,
                       absl::Status (*run)(const PtraceArguments&, const Context&)) {
    CLI::App* command = program.add_subcommand(name, about);
    command->add_option("PID", arguments->pid, "a process that has a session")->required();
    command->callback([arguments, &context, run] { context.exit_status = Report(run(*arguments, context)); });
    return command;
  };
  CLI::App* peek = add("peek", "write a process's memory to standard output, to the end of its mapping at most", Peek);
  CLI::App* poke = add("poke", "write standard input into a process's memory", Poke);
  for (CLI::App* command : {peek, poke}) {
    command->add_option("ADDRESS", arguments->address, "pool address, as `mapctl maps` shows it")
        ->required()
        ->transform(PoolAddress());
  }
  peek->add_option("LENGTH", arguments->length, "bytes")->required()->transform(Bytes());
  CLI::App* trace = add("trace", "make the process's private mappings copies of its own from now on", Trace);
  trace->add_flag("--off", arguments->off, "let them be shared again");
}

}  // namespace mapbroker::mapctl
