#include "client/mapctl/replay/devices.h"

#include <fcntl.h>

#include "absl/strings/str_cat.h"
#include "shm_backend/unique_fd.h"

namespace mapbroker::mapctl {
namespace {

// What holds an image or is one, by its name in scenarios; "-ro" names the same device.
struct Known {
  const char* name;
  const char* kind;
  std::map<std::string, std::string> options;
  const char* image;  // in the fixtures directory; null: none
};

// Bytes as on the machine that recorded.
const Known kKnown[] = {
    {"mtd-ram", "flash", {{"chip", "ram"}, {"size", "256K"}}, "mtd-ram.img"},
    {"mtd-rom", "flash", {{"chip", "rom"}, {"size", "1M"}}, "romfs.img"},
    {"mtd-nor", "flash", {{"chip", "nor"}, {"size", "256K"}, {"map", "copy"}}, nullptr},
    {"mtd-cramfs", "flash", {{"chip", "rom"}, {"size", "1M"}}, "cramfs.img"},
    {"block", "ramdisk", {{"map", "copy"}, {"size", "1M"}}, "romfs.img"},
    {"disk", "ramdisk", {{"map", "copy"}, {"size", "256K"}}, nullptr},
    {"ram0", "ramdisk", {{"map", "copy"}, {"size", "64K"}}, nullptr},
    {"zero", "zero", {}, nullptr},
    // Not of the recordings: for scenarios of one's own.
    {"ramdisk", "ramdisk", {{"size", "64K"}}, nullptr},
    {"fb", "framebuffer", {{"width", "64"}, {"height", "64"}}, nullptr},
    {"flash", "flash", {{"chip", "nor"}, {"size", "64K"}, {"erase_size", "4K"}}, nullptr},
};

const Known* Find(const std::string& name) {
  for (const Known& known : kKnown) {
    if (name == known.name) return &known;
  }
  return nullptr;
}

std::string WithoutSuffix(std::string name) {
  if (name.size() > 3 && name.compare(name.size() - 3, 3, "-ro") == 0) name.resize(name.size() - 3);
  return name;
}

std::string SchemeOf(const std::string& path) { return path.substr(0, path.find(':')); }

// Where the images of scenarios lie.
std::string DeviceOf(const std::string& scheme) {
  if (scheme == "romfs") return "mtd-rom";
  if (scheme == "cramfs") return "mtd-cramfs";
  return scheme == "romblk" ? "block" : "";
}

}  // namespace

absl::Status Devices::MakeDevice(const std::string& name, const std::string& kind,
                                 const std::map<std::string, std::string>& options, const std::string& image) {
  if (made_.contains(name)) return absl::OkStatus();
  DeviceOptions device{.name = DeviceName(name), .kind = kind, .options = options, .mode = 0666};
  shm::UniqueFd contents;
  if (!image.empty()) {
    contents = shm::UniqueFd(open(absl::StrCat(fixtures_, "/", image).c_str(), O_RDONLY | O_CLOEXEC));
    if (!contents) return absl::NotFoundError(absl::StrCat("no ", image, " in ", fixtures_));
    device.contents_fd = contents.get();
  }
  const absl::Status status = client_.CreateDevice(device);
  if (status.ok()) made_[name] = device.name;
  return status;
}

absl::Status Devices::MakeMount(const std::string& scheme, const std::string& device) {
  if (mounted_.contains(scheme)) return absl::OkStatus();
  const Known& known = *Find(device);
  if (absl::Status status = MakeDevice(device, known.kind, known.options, known.image); !status.ok()) return status;
  const absl::Status status = client_.Mount(MountName(scheme), DeviceName(device));
  if (status.ok()) mounted_[scheme] = MountName(scheme);
  return status;
}

absl::Status Devices::Provide(const std::string& scenario_path, const std::string& contents) {
  const std::string scheme = SchemeOf(scenario_path);
  if (const std::string device = DeviceOf(scheme); !device.empty()) return MakeMount(scheme, device);
  if (scheme != "dev") return absl::NotFoundError("no such kind of file");
  const std::string name = scenario_path.substr(4);
  const Known* const known = Find(name);
  if (known == nullptr) return absl::OkStatus();  // a bus of devices: they are made when they are opened
  if (absl::Status status = MakeDevice(name, known->kind, known->options, known->image == nullptr ? "" : known->image);
      !status.ok()) {
    return status;
  }
  if (contents.empty() || known->image != nullptr) return absl::OkStatus();
  const absl::StatusOr<File> device = client_.Open(DeviceName(name), O_WRONLY);
  return device.ok() ? device->Pwrite(std::as_bytes(std::span(contents)), 0) : device.status();
}

void Devices::Expect(const std::string& scenario_path) {
  const std::string name = scenario_path.substr(scenario_path.find(':') + 1);
  made_[name] = DeviceName(name);
}

std::string Devices::RealPath(const std::string& scenario_path) {
  const std::string scheme = SchemeOf(scenario_path), rest = scenario_path.substr(scheme.size() + 1);
  if (const auto mount = mounted_.find(scheme); mount != mounted_.end()) return mount->second + rest;
  if (scheme != "dev") return "";
  const std::string name = WithoutSuffix(rest);
  if (const auto made = made_.find(name); made != made_.end()) return made->second;
  const Known* const known = Find(name);
  if (known == nullptr) return "";
  const absl::Status status =
      MakeDevice(name, known->kind, known->options, known->image == nullptr ? "" : known->image);
  return status.ok() ? DeviceName(name) : "";
}

std::string Devices::ScenarioPath(const std::string& real_path) const {
  for (const auto& [name, real] : made_) {
    if (real_path == real) return "dev:" + name;
  }
  for (const auto& [scheme, mount] : mounted_) {
    if (real_path.rfind(mount + "/", 0) == 0) return scheme + ":" + real_path.substr(mount.size());
  }
  return real_path;
}

void Devices::CleanUp() {
  for (const auto& [scheme, mount] : mounted_) client_.Unmount(mount).IgnoreError();
  for (const auto& [name, device] : made_) client_.RemoveDevice(device).IgnoreError();
}

}  // namespace mapbroker::mapctl
