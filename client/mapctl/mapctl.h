// What the subcommands of mapctl share. Each has a file of its own, which adds it to the program.
#pragma once

#include <CLI/CLI.hpp>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "mapbroker/client.h"
#include "mapbroker/inspector.h"

namespace mapbroker::mapctl {

// Exit statuses, as in mapctl(1).
enum ExitStatus : int { kDone = 0, kRefused = 1, kUsage = 2, kNoDaemon = 3 };

// Options that come before or after any subcommand, and the exit status that the subcommand leaves.
struct Context {
  std::string runtime_dir;
  RemoteOptions remote;  // instead of it, where a server is named
  bool json = false;
  int exit_status = kDone;

  absl::StatusOr<Client> Connect() const;
  // For what may be asked of a daemon on another machine too.
  absl::StatusOr<Inspector> Inspect() const;
};

// Prints what may stand for the last of `words`, which may be empty or begun: a line "WORD<tab>DESCRIPTION" each,
// nothing where files are meant. For shells, as `mapctl complete WORDS...`.
void Complete(CLI::App& program, const std::vector<std::string>& words);

void AddDevice(CLI::App& program, Context& context);
void AddExec(CLI::App& program, Context& context);
void AddExplain(CLI::App& program, Context& context);
void AddMap(CLI::App& program, Context& context);
void AddMaps(CLI::App& program, Context& context);
void AddPtrace(CLI::App& program, Context& context);
void AddRam(CLI::App& program, Context& context);
void AddRead(CLI::App& program, Context& context);
void AddReplay(CLI::App& program, Context& context);
void AddScreenshot(CLI::App& program, Context& context);
void AddSession(CLI::App& program, Context& context);
void AddShm(CLI::App& program, Context& context);
void AddStatus(CLI::App& program, Context& context);
void AddTop(CLI::App& program, Context& context);
void AddWatch(CLI::App& program, Context& context);
void AddWho(CLI::App& program, Context& context);

// One line on stderr, "mapctl: ERRNO: sentence"; the exit status that fits.
int Report(const absl::Status& status);

// What of a file is to be mapped.
struct FileRange {
  int fd = -1;                    // a host file
  std::optional<File> file = {};  // instead of it, a file of the daemon
  std::uint64_t offset = 0;       // bytes
  std::uint64_t length = 0;       // bytes
};

// Opens FILE: "ram:/...", "dev:/..." and "mnt:/..." are the daemon's, writable if asked for, anything else is a host
// file, opened for reading. `length` 0 means to its end. Refuses what cannot be opened and what is empty, with one
// clear line. The descriptor stays open as long as the program runs.
absl::StatusOr<FileRange> OpenRange(Client& client, const std::string& path, std::uint64_t offset, std::uint64_t length,
                                    bool writable = false);

// "0x" and at least 8 hexadecimal digits.
std::string Address(std::uint64_t address);

// "1.5 MiB".
std::string HumanBytes(std::uint64_t bytes);

// A name or line on one line: control characters as \ooo.
std::string Printable(const std::string& text);

// What is special of a session: " (read-only)".
std::string Marks(const SessionRow& row);
nlohmann::json Object(const SessionRow& row);

const char* KindName(MappingKind kind);

// For CLI11: takes "4096", "64K", "16M", "2G" as bytes (powers of 1024).
CLI::Validator Bytes();

// For CLI11: takes a pool address as `mapctl maps` shows it, in hexadecimal, "0x" before it or not.
CLI::Validator PoolAddress();
// False: it is none.
bool ParsePoolAddress(const std::string& text, std::uint64_t& address);

// For CLI11: takes permission bits as up to four octal digits.
CLI::Validator OctalMode();

// Writes all of it to a descriptor.
absl::Status WriteAll(int fd, std::span<const std::byte> bytes);

}  // namespace mapbroker::mapctl
