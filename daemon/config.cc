#include "daemon/config.h"

#include <grp.h>
#include <pwd.h>
#include <toml++/toml.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <iostream>
#include <limits>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/exit_status.h"
#include "daemon/log.h"
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
  const auto level = ParseLogLevel(name);
  if (!level.ok()) return level.status();
  config.log_level = *level;
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

// Of a user or group.
absl::StatusOr<std::uint32_t> LookUp(const std::string& name, bool group) {
  // As large as an entry may be: a group's names all its members.
  std::vector<char> buffer(std::size_t{1} << 16);
  passwd user;
  struct group group_entry;
  passwd* found_user = nullptr;
  struct group* found_group = nullptr;
  if (group) {
    getgrnam_r(name.c_str(), &group_entry, buffer.data(), buffer.size(), &found_group);
    if (found_group != nullptr) return found_group->gr_gid;
  } else {
    getpwnam_r(name.c_str(), &user, buffer.data(), buffer.size(), &found_user);
    if (found_user != nullptr) return found_user->pw_uid;
  }
  return Invalid(absl::StrCat("there is no ", group ? "group" : "user", " \"", name, "\": make it or name another"));
}

absl::Status SetSocketGroup(const std::string& name, Config& config) {
  const absl::StatusOr<std::uint32_t> group = LookUp(name, /*group=*/true);
  if (group.ok()) config.socket_group = *group;
  return group.status();
}

absl::Status SetEndpoint(const std::string& text, const char* key, std::optional<Endpoint>& endpoint) {
  absl::StatusOr<Endpoint> parsed = ParseEndpoint(text);
  if (!parsed.ok()) return Invalid(absl::StrCat(key, " ", std::string(parsed.status().message())));
  endpoint = *std::move(parsed);
  return absl::OkStatus();
}

absl::Status SetNames(const toml::node& value, const std::string& key, std::vector<std::string>& names) {
  names.clear();
  const toml::array* const array = value.as_array();
  if (array == nullptr) return Invalid(absl::StrCat(key, " is an array of names in quotes, like [\"alice\"]"));
  for (const toml::node& name : *array) {
    if (!name.is_string() || name.as_string()->get().empty()) {
      return Invalid(absl::StrCat(key, " is an array of names in quotes, like [\"alice\"]"));
    }
    names.push_back(name.as_string()->get());
  }
  return absl::OkStatus();
}

