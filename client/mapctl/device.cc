// mapctl device, flash, mount, umount and ls: devices, what is on them, and the daemon's files.
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "client/mapctl/mapctl.h"
#include "shm_backend/unique_fd.h"

namespace mapbroker::mapctl {
namespace {

// Bytes of one read or write between a descriptor and a device.
constexpr std::size_t kChunk = 1 << 20;

struct DeviceArguments {
  std::string name, kind, file, type;
  std::vector<std::string> options;
  std::string mode = "0600";
  std::uint64_t offset = 0, length = 0;
};

std::string DeviceName(const std::string& name) {
  return name.rfind("dev:", 0) == 0 ? name : absl::StrCat("dev:/", name);
}
std::string MountName(const std::string& name) {
  return name.rfind("mnt:", 0) == 0 ? name : absl::StrCat("mnt:/", name);
}

absl::Status HostFault(const std::string& file) {
  return absl::FailedPreconditionError(absl::StrCat(file, ": ", strerrorname_np(errno), ": ", std::strerror(errno)));
}

std::string CapabilityNames(unsigned capabilities) {
  std::string names;
  const char* const all[] = {"copy", "direct", "read", "write", "exec"};
  for (unsigned bit = 0; bit < std::size(all); ++bit) {
    if ((capabilities >> bit & 1) != 0) absl::StrAppend(&names, names.empty() ? "" : ",", all[bit]);
  }
  return names.empty() ? "none" : names;
}

nlohmann::json Object(const DeviceInfo& info) {
  return {{"name", info.name},
          {"kind", info.kind},
          {"size", info.size},
          {"uid", info.uid},
          {"gid", info.gid},
          {"mode", info.mode},
          {"map", CapabilityNames(info.capabilities)},
          {"properties", info.properties}};
}

absl::Status List(const DeviceArguments&, Client& client, const Context& context) {
  nlohmann::json objects = nlohmann::json::array();
  if (!context.json) std::cout << "mode  user   kind         bytes             map                          name\n";
  const absl::Status status = client.ListDevices([&](const DeviceInfo& info) {
    if (context.json) {
      objects.push_back(Object(info));
    } else {
      std::cout << absl::StreamFormat("%04o  %-6d %-12s %-17d %-28s %s\n", info.mode, info.uid, info.kind, info.size,
                                      CapabilityNames(info.capabilities), info.name);
    }
    return std::cout.good();
  });
  if (status.ok() && context.json) std::cout << objects << '\n';
  return status;
}

absl::Status Info(const DeviceArguments& arguments, Client& client, const Context& context) {
  const absl::StatusOr<DeviceInfo> info = client.GetDevice(DeviceName(arguments.name));
  if (!info.ok()) return info.status();
  if (context.json) {
    std::cout << Object(*info) << '\n';
    return absl::OkStatus();
  }
  std::cout << info->name << "\nkind        " << info->kind << "\nbytes       " << info->size << "\nmap         "
            << CapabilityNames(info->capabilities) << '\n';
  for (const auto& [name, value] : info->properties) std::cout << absl::StreamFormat("%-11s %s\n", name, value);
  return absl::OkStatus();
}

absl::Status Create(const DeviceArguments& arguments, Client& client, const Context&) {
  DeviceOptions device{.name = DeviceName(arguments.name),
                       .kind = arguments.kind,
                       .options = {},
                       .mode = static_cast<mode_t>(std::stoul(arguments.mode, nullptr, 8))};
  for (const std::string& option : arguments.options) {
    const std::pair<std::string, std::string> pair = absl::StrSplit(option, absl::MaxSplits('=', 1));
    device.options.insert(pair);
  }
  shm::UniqueFd contents;
  if (!arguments.file.empty()) {
    contents = shm::UniqueFd(open(arguments.file.c_str(), O_RDONLY | O_CLOEXEC));
    if (!contents) return HostFault(arguments.file);
    device.contents_fd = contents.get();
  }
  return client.CreateDevice(device);
}

absl::Status Remove(const DeviceArguments& arguments, Client& client, const Context&) {
  return client.RemoveDevice(DeviceName(arguments.name));
}

absl::Status Program(const DeviceArguments& arguments, Client& client, const Context&) {
  const shm::UniqueFd from(open(arguments.file.c_str(), O_RDONLY | O_CLOEXEC));
  if (!from) return HostFault(arguments.file);
  const absl::StatusOr<File> device = client.Open(DeviceName(arguments.name), O_WRONLY);
  if (!device.ok()) return device.status();
  std::vector<std::byte> chunk(kChunk);
  for (std::uint64_t offset = arguments.offset;;) {
    const ssize_t count = read(from.get(), chunk.data(), chunk.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return HostFault(arguments.file);
    if (count == 0) return absl::OkStatus();
    const auto bytes = std::span(chunk).first(static_cast<std::size_t>(count));
    if (absl::Status status = device->Pwrite(bytes, offset); !status.ok()) return status;
    offset += bytes.size();
  }
}

absl::Status Erase(const DeviceArguments& arguments, Client& client, const Context&) {
  const std::string name = DeviceName(arguments.name);
  if (arguments.length != 0) return client.EraseFlash(name, arguments.offset, arguments.length);
  const absl::StatusOr<DeviceInfo> info = client.GetDevice(name);
  if (!info.ok()) return info.status();
  return client.EraseFlash(name, arguments.offset, info->size - std::min(info->size, arguments.offset));
}

absl::Status Dump(const DeviceArguments& arguments, Client& client, const Context&) {
  const absl::StatusOr<File> device = client.Open(DeviceName(arguments.name), O_RDONLY);
  if (!device.ok()) return device.status();
  const absl::StatusOr<FileStat> stat = device->Stat();
  if (!stat.ok()) return stat.status();
  std::uint64_t left = arguments.length == 0 ? stat->size : arguments.length;
  std::vector<std::byte> chunk(kChunk);
  for (std::uint64_t offset = arguments.offset; left > 0;) {
    const auto into = std::span(chunk).first(std::min<std::uint64_t>(left, kChunk));
    const absl::StatusOr<std::size_t> count = device->Pread(into, offset);
    if (!count.ok()) return count.status();
    if (*count == 0) break;
    if (absl::Status status = WriteAll(STDOUT_FILENO, into.first(*count)); !status.ok()) return status;
    offset += *count;
    left -= *count;
  }
  return absl::OkStatus();
}

absl::Status Mount(const DeviceArguments& arguments, Client& client, const Context&) {
  return client.Mount(MountName(arguments.name), DeviceName(arguments.file), arguments.type);
}

absl::Status Unmount(const DeviceArguments& arguments, Client& client, const Context&) {
  return client.Unmount(MountName(arguments.name));
}

absl::Status ListFiles(const DeviceArguments& arguments, Client& client, const Context& context) {
  nlohmann::json objects = nlohmann::json::array();
  const absl::Status status = client.ListFiles(arguments.name, [&](const FileStat& stat) {
    if (context.json) {
      objects.push_back({{"name", stat.name}, {"size", stat.size}, {"mode", stat.mode}, {"uid", stat.uid}});
    } else {
      std::cout << absl::StreamFormat("%04o  %-6d %-17d %s\n", stat.mode, stat.uid, stat.size, stat.name);
    }
    return std::cout.good();
  });
  if (status.ok() && context.json) {
    std::cout << objects.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << '\n';
  }
  return status;
}

using Command = absl::Status (*)(const DeviceArguments&, Client&, const Context&);

}  // namespace

void AddDevice(CLI::App& program, Context& context) {
  const auto arguments = std::make_shared<DeviceArguments>();
  const auto add = [&](CLI::App& parent, const char* name, const char* about, Command run) {
    return parent.add_subcommand(name, about)->callback([arguments, &context, run] {
      absl::StatusOr<Client> client = context.Connect();
      context.exit_status = Report(client.ok() ? run(*arguments, *client, context) : client.status());
    });
  };
  const auto name = [&](CLI::App* command, const char* what) {
    command->add_option("NAME", arguments->name, what)->required();
    return command;
  };
  const auto range = [&](CLI::App* command) {
    command->add_option("--offset", arguments->offset, "bytes from the start, also with K, M, G")->transform(Bytes());
    command->add_option("--length", arguments->length, "bytes (default: to the end)")->transform(Bytes());
  };

  CLI::App* device = program.add_subcommand("device", "devices of the daemon")->require_subcommand(1);
  add(*device, "ls", "list devices", List);
  CLI::App* create = name(add(*device, "create", "make a device", Create), "the device, like dev:/fb0");
  create->add_option("KIND", arguments->kind, "zero, null, mem, ramdisk, framebuffer or flash")->required();
  create->add_option("OPTION=VALUE", arguments->options, "options of the kind, like size=1M")
      ->check([](const std::string& text) {
        return text.find('=') == std::string::npos ? text + " is not of the form OPTION=VALUE" : std::string();
      });
  create->add_option("--contents", arguments->file, "a file whose bytes it holds at first");
  create->add_option("--mode", arguments->mode, "permission bits, octal (default 0600)")->check(OctalMode());
  name(add(*device, "rm", "remove a device; who has it open or mapped keeps it", Remove), "the device");
  name(add(*device, "info", "show what a device is", Info), "the device");

  CLI::App* flash = program.add_subcommand("flash", "program, erase and dump flash")->require_subcommand(1);
  CLI::App* write =
      name(add(*flash, "program", "program a file into a flash: bits are only cleared", Program), "the flash");
  write->add_option("FILE", arguments->file, "the file")->required();
  write->add_option("--offset", arguments->offset, "bytes from the start, also with K, M, G")->transform(Bytes());
  range(name(add(*flash, "erase", "set a range of a flash to erased, by default all of it", Erase), "the flash"));
  range(name(add(*flash, "dump", "write what a device holds to standard output", Dump), "the device"));

  CLI::App* mount = add(program, "mount", "mount the romfs or cramfs image on a device", Mount);
  mount->add_option("DEVICE", arguments->file, "the device")->required();
  name(mount, "the mount, like mnt:/rom")->add_option("--type", arguments->type, "romfs or cramfs (default: look)");
  name(add(program, "umount", "unmount an image; open and mapped files stay", Unmount), "the mount");
  add(program, "ls", "list the daemon's files: ram:, dev: and mnt:", ListFiles)
      ->add_option("PREFIX", arguments->name, "only names that begin with it, like mnt:/rom/");
}

}  // namespace mapbroker::mapctl
