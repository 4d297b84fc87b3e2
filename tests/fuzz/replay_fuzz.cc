// Scenario files that are none.
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

#include "client/mapctl/replay/scenario.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::istringstream file(std::string(reinterpret_cast<const char*>(data), size));
  const auto scenarios = mapbroker::mapctl::ParseScenarios(file);
  if (!scenarios.ok()) return 0;
  for (const auto& scenario : *scenarios) {
    for (const auto& step : scenario.steps) {
      for (const auto& [key, value] : step.arguments.items()) {
        try {
          mapbroker::mapctl::NumberOf(step.arguments, key.c_str());
        } catch (const std::invalid_argument&) {  // the step is then reported as a bad one
        } catch (const std::out_of_range&) {
        }
      }
    }
  }
  return 0;
}
