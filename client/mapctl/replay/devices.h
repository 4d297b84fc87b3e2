// The devices and file systems of scenarios, as devices and mounts of the daemon.
#pragma once

#include <map>
#include <string>

#include "absl/status/status.h"
#include "mapbroker/client.h"

namespace mapbroker::mapctl {

// romfs:, cramfs: and romblk: are images of the fixtures directory; dev: are devices that hold images or patterns.
class Devices {
 public:
  // `tag` keeps the names apart from those of others. `client` outlives it.
  Devices(Client& client, const std::string& fixtures, const std::string& tag)
      : client_(client), fixtures_(fixtures), tag_(tag) {}

  // Makes what a scenario's path lies on, if it is not there yet; `contents` are a device's. Fails for what cannot be
  // had here.
  absl::Status Provide(const std::string& scenario_path, const std::string& contents);
  // A process of the scenario is about to make this device.
  void Expect(const std::string& scenario_path);
  // The daemon's name of a scenario's path, made on first use where nothing need be provided; empty if there is none.
  std::string RealPath(const std::string& scenario_path);
  std::string ScenarioPath(const std::string& real_path) const;
  void CleanUp();

 private:
  absl::Status MakeDevice(const std::string& name, const std::string& kind,
                          const std::map<std::string, std::string>& options, const std::string& image);
  absl::Status MakeMount(const std::string& scheme, const std::string& device);
  std::string DeviceName(const std::string& name) const { return "dev:/replay-" + tag_ + "-" + name; }
  std::string MountName(const std::string& scheme) const { return "mnt:/replay-" + tag_ + "-" + scheme; }

  Client& client_;
  const std::string fixtures_, tag_;
  std::map<std::string, std::string> made_;  // device's name in scenarios to the daemon's
  std::map<std::string, std::string> mounted_;
};

}  // namespace mapbroker::mapctl
