#include "daemon/config.h"

#include <grp.h>
#include <toml++/toml.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <iostream>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/exit_status.h"
#include "daemon/nommu/refusal.h"
#include "daemon/size.h"
#include "daemon/version.h"

namespace mapbroker {
namespace {

using nommu::Refuse;

absl::Status Invalid(const std::string& sentence) { return Refuse(EINVAL, "", sentence); }

absl::Status SetProfile(const std::string& name, Config& config) {
  const nommu::Profile* profile = nommu::FindProfile(name);
  if (profile == nullptr) return Invalid(absl::StrCat("profile \"", name, "\" is neither classic nor modern"));
  config.profile = profile;
  return absl::OkStatus();
}

absl::Status SetPoolKind(const std::string& text, Config& config) {
  absl::StatusOr<shm::SegmentSpec> spec = shm::ParseSegmentSpec(text);
  if (!spec.ok()) return spec.status();
  config.pool.kind = spec->kind;
  config.pool.name = spec->name;
  return absl::OkStatus();
}

absl::Status SetPoolSize(const std::string& text, Config& config) {
  absl::StatusOr<std::uint64_t> size = ParseSize(text);
  if (!size.ok()) return Invalid(absl::StrCat("pool size ", size.status().message()));
  if (*size == 0) return Invalid("pool size is 0: give at least one page");
  config.pool.size = *size;
  return absl::OkStatus();
}

absl::Status SetLogLevel(const std::string& name, Config& config) {
  const auto level = spdlog::level::from_str(name);
  if (level == spdlog::level::off && name != "off") {
    return Invalid(
        absl::StrCat("log level \"", name, "\" is none of trace, debug, info, warning, error, critical, off"));
  }
  config.log_level = level;
  return absl::OkStatus();
}

absl::Status SetMode(const std::string& what, const std::string& octal, mode_t& to) {
  unsigned mode = 0;
  for (const char digit : octal) {
    if (digit < '0' || digit > '7' || octal.size() > 4)
      return Invalid(absl::StrCat(what, " \"", octal, "\" is not octal, like \"0660\""));
    mode = mode * 8 + static_cast<unsigned>(digit - '0');
  }
  if (octal.empty() || mode > 0777) return Invalid(absl::StrCat(what, " \"", octal, "\" is not from 0000 to 0777"));
  to = mode;
  return absl::OkStatus();
}

absl::Status SetSocketMode(const std::string& octal, Config& config) {
  return SetMode("socket mode", octal, config.socket_mode);
}

absl::Status SetDirectoryMode(const std::string& octal, Config& config) {
  if (absl::Status status = SetMode("directory mode", octal, config.directory_mode); !status.ok()) return status;
  if ((config.directory_mode & 0700) == 0700) return absl::OkStatus();
  return Invalid(absl::StrCat("directory mode \"", octal, "\" shuts the daemon out: start with 7, like \"0750\""));
}

absl::Status SetSocketGroup(const std::string& name, Config& config) {
  const group* const entry = name.empty() ? nullptr : getgrnam(name.c_str());
  if (entry == nullptr) return Invalid(absl::StrCat("there is no group \"", name, "\": make it or name another"));
  config.socket_group = entry->gr_gid;
  return absl::OkStatus();
}

// One key of the configuration file: its name and what sets it. Every value is a string except the booleans.
struct Key {
  const char* table;
  const char* name;
  absl::Status (*set)(const std::string&, Config&);
};

constexpr Key kStringKeys[] = {
    {"", "profile", SetProfile},
    {"", "log_level", SetLogLevel},
    {"pool", "kind", SetPoolKind},
    {"pool", "size", SetPoolSize},
    {"sockets", "mode", SetSocketMode},
    {"sockets", "directory_mode", SetDirectoryMode},
    {"sockets", "group", SetSocketGroup},
    {"", "runtime_dir",
     [](const std::string& text, Config& config) {
       config.runtime_dir = text;
       return absl::OkStatus();
     }},
};

// The whole numbers of [limits], which are not negative.
struct LimitKey {
  const char* name;
  std::uint64_t& (*in)(Limits&);
  std::int64_t most = std::numeric_limits<std::int64_t>::max();
};

constexpr std::int64_t kHourInMs = 3'600'000;

constexpr LimitKey kLimitKeys[] = {
    {"max_map_count", [](Limits& limits) -> std::uint64_t& { return limits.map.max_map_count; }},
    {"nr_trim_pages", [](Limits& limits) -> std::uint64_t& { return limits.nr_trim_pages; }},
    {"shmmax", [](Limits& limits) -> std::uint64_t& { return limits.sysv.shmmax; }},
    {"shmall", [](Limits& limits) -> std::uint64_t& { return limits.sysv.shmall; }},
    {"driver_deadline_ms", [](Limits& limits) -> std::uint64_t& { return limits.driver_deadline_ms; }, kHourInMs},
    {"shmmni", [](Limits& limits) -> std::uint64_t& { return limits.sysv.shmmni; }},
};

absl::Status ApplyLimit(const std::string& name, const toml::node& value, Limits& limits) {
  for (const LimitKey& key : kLimitKeys) {
    if (name != key.name) continue;
    const auto number = value.value_exact<std::int64_t>();
    if (!number || *number < 0) return Invalid(absl::StrCat("limits.", name, " is a whole number, 0 or more"));
    if (*number > key.most) return Invalid(absl::StrCat("limits.", name, " is at most ", key.most));
    key.in(limits) = static_cast<std::uint64_t>(*number);
    return absl::OkStatus();
  }
  return Invalid(absl::StrCat("unknown key limits.", name));
}

absl::Status ApplyValue(const std::string& table, const std::string& name, const toml::node& value, Config& config) {
  if (table == "limits") return ApplyLimit(name, value, config.limits);
  if (table == "pool" && name == "huge_pages") {
    if (!value.is_boolean()) return Invalid("pool.huge_pages is true or false");
    config.pool.huge_pages = *value.value<bool>();
    return absl::OkStatus();
  }
  for (const Key& key : kStringKeys) {
    if (table != key.table || name != key.name) continue;
    if (!value.is_string()) return Invalid(absl::StrCat(name, " must be a string in quotes"));
    return key.set(*value.value<std::string>(), config);
  }
  return Invalid(absl::StrCat("unknown key ", table.empty() ? "" : absl::StrCat(table, "."), name));
}

struct DeclaredKind {
  const char* table;
  Config::Declared::What what;
  std::vector<const char*> required;
};

// An array of tables: [[device]] and so on. What the values mean is for those who make the things.
absl::Status ReadDeclared(const DeclaredKind& kind, const toml::node& node, const std::string& path, Config& config) {
  const auto wrong = [&](const toml::node& at, const std::string& what) {
    return Invalid(absl::StrCat(path, ":", at.source().begin.line, ": ", what));
  };
  const toml::array* const entries = node.as_array();
  if (entries == nullptr) return wrong(node, absl::StrCat("write [[", kind.table, "]], since there may be several"));
  for (const toml::node& entry : *entries) {
    if (!entry.is_table()) return wrong(entry, absl::StrCat("write [[", kind.table, "]] and a key a line"));
    Config::Declared declared{kind.what, absl::StrCat(path, ":", entry.source().begin.line), {}};
    for (const auto& [key, value] : *entry.as_table()) {
      if (value.is_string()) {
        declared.values[std::string(key.str())] = *value.value<std::string>();
      } else if (value.is_integer()) {
        declared.values[std::string(key.str())] = absl::StrCat(*value.value<std::int64_t>());
      } else {
        return wrong(value, absl::StrCat(std::string(key.str()), " must be a string in quotes or a whole number"));
      }
    }
    for (const char* required : kind.required) {
      if (!declared.values.contains(required)) {
        return wrong(entry, absl::StrCat("[[", kind.table, "]] needs the key ", required));
      }
    }
    config.declared.push_back(std::move(declared));
  }
  return absl::OkStatus();
}

// In the order in which they depend on each other.
absl::Status ReadAllDeclared(const toml::table& file, const std::string& path, Config& config) {
  static const DeclaredKind kKinds[] = {{"ram_file", Config::Declared::What::kRamFile, {"name"}},
                                        {"device", Config::Declared::What::kDevice, {"name", "kind"}},
                                        {"mount", Config::Declared::What::kMount, {"name", "device"}}};
  config.declared.clear();
  for (const DeclaredKind& kind : kKinds) {
    const toml::node* const node = file.get(kind.table);
    if (node == nullptr) continue;
    if (absl::Status status = ReadDeclared(kind, *node, path, config); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ApplyTable(const std::string& table, const toml::table& values, const std::string& path, Config& config) {
  for (const auto& [key, value] : values) {
    const std::string name(key.str());
    if (table.empty() && (name == "ram_file" || name == "device" || name == "mount")) continue;
    if (table.empty() && value.is_table() && (name == "pool" || name == "sockets" || name == "limits")) {
      if (absl::Status status = ApplyTable(name, *value.as_table(), path, config); !status.ok()) return status;
      continue;
    }
    if (absl::Status status = ApplyValue(table, name, value, config); !status.ok()) {
      return Invalid(absl::StrCat(path, ":", value.source().begin.line, ": ", std::string(status.message())));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadConfigFile(const std::string& path, Config& config) {
  Config changed = config;
  try {
    const toml::table file = toml::parse_file(path);
    if (absl::Status status = ApplyTable("", file, path, changed); !status.ok()) return status;
    if (absl::Status status = ReadAllDeclared(file, path, changed); !status.ok()) return status;
  } catch (const toml::parse_error& error) {
    return Invalid(absl::StrCat(path, ":", error.source().begin.line, ": ", std::string(error.description())));
  }
  config = std::move(changed);
  return absl::OkStatus();
}

CommandLine ParseCommandLine(int argc, char** argv) {
  CommandLine result;
  CLI::App app{"mapbrokerd: a pool of memory for many processes under the rules of Linux without an MMU"};
  app.footer(
      "Exit status: 0 stopped as asked, 1 could not start, 2 wrong command line or configuration file,\n"
      "3 the pool's memory is not there, 4 another daemon serves the runtime directory or the pool.");
  std::string runtime_dir, pool_size, pool, profile, config_file, log_level;
  bool huge_pages = false;
  app.set_version_flag("--version", kVersion);
  app.add_option("--runtime-dir", runtime_dir, "directory of the sockets (default /run/mapbroker)")->type_name("DIR");
  app.add_option("--pool-size", pool_size, "bytes, or with K, M, G, T")->type_name("SIZE");
  app.add_option("--pool", pool, "what the pool is made of: memfd (default), shm:/NAME, file:PATH")->type_name("KIND");
  app.add_flag("--huge-pages", huge_pages, "put the pool on huge pages (memfd, or file: on hugetlbfs)");
  app.add_option("--profile", profile, "whose rules apply: classic (2.6.18, default) or modern (6.12)")
      ->type_name("NAME");
  app.add_option("--config", config_file, "TOML file; options given here come before it")->type_name("FILE");
  app.add_flag("--keep-state", result.config.keep_state,
               "leave pool and ledger to the next daemon when stopped by SIGTERM; SIGINT ends them all the same");
  app.add_flag("--reset", result.config.reset, "give up what a daemon that was killed has left");
  app.add_option("--log-level", log_level, "trace, debug, info (default), warning, error, critical, off")
      ->type_name("LEVEL");
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& done) {
    result.exit_status = app.exit(done);
    return result;
  } catch (const CLI::ParseError& error) {
    std::cerr << "mapbrokerd: " << error.what() << " (see mapbrokerd --help)\n";
    result.exit_status = kUsage;
    return result;
  }

  Config& config = result.config;
  absl::Status status;
  if (!config_file.empty()) status = ReadConfigFile(config_file, config);
  const auto apply = [&](const std::string& text, absl::Status (*set)(const std::string&, Config&)) {
    if (status.ok() && !text.empty()) status = set(text, config);
  };
  if (!runtime_dir.empty()) config.runtime_dir = runtime_dir;
  if (huge_pages) config.pool.huge_pages = true;
  apply(pool_size, SetPoolSize);
  apply(pool, SetPoolKind);
  apply(profile, SetProfile);
  apply(log_level, SetLogLevel);
  if (status.ok() && config.pool.size == 0) {
    status = Invalid("no pool size: give --pool-size SIZE or pool.size in the configuration file");
  }
  if (!status.ok()) {
    std::cerr << "mapbrokerd: " << std::string(status.message()) << '\n';
    result.exit_status = kUsage;
  }
  return result;
}

}  // namespace mapbroker
