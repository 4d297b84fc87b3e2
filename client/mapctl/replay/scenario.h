// Scenario files: what is to be done, and what a kernel answered. The format is described in docs/replay.md.
#pragma once

#include <istream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace mapbroker::mapctl {

// One line of a scenario. Every field but `op` may be absent from the JSON object.
struct Step {
  int line = 0;      // in its file, from 1
  std::string proc;  // empty: no process does it
  std::string op;
  std::string as;            // name of what the step makes
  nlohmann::json arguments;  // the whole object
  nlohmann::json want;       // null: nothing is compared
};

struct Scenario {
  std::string name;
  std::vector<std::string> tags;
  bool large = false;  // needs a machine with much memory
  std::vector<Step> steps;
  bool HasTag(const std::string& tag) const;
};

// InvalidArgument names the line and what is wrong with it.
absl::StatusOr<std::vector<Scenario>> ParseScenarios(std::istream& file);

// A number of a step: as JSON has it or, where it is large, a string in hexadecimal. `otherwise` if it is absent.
// Throws std::invalid_argument or std::out_of_range if it is neither.
std::uint64_t NumberOf(const nlohmann::json& step, const char* key, std::uint64_t otherwise = 0);

}  // namespace mapbroker::mapctl
