// Devices and images of the daemon's namespace (rules D): what they are to be, and what they are.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <string>

#include "mapbroker/file.h"

namespace mapbroker {

// What a device is to be.
struct DeviceOptions {
  std::string name;  // "dev:/" and a name without slashes
  std::string kind;  // zero, null, mem, ramdisk, framebuffer or flash
  // By name, as text; sizes take K, M, G. ramdisk: size, map (direct or copy). framebuffer: width, height, format
  // (xrgb8888, rgb565, gray8), stride. flash: chip (ram, rom, nor), size, erase_size, map. mem: uid.
  std::map<std::string, std::string> options;
  mode_t mode = 0600;  // permission bits
  // What a ramdisk or a flash holds at first: an open descriptor or file, only borrowed; the rest is blank.
  int contents_fd = -1;
  const File* contents_file = nullptr;
};

struct DeviceInfo {
  std::string name;
  std::string kind;
  std::uint64_t size = 0;  // bytes; 0 where it has no memory
  uid_t uid = 0;
  gid_t gid = 0;
  mode_t mode = 0;                                // permission bits
  unsigned capabilities = 0;                      // MAP_COPY 1, MAP_DIRECT 2, READ_MAP 4, WRITE_MAP 8, EXEC_MAP 16
  std::map<std::string, std::string> properties;  // what the kind has to say
};

}  // namespace mapbroker
