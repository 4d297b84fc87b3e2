// Configuration files, sizes and pool kinds as an administrator may mistype them.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>

#include "daemon/config.h"
#include "daemon/size.h"
#include "shm_backend/segment.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  mapbroker::ParseSize(text).IgnoreError();
  mapbroker::shm::ParseSegmentSpec(text).IgnoreError();

  const int file = memfd_create("config", MFD_CLOEXEC);
  if (write(file, data, size) != static_cast<ssize_t>(size)) std::abort();
  mapbroker::Config config;
  const absl::Status status = mapbroker::ReadConfigFile("/proc/self/fd/" + std::to_string(file), config);
  // A mistake changes nothing.
  if (!status.ok() && (config.pool.size != 0 || config.runtime_dir != mapbroker::Config().runtime_dir)) std::abort();
  close(file);
  return 0;
}
