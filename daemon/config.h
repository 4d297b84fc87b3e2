// What an administrator may set: command line over configuration file over defaults.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "daemon/broker.h"
#include "daemon/endpoint.h"
#include "daemon/nommu/profile.h"
#include "daemon/session/access.h"
#include "shm_backend/segment.h"
#include "spdlog/common.h"

namespace mapbroker {

// Who may over TCP, by the names that their certificates have.
struct Roles {
  std::vector<std::string> inspectors;      // look
  std::vector<std::string> administrators;  // look and change
  bool operator==(const Roles&) const = default;
};

struct Config {
  std::string runtime_dir = "/run/mapbroker";
  shm::SegmentSpec pool;  // memfd; `size` must be given
  // Where clients that want equal pointers attach the pool. Below where Linux loads programs and above the shadow
  // memory of the sanitizers, so that it is free in every process.
  std::uint64_t pool_base = 0x5500'0000'0000;
  const nommu::Profile* profile = &nommu::kClassic;
  mode_t socket_mode = 0660;
  // Of the runtime directory, if the daemon makes it.
  mode_t directory_mode = 0750;
  // Who may use the sockets, beside the daemon's user: the sockets' group and the directory's, if the daemon makes
  // them. Not given: the daemon's group.
  std::optional<gid_t> socket_group;
  session::AccessRules access;
  Limits limits;
  struct Tcp {
    std::optional<Endpoint> listen;  // off without it
    // Files in PEM: the daemon's own, and the authority of its callers.
    std::string certificate, key, client_ca;
    Roles roles;
    bool operator==(const Tcp&) const = default;
  };
  Tcp tcp;
  struct Metrics {
    std::optional<Endpoint> listen;  // off without it
    bool anybody = false;            // the address need not be a loopback one
    bool operator==(const Metrics&) const = default;
  };
  Metrics metrics;
  // What exists from the start: ram files, devices, mounts, in this order.
  struct Declared {
    enum class What { kRamFile, kDevice, kMount };
    What what = What::kRamFile;
    std::string where;  // "FILE:LINE", for what goes wrong with it later
    std::map<std::string, std::string> values;
  };
  std::vector<Declared> declared;
  // SIGTERM leaves pool and ledger to the next daemon.
  bool keep_state = false;
  // What a daemon before left is given up.
  bool reset = false;
  spdlog::level::level_enum log_level = spdlog::level::info;
};

// The limits that are set, by the names of the keys of [limits].
std::map<std::string, std::uint64_t> LimitsByName(const Limits& limits);

// What the command line says; empty where it says nothing.
struct Options {
  std::string runtime_dir, pool_size, pool, profile, config_file, log_level;
  bool huge_pages = false, keep_state = false, reset = false;
};

// How the program is to go on.
struct CommandLine {
  Options options;
  Config config;
  int exit_status = -1;  // not negative: stop at once with it (--help, --version, an error; all said already)
};

// Reads the command line and the file that --config names. One clear line for what is wrong, with file and line where
// it came from a file.
CommandLine ParseCommandLine(int argc, char** argv);

// What the options and the file that they name make together. The file is read anew with every call; a mistake in it is
// told with file and line.
absl::StatusOr<Config> MakeConfig(const Options& options);

// Applies a configuration file to `config`, which is untouched on failure.
absl::Status ReadConfigFile(const std::string& path, Config& config);

}  // namespace mapbroker