// What the listeners' keys must have of each other.
absl::Status CheckListeners(const Config& config) {
  const Config::Tcp& tcp = config.tcp;
  if (tcp.listen) {
    for (const auto& [key, value] : {std::pair("certificate", &tcp.certificate), std::pair("key", &tcp.key),
                                     std::pair("client_ca", &tcp.client_ca)}) {
      if (value->empty()) {
        return Invalid(absl::StrCat("tcp.listen needs tcp.", key, ": name a file in PEM, or leave tcp.listen out"));
      }
    }
    if (tcp.roles.inspectors.empty() && tcp.roles.administrators.empty()) {
      return Invalid("tcp.listen lets nobody in: name somebody in tcp.inspectors or tcp.administrators");
    }
  }
  if (config.metrics.listen && !config.metrics.listen->loopback && !config.metrics.anybody) {
    return Invalid(absl::StrCat("metrics.listen ", config.metrics.listen->ToString(),
                                " is not this machine's own, and whoever reaches it may read the metrics: listen on "
                                "127.0.0.1, or set metrics.anybody = true"));
  }
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
    {"tcp", "listen",
     [](const std::string& text, Config& config) { return SetEndpoint(text, "tcp.listen", config.tcp.listen); }},
    {"tcp", "certificate",
     [](const std::string& text, Config& config) {
       config.tcp.certificate = text;
       return absl::OkStatus();
     }},
    {"tcp", "key",
     [](const std::string& text, Config& config) {
       config.tcp.key = text;
       return absl::OkStatus();
     }},
    {"tcp", "client_ca",
     [](const std::string& text, Config& config) {
       config.tcp.client_ca = text;
       return absl::OkStatus();
     }},
    {"metrics", "listen",
     [](const std::string& text, Config& config) {
       return SetEndpoint(text, "metrics.listen", config.metrics.listen);
     }},
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

// How much of something each user may have: a whole number, of bytes also a size like "1G".
absl::StatusOr<std::uint64_t> UserLimitOf(const std::string& name, const toml::node& value) {
  if (const auto number = value.value_exact<std::int64_t>(); number && *number >= 0) {
    return static_cast<std::uint64_t>(*number);
  }
  if (const auto text = value.value_exact<std::string>();
      text && name == kResourceKeys[static_cast<std::size_t>(Resource::kBytes)]) {
    if (const absl::StatusOr<std::uint64_t> size = ParseSize(*text); size.ok()) return *size;
  }
  return Invalid(absl::StrCat("limits.", name, " is a whole number, 0 for no limit; bytes also a size like \"1G\""));
}

// Null if the key is none of a user's limits.
std::optional<std::uint64_t>* FindUserLimit(const std::string& name, UserLimits::Row& row) {
  const auto* const found = std::find(kResourceKeys.begin(), kResourceKeys.end(), name);
  return found == kResourceKeys.end() ? nullptr : &row[static_cast<std::size_t>(found - kResourceKeys.begin())];
}

absl::Status ApplyLimit(const std::string& name, const toml::node& value, Limits& limits) {
  if (std::optional<std::uint64_t>* const limit = FindUserLimit(name, limits.users.each); limit != nullptr) {
    const absl::StatusOr<std::uint64_t> most = UserLimitOf(name, value);
    if (most.ok()) *limit = *most;
    return most.status();
  }
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

absl::StatusOr<std::uint32_t> IdOf(const toml::node& value, bool group) {
  if (const auto number = value.value_exact<std::int64_t>(); number && *number >= 0 && *number < kNobody) {
    return static_cast<std::uint32_t>(*number);
  }
  if (const auto name = value.value_exact<std::string>()) return LookUp(*name, group);
  return Invalid(absl::StrCat("a ", group ? "group" : "user", " is a name in quotes or a number"));
}

absl::Status ApplyAccess(const std::string& name, const toml::node& value, session::AccessRules& rules) {
  using Who = session::AccessRules::Who;
  static constexpr std::pair<const char*, Who session::AccessRules::*> kLists[] = {
      {"allow", &session::AccessRules::allow},
      {"deny", &session::AccessRules::deny},
      {"read_only", &session::AccessRules::read_only}};
  for (const auto& [list, in] : kLists) {
    const bool users = name == absl::StrCat(list, "_users");
    if (!users && name != absl::StrCat(list, "_groups")) continue;
    if (!value.is_array()) return Invalid(absl::StrCat("access.", name, " is a list of names and numbers in brackets"));
    for (const toml::node& entry : *value.as_array()) {
      const absl::StatusOr<std::uint32_t> id = IdOf(entry, !users);
      if (!id.ok()) return id.status();
      if (users) {
        (rules.*in).users.insert(*id);
      } else {
        (rules.*in).groups.insert(*id);
      }
    }
    return absl::OkStatus();
  }
  return Invalid(absl::StrCat("unknown key access.", name));
}

// [[limits.user]]: what one user may have.
absl::Status ReadUserLimits(const toml::node& node, const std::string& path, UserLimits& limits) {
  const auto wrong = [&](const toml::node& at, const std::string& what) {
    return Invalid(absl::StrCat(path, ":", at.source().begin.line, ": ", what));
  };
  const toml::array* const entries = node.as_array();
  if (entries == nullptr) return wrong(node, "write [[limits.user]], since there may be several");
  for (const toml::node& entry : *entries) {
    const toml::node* const named = entry.is_table() ? entry.as_table()->get("user") : nullptr;
    if (named == nullptr) return wrong(entry, "[[limits.user]] needs the key user, a name or a number");
    const absl::StatusOr<std::uint32_t> user = IdOf(*named, /*group=*/false);
    if (!user.ok()) return wrong(*named, std::string(user.status().message()));
    for (const auto& [key, value] : *entry.as_table()) {
      const std::string name(key.str());
      if (name == "user") continue;
      std::optional<std::uint64_t>* const limit = FindUserLimit(name, limits.of[*user]);
      if (limit == nullptr) return wrong(value, absl::StrCat("a user has no limit ", name));
      const absl::StatusOr<std::uint64_t> most = UserLimitOf(name, value);
      if (!most.ok()) return wrong(value, std::string(most.status().message()));
      *limit = *most;
    }
  }
  return absl::OkStatus();
}

absl::Status ApplyValue(const std::string& table, const std::string& name, const toml::node& value, Config& config) {
  if (table == "limits") return ApplyLimit(name, value, config.limits);
  if (table == "access") return ApplyAccess(name, value, config.access);
  if (table == "pool" && name == "huge_pages") {
    if (!value.is_boolean()) return Invalid("pool.huge_pages is true or false");
    config.pool.huge_pages = *value.value<bool>();
    return absl::OkStatus();
  }
  if (table == "tcp" && name == "inspectors") return SetNames(value, "tcp.inspectors", config.tcp.roles.inspectors);
  if (table == "tcp" && name == "administrators") {
    return SetNames(value, "tcp.administrators", config.tcp.roles.administrators);
  }
  if (table == "metrics" && name == "anybody") {
    if (!value.is_boolean()) return Invalid("metrics.anybody is true or false");
    config.metrics.anybody = *value.value<bool>();
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
    if (table == "limits" && name == "user") {
      if (absl::Status status = ReadUserLimits(value, path, config.limits.users); !status.ok()) return status;
      continue;
    }
    if (table.empty() && value.is_table() &&
        (name == "pool" || name == "sockets" || name == "limits" || name == "access" || name == "tcp" ||
         name == "metrics")) {
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

std::map<std::string, std::uint64_t> LimitsByName(const Limits& limits) {
  Limits copy = limits;
  std::map<std::string, std::uint64_t> by_name;
  for (const LimitKey& key : kLimitKeys) by_name[key.name] = key.in(copy);
  return by_name;
}

absl::Status ReadConfigFile(const std::string& path, Config& config) {
  Config changed = config;
  try {
    const toml::table file = toml::parse_file(path);
    if (absl::Status status = ApplyTable("", file, path, changed); !status.ok()) return status;
    if (absl::Status status = ReadAllDeclared(file, path, changed); !status.ok()) return status;
    if (absl::Status status = CheckListeners(changed); !status.ok()) {
      return Invalid(absl::StrCat(path, ": ", std::string(status.message())));
    }
  } catch (const toml::parse_error& error) {
    return Invalid(absl::StrCat(path, ":", error.source().begin.line, ": ", std::string(error.description())));
  }
  config = std::move(changed);
  return absl::OkStatus();
}

absl::StatusOr<Config> MakeConfig(const Options& options) {
  Config config;
  config.limits.users.own_user = geteuid();
  config.keep_state = options.keep_state;
  config.reset = options.reset;
  absl::Status status;
  if (!options.config_file.empty()) status = ReadConfigFile(options.config_file, config);
  const auto apply = [&](const std::string& text, absl::Status (*set)(const std::string&, Config&)) {
    if (status.ok() && !text.empty()) status = set(text, config);
  };
  if (!options.runtime_dir.empty()) config.runtime_dir = options.runtime_dir;
  if (options.huge_pages) config.pool.huge_pages = true;
  apply(options.pool_size, SetPoolSize);
  apply(options.pool, SetPoolKind);
  apply(options.profile, SetProfile);
  apply(options.log_level, SetLogLevel);
  if (status.ok() && config.pool.size == 0) {
    status = Invalid("no pool size: give --pool-size SIZE or pool.size in the configuration file");
  }
  if (!status.ok()) return status;
  return config;
}

CommandLine ParseCommandLine(int argc, char** argv) {
  CommandLine result;
  CLI::App app{"mapbrokerd: a pool of memory for many processes under the rules of Linux without an MMU"};
  app.footer(
      "Exit status: 0 stopped as asked, 1 could not start, 2 wrong command line or configuration file,\n"
      "3 the pool's memory is not there, 4 another daemon serves the runtime directory or the pool.");
  Options& options = result.options;
  app.set_version_flag("--version", kVersion);
  app.add_option("--runtime-dir", options.runtime_dir, "directory of the sockets (default /run/mapbroker)")
      ->type_name("DIR");
  app.add_option("--pool-size", options.pool_size, "bytes, or with K, M, G, T")->type_name("SIZE");
  app.add_option("--pool", options.pool, "what the pool is made of: memfd (default), shm:/NAME, file:PATH")
      ->type_name("KIND");
  app.add_flag("--huge-pages", options.huge_pages, "put the pool on huge pages (memfd, or file: on hugetlbfs)");
  app.add_option("--profile", options.profile, "whose rules apply: classic (2.6.18, default) or modern (6.12)")
      ->type_name("NAME");
  app.add_option("--config", options.config_file, "TOML file; options given here come before it, SIGHUP reads it anew")
      ->type_name("FILE");
  app.add_flag("--keep-state", options.keep_state,
               "leave pool and ledger to the next daemon when stopped by SIGTERM; SIGINT ends them all the same");
  app.add_flag("--reset", options.reset, "give up what a daemon that was killed has left");
  app.add_option("--log-level", options.log_level, "trace, debug, info (default), warning, error, critical, off")
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

  const absl::StatusOr<Config> config = MakeConfig(options);
  if (config.ok()) {
    result.config = *config;
  } else {
    std::cerr << "mapbrokerd: " << std::string(config.status().message()) << '\n';
    result.exit_status = kUsage;
  }
  return result;
}

}  // namespace mapbroker
