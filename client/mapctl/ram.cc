// mapctl ram: the ram files of the pool.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/mapctl/mapctl.h"
#include "shm_backend/unique_fd.h"

namespace mapbroker::mapctl {
namespace {

// Bytes of one read or write between a descriptor and a ram file.
constexpr std::size_t kChunk = 1 << 20;

struct RamArguments {
  std::string name, file, prefix;
  std::uint64_t size = 0;
  std::string mode = "0600";
};

// "/models/a" and "ram:/models/a" mean the same to a person.
std::string FullName(const std::string& name) {
  return name.rfind("ram:", 0) == 0 ? name : absl::StrCat("ram:", name.rfind('/', 0) == 0 ? "" : "/", name);
}

absl::Status HostFault(const std::string& file) {
  return absl::FailedPreconditionError(absl::StrCat(file, ": ", strerrorname_np(errno), ": ", std::strerror(errno)));
}

nlohmann::json Object(const FileStat& stat) {
  return {
      {"name", stat.name}, {"inode", stat.inode},         {"uid", stat.uid},  {"gid", stat.gid}, {"mode", stat.mode},
      {"size", stat.size}, {"allocated", stat.allocated}, {"runs", stat.runs}};
}

absl::Status List(const RamArguments& arguments, const Context& context) {
  absl::StatusOr<Client> client = context.Connect();
  if (!client.ok()) return client.status();
  nlohmann::json objects = nlohmann::json::array();
  if (!context.json) std::cout << "mode  user   group  bytes             runs  name\n";
  const std::string prefix = arguments.prefix.empty() ? "" : FullName(arguments.prefix);
  const absl::Status status = client->ListFiles(prefix, [&](const FileStat& stat) {
    if (context.json) {
      objects.push_back(Object(stat));
    } else {
      std::cout << absl::StreamFormat("%04o  %-6d %-6d %-17d %-5d %s\n", stat.mode, stat.uid, stat.gid, stat.size,
                                      stat.runs, stat.name);
    }
    return std::cout.good();
  });
  if (status.ok() && context.json) {
    std::cout << objects.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << '\n';
  }
  return status;
}

// A file of known size goes into one run, which can be mapped shared; a pipe is written piece by piece.
absl::Status Put(const RamArguments& arguments, const Context& context) {
  const bool from_stdin = arguments.file == "-";
  const shm::UniqueFd opened(from_stdin ? -1 : open(arguments.file.c_str(), O_RDONLY | O_CLOEXEC));
  if (!from_stdin && !opened) return HostFault(arguments.file);
  const int fd = from_stdin ? STDIN_FILENO : opened.get();
  struct stat stat;
  if (fstat(fd, &stat) != 0) return HostFault(arguments.file);

  absl::StatusOr<Client> client = context.Connect();
  if (!client.ok()) return client.status();
  const auto mode = static_cast<mode_t>(std::stoul(arguments.mode, nullptr, 8));
  absl::StatusOr<File> file = client->Open(FullName(arguments.name), O_RDWR | O_CREAT | O_TRUNC, mode);
  if (!file.ok()) return file.status();
  if (S_ISREG(stat.st_mode) && stat.st_size > 0) {
    if (absl::Status status = file->Ftruncate(static_cast<std::uint64_t>(stat.st_size)); !status.ok()) return status;
  }
  std::vector<std::byte> chunk(kChunk);
  std::uint64_t offset = 0;
  for (;;) {
    const ssize_t count = read(fd, chunk.data(), chunk.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return HostFault(arguments.file);
    if (count == 0) break;
    const auto bytes = std::span(chunk).first(static_cast<std::size_t>(count));
    if (absl::Status status = file->Pwrite(bytes, offset); !status.ok()) return status;
    offset += bytes.size();
  }
  const absl::StatusOr<FileStat> made = file->Stat();
  if (!made.ok()) return made.status();
  if (context.json) {
    std::cout << Object(*made) << '\n';
  } else {
    std::cout << made->name << "  " << made->size << " bytes in " << made->runs << (made->runs == 1 ? " run" : " runs")
              << '\n';
  }
  return absl::OkStatus();
}

absl::Status Get(const RamArguments& arguments, const Context& context) {
  absl::StatusOr<Client> client = context.Connect();
  if (!client.ok()) return client.status();
  const absl::StatusOr<File> file = client->Open(FullName(arguments.name), O_RDONLY);
  if (!file.ok()) return file.status();
  const bool to_stdout = arguments.file.empty() || arguments.file == "-";
  const shm::UniqueFd opened(to_stdout ? -1
                                       : open(arguments.file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  if (!to_stdout && !opened) return HostFault(arguments.file);
  const int fd = to_stdout ? STDOUT_FILENO : opened.get();
  std::vector<std::byte> chunk(kChunk);
  for (std::uint64_t offset = 0;;) {
    const absl::StatusOr<std::size_t> count = file->Pread(chunk, offset);
    if (!count.ok()) return count.status();
    if (*count == 0) return absl::OkStatus();
    if (absl::Status status = WriteAll(fd, std::span(chunk).first(*count)); !status.ok()) return status;
    offset += *count;
  }
}

absl::Status Truncate(const RamArguments& arguments, const Context& context) {
  absl::StatusOr<Client> client = context.Connect();
  if (!client.ok()) return client.status();
  const auto mode = static_cast<mode_t>(std::stoul(arguments.mode, nullptr, 8));
  const absl::StatusOr<File> file = client->Open(FullName(arguments.name), O_RDWR | O_CREAT, mode);
  return file.ok() ? file->Ftruncate(arguments.size) : file.status();
}

absl::Status Remove(const RamArguments& arguments, const Context& context) {
  absl::StatusOr<Client> client = context.Connect();
  return client.ok() ? client->Unlink(FullName(arguments.name)) : client.status();
}

}  // namespace

void AddRam(CLI::App& program, Context& context) {
  const auto arguments = std::make_shared<RamArguments>();
  CLI::App* ram = program.add_subcommand("ram", "files whose contents are pool memory")->require_subcommand(1);
  const auto add = [&](const char* name, const char* about, absl::Status (*run)(const RamArguments&, const Context&)) {
    return ram->add_subcommand(name, about)->callback([arguments, &context, run] {
      context.exit_status = Report(run(*arguments, context));
    });
  };
  const auto add_mode = [&](CLI::App* command) {
    command->add_option("--mode", arguments->mode, "permission bits of a new file, octal (default 0600)")
        ->check(OctalMode());
  };
  CLI::App* list = add("ls", "list ram files", List);
  list->add_option("PREFIX", arguments->prefix, "only names that begin with it");
  CLI::App* put = add("put", "copy a file into a ram file, made or overwritten", Put);
  put->add_option("FILE", arguments->file, "the file; - is standard input")->required();
  put->add_option("NAME", arguments->name, "the ram file, like ram:/name")->required();
  add_mode(put);
  CLI::App* get = add("get", "copy a ram file out", Get);
  get->add_option("NAME", arguments->name, "the ram file")->required();
  get->add_option("FILE", arguments->file, "the file to write (default: standard output)");
  CLI::App* truncate = add("truncate", "set a ram file's size; made if there is none", Truncate);
  truncate->add_option("NAME", arguments->name, "the ram file")->required();
  truncate->add_option("SIZE", arguments->size, "bytes, also with K, M, G")->required()->transform(Bytes());
  add_mode(truncate);
  add("rm", "unlink a ram file", Remove)->add_option("NAME", arguments->name, "the ram file")->required();
}

}  // namespace mapbroker::mapctl
