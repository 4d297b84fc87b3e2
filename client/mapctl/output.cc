#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <iostream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/mapctl/mapctl.h"
#include "mapbroker/error.h"

namespace mapbroker::mapctl {
namespace {

absl::Status FileFault(const std::string& path, const std::string& fault) {
  return absl::FailedPreconditionError(absl::StrCat(path, ": ", fault));
}

// `range` with the length to the file's end, if it has none yet.
absl::StatusOr<FileRange> ToEnd(FileRange range, const std::string& path, std::uint64_t size) {
  if (range.length > 0) return range;
  if (range.offset >= size) {
    return FileFault(path, size == 0 ? std::string("the file is empty, so there is nothing to map; give --length")
                                     : absl::StrCat("the file has only ", size, " bytes; give a smaller --offset"));
  }
  range.length = size - range.offset;
  return range;
}

bool IsOfTheDaemon(const std::string& path) {
  return path.starts_with("ram:/") || path.starts_with("dev:/") || path.starts_with("mnt:/");
}

}  // namespace

absl::StatusOr<Client> Context::Connect() const {
  if (!remote.server.empty()) {
    return absl::FailedPreconditionError(
        "over --server there are only status, maps, who, watch, top, session and log-level: memory is mapped on the "
        "daemon's own machine");
  }
  return Client::Connect({.runtime_dir = runtime_dir});
}

absl::StatusOr<Inspector> Context::Inspect() const {
  if (!remote.server.empty()) return Inspector::Connect(remote);
  absl::StatusOr<Client> client = Connect();
  if (!client.ok()) return client.status();
  return Inspector::Of(*client);
}

int Report(const absl::Status& status) {
  if (status.ok()) return kDone;
  const char* name = strerrorname_np(ErrnoOf(status));
  std::string line = "mapctl: ";
  // What was found out without the daemon has no errno of its own.
  if (status.code() != absl::StatusCode::kFailedPrecondition && name != nullptr) absl::StrAppend(&line, name, ": ");
  absl::StrAppend(&line, std::string(status.message()));
  if (const std::string rule = RuleOf(status); !rule.empty()) absl::StrAppend(&line, " (rule ", rule, ")");
  std::cerr << line << '\n';
  return status.code() == absl::StatusCode::kUnavailable ? kNoDaemon : kRefused;
}

absl::StatusOr<FileRange> OpenRange(Client& client, const std::string& path, std::uint64_t offset, std::uint64_t length,
                                    bool writable) {
  FileRange range{.fd = -1, .file = {}, .offset = offset, .length = length};
  if (IsOfTheDaemon(path)) {
    absl::StatusOr<File> file = client.Open(path, writable ? O_RDWR : O_RDONLY);
    if (!file.ok()) return file.status();
    const absl::StatusOr<FileStat> stat = file->Stat();
    if (!stat.ok()) return stat.status();
    range.file = *std::move(file);
    return ToEnd(std::move(range), path, stat->size);
  }
  // Not blocking: a FIFO without a writer would wait for one.
  range.fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  struct stat stat;
  if (range.fd < 0 || fstat(range.fd, &stat) != 0) {
    return FileFault(path, absl::StrCat(strerrorname_np(errno), ": ", std::strerror(errno)));
  }
  // The rules say what else can be mapped; where they allow it, how much is the caller's to say.
  if (!S_ISREG(stat.st_mode) && length == 0) range.length = 4096;
  return ToEnd(std::move(range), path, static_cast<std::uint64_t>(stat.st_size));
}

std::string Address(std::uint64_t address) { return absl::StrFormat("0x%08x", address); }

std::string HumanBytes(std::uint64_t bytes) {
  constexpr std::array<const char*, 5> kUnits{"B", "KiB", "MiB", "GiB", "TiB"};
  if (bytes < 1024) return absl::StrCat(bytes, " B");
  double amount = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (amount >= 1024 && unit + 1 < kUnits.size()) {
    amount /= 1024;
    ++unit;
  }
  return absl::StrFormat("%.1f %s", amount, kUnits[unit]);
}

std::string Printable(const std::string& text) {
  std::string printable;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      absl::StrAppendFormat(&printable, "\\%03o", byte);
    } else {
      printable += c;
    }
  }
  return printable;
}

const char* KindName(MappingKind kind) {
  switch (kind) {
    case MappingKind::kAnonymous:
      return "anonymous";
    case MappingKind::kSharedCopy:
      return "shared copy";
    case MappingKind::kPrivateCopy:
      return "private copy";
    case MappingKind::kDirect:
      return "direct";
  }
  return "?";
}

absl::Status WriteAll(int fd, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return absl::FailedPreconditionError(absl::StrCat("cannot write: ", std::strerror(errno)));
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
  return absl::OkStatus();
}

CLI::Validator OctalMode() {
  return CLI::Validator(
      [](const std::string& text) {
        const bool octal = !text.empty() && text.size() <= 4 && text.find_first_not_of("01234567") == std::string::npos;
        return octal ? std::string() : text + " is not octal, like 0644";
      },
      "MODE");
}

CLI::Validator Bytes() {
  // Powers of 1024 whatever the suffix: sizes of memory are never meant in powers of 1000.
  return CLI::AsSizeValue(/*kb_is_1000=*/false);
}

bool ParsePoolAddress(const std::string& text, std::uint64_t& address) {
  const char* const begin = text.data() + (absl::StartsWith(text, "0x") ? 2 : 0);
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(begin, end, address, 16);
  return error == std::errc() && stop == end;
}

CLI::Validator PoolAddress() {
  return CLI::Validator(
      [](std::string& text) {
        std::uint64_t address;
        if (!ParsePoolAddress(text, address)) return text + " is no pool address: it is hexadecimal";
        text = std::to_string(address);
        return std::string();
      },
      "HEX");
}

}  // namespace mapbroker::mapctl
