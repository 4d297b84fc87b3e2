// The C face: devices that this process drives.
#include <cerrno>
#include <memory>
#include <utility>

#include "client/src/c_session.h"
#include "mapbroker/driver.h"
#include "mapbroker/mapbroker.h"

struct mb_driver {
  mapbroker::Driver driver;
};

namespace {

using mapbroker::DriverArea;
using mapbroker::DriverError;
using mapbroker::DriverRequest;

// The functions of C as those of C++; the ones that are not there stay empty.
mapbroker::DriverOperations Operations(const mb_driver_operations& from, void* context) {
  mapbroker::DriverOperations to;
  if (from.get_unmapped_area != nullptr) {
    to.get_unmapped_area = [ask = from.get_unmapped_area,
                            context](const DriverRequest& request) -> absl::StatusOr<std::uint64_t> {
      const int64_t answer = ask(context, request.offset, request.length, request.prot, request.flags);
      if (answer < 0) return DriverError(static_cast<int>(-answer));
      return static_cast<std::uint64_t>(answer);
    };
  }
  if (from.mmap != nullptr) {
    to.mmap = [ask = from.mmap, context](const DriverRequest& request, const DriverArea& area) {
      const int answer = ask(context, request.offset, request.length, request.prot, request.flags, area.offset);
      return answer < 0 ? DriverError(-answer) : absl::OkStatus();
    };
  }
  if (from.read != nullptr) {
    to.read = [ask = from.read, context](std::uint64_t offset,
                                         std::span<std::byte> into) -> absl::StatusOr<std::size_t> {
      const ssize_t answer = ask(context, offset, into.data(), into.size());
      if (answer < 0) return DriverError(static_cast<int>(-answer));
      return static_cast<std::size_t>(answer);
    };
  }
  if (from.close != nullptr) {
    to.close = [tell = from.close, context](const DriverArea& area) { tell(context, area.offset, area.length); };
  }
  return to;
}

}  // namespace

extern "C" {

mb_driver* mb_driver_register(mb_session* session, const struct mb_driver_options* options,
                              const struct mb_driver_operations* operations, void* context) {
  mapbroker::DriverOptions wanted;
  wanted.name = options->name;
  wanted.block = options->block != 0;
  wanted.mode = options->mode;
  if (options->capabilities != 0) wanted.capabilities = options->capabilities;
  wanted.memory = options->memory;
  wanted.size = options->size;
  absl::StatusOr<mapbroker::Driver> driver =
      mapbroker::Driver::Register(session->client, wanted, Operations(*operations, context));
  if (driver.ok()) return new mb_driver{*std::move(driver)};
  mapbroker::c_face::Fail(driver.status());
  return nullptr;
}

void* mb_driver_memory(mb_driver* driver) { return driver->driver.memory().data(); }

int mb_driver_wait(mb_driver* driver) {
  const absl::Status status = driver->driver.Wait();
  if (status.ok()) return 0;
  mapbroker::c_face::Fail(status);
  return -1;
}

void mb_driver_unregister(mb_driver* driver) { delete driver; }

}  // extern "C"
