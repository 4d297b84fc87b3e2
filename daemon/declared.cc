#include "daemon/declared.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/backing/host_file.h"
#include "daemon/nommu/refusal.h"
#include "daemon/size.h"
#include "shm_backend/failure_point.h"

namespace mapbroker {
namespace {

using nommu::Refuse;
using Values = std::map<std::string, std::string>;

// The value of a key, which is then no longer among them.
std::string Take(Values& values, const std::string& key, const std::string& otherwise = "") {
  const auto taken = values.extract(key);
  return taken.empty() ? otherwise : taken.mapped();
}

absl::StatusOr<mode_t> TakeMode(Values& values) {
  const std::string text = Take(values, "mode", "0600");
  if (text.empty() || text.size() > 4 || text.find_first_not_of("01234567") != std::string::npos) {
    return Refuse(EINVAL, "", absl::StrCat("mode \"", text, "\" is not octal, like \"0640\""));
  }
  return static_cast<mode_t>(std::stoul(text, nullptr, 8));
}

// Whose it is: user and group by number, root's by default.
absl::StatusOr<Credentials> TakeOwner(Values& values) {
  Credentials owner;
  const absl::StatusOr<std::uint64_t> uid = ParseSize(Take(values, "uid", "0")),
                                      gid = ParseSize(Take(values, "gid", "0"));
  if (!uid.ok() || !gid.ok()) return Refuse(EINVAL, "", "uid and gid are numbers");
  owner.uid = static_cast<uid_t>(*uid);
  owner.gid = static_cast<gid_t>(*gid);
  return owner;
}

// A file that the administrator names; null for none.
absl::StatusOr<std::shared_ptr<backing::Backing>> OpenContents(const std::string& path) {
  if (path.empty()) return nullptr;
  shm::UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return Refuse(errno, "", absl::StrCat("contents ", path, ": ", std::strerror(errno)));
  return backing::OpenHostFile(std::move(fd));
}

absl::Status CheckEmpty(const Values& values) {
  if (values.empty()) return absl::OkStatus();
  return Refuse(EINVAL, "", absl::StrCat("unknown key ", values.begin()->first));
}

absl::Status MakeDevice(Values values, Broker& broker, bool restored) {
  backing::DeviceSpec spec;
  spec.name = Take(values, "name");
  if (restored && broker.devices().Look(spec.name).ok()) return absl::OkStatus();
  spec.kind = Take(values, "kind");
  const absl::StatusOr<mode_t> mode = TakeMode(values);
  if (!mode.ok()) return mode.status();
  spec.mode = *mode;
  absl::StatusOr<std::shared_ptr<backing::Backing>> contents = OpenContents(Take(values, "contents"));
  if (!contents.ok()) return contents.status();
  spec.contents = *std::move(contents);
  // The uid of mem is an option of the kind: whom it is for.
  if (spec.kind != "mem") {
    const absl::StatusOr<Credentials> owner = TakeOwner(values);
    if (!owner.ok()) return owner.status();
    spec.owner = *owner;
  }
  spec.options = std::move(values);
  return broker.devices().Create(spec);
}

absl::Status MakeMount(Values values, Broker& broker, bool restored) {
  const std::string name = Take(values, "name"), device = Take(values, "device"), type = Take(values, "type");
  if (restored && broker.mounts().Has(name)) return absl::OkStatus();
  if (absl::Status status = CheckEmpty(values); !status.ok()) return status;
  return broker.mounts().Mount(name, device, type, Credentials{});
}

absl::Status MakeRamFile(Values values, Broker& broker, bool restored) {
  const std::string name = Take(values, "name"), size = Take(values, "size");
  if (restored && broker.ram_files().Stat(name).ok()) return absl::OkStatus();
  const absl::StatusOr<mode_t> mode = TakeMode(values);
  if (!mode.ok()) return mode.status();
  const absl::StatusOr<Credentials> owner = TakeOwner(values);
  if (!owner.ok()) return owner.status();
  absl::StatusOr<std::shared_ptr<backing::Backing>> contents = OpenContents(Take(values, "contents"));
  if (!contents.ok()) return contents.status();
  if (absl::Status status = CheckEmpty(values); !status.ok()) return status;

  absl::StatusOr<std::uint64_t> bytes = size.empty() ? absl::StatusOr<std::uint64_t>(0) : ParseSize(size);
  if (*contents != nullptr && size.empty()) bytes = (*contents)->Size();
  if (!bytes.ok()) return bytes.status();
  // It has its name when it is whole, so that the next daemon finds no half of it.
  const auto node = broker.ram_files().MakeUnnamed(name, *owner, *mode);
  if (!node.ok()) return node.status();
  if (absl::Status status = (*node)->Grow(*bytes); !status.ok()) return status;
  if (*contents == nullptr) return broker.ram_files().Link(name, *node);
  std::vector<std::byte> chunk(std::size_t{1} << 20);
  for (std::uint64_t offset = 0;;) {
    const absl::StatusOr<std::size_t> count = (*contents)->Read(offset, chunk);
    if (!count.ok()) return count.status();
    if (*count == 0) return broker.ram_files().Link(name, *node);
    const auto read = std::span(chunk).first(*count);
    if (absl::Status status = (*node)->Write(offset, /*append=*/false, read); !status.ok()) return status;
    offset += *count;
  }
}

}  // namespace

absl::Status MakeDeclared(const Config& config, Broker& broker, bool restored) {
  for (const Config::Declared& declared : config.declared) {
    using What = Config::Declared::What;
    if (const int error = shm::FailAt(shm::Point::kDeclare)) return Refuse(error, "", declared.where);
    const absl::Status status = declared.what == What::kDevice  ? MakeDevice(declared.values, broker, restored)
                                : declared.what == What::kMount ? MakeMount(declared.values, broker, restored)
                                                                : MakeRamFile(declared.values, broker, restored);
    if (!status.ok()) {
      return Refuse(EINVAL, nommu::RuleOf(status), absl::StrCat(declared.where, ": ", std::string(status.message())));
    }
  }
  return absl::OkStatus();
}

}  // namespace mapbroker
