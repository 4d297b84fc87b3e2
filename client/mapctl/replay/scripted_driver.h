// Drivers of scenarios: devices that a scenario's process drives, answering as the scenario says.
#pragma once

#include <atomic>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/status/statusor.h"
#include "mapbroker/driver.h"

namespace mapbroker::mapctl {

// A page n of its memory holds the letter that is n after 'A', a page n of what is read from it the one n after 'a'.
class ScriptedDriver {
 public:
  // `order`: "path"; "memory" in bytes; "operations", by name "ok" or the errno to answer, those left out it does not
  // have; "capabilities" COPY, DIRECT, READ, WRITE, EXEC, the default if left out; "block". Throws std::exception for
  // an order that is none.
  static absl::StatusOr<std::unique_ptr<ScriptedDriver>> Register(Client& client, const nlohmann::json& order);

  // How often each operation was called.
  nlohmann::json Calls() const;

 private:
  struct Counts {
    std::atomic<int> get_unmapped_area = 0, mmap = 0, read = 0, close = 0;
  };
  ScriptedDriver(std::shared_ptr<Counts> counts, Driver driver) : counts_(counts), driver_(std::move(driver)) {}

  std::shared_ptr<Counts> counts_;
  Driver driver_;
};

}  // namespace mapbroker::mapctl
