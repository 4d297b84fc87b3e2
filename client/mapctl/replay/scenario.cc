#include "client/mapctl/replay/scenario.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "absl/strings/str_cat.h"

namespace mapbroker::mapctl {
namespace {

using nlohmann::json;

absl::Status Wrong(int line, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("line ", line, ": ", what));
}

absl::StatusOr<Scenario> ParseHeader(const nlohmann::json& object, int line) {
  Scenario scenario;
  if (!object["scenario"].is_string()) return Wrong(line, "the scenario's name is no string");
  scenario.name = object["scenario"];
  scenario.large = object.value("memory", json()) == "large";
  if (!object.contains("tags")) return scenario;
  if (!object["tags"].is_array()) return Wrong(line, "tags is no list");
  for (const auto& tag : object["tags"]) {
    if (!tag.is_string()) return Wrong(line, "a tag is no string");
    scenario.tags.push_back(tag);
  }
  return scenario;
}

absl::StatusOr<Step> ParseStep(const nlohmann::json& object, int line) {
  Step step;
  step.line = line;
  const auto take = [&](const char* key, std::string& into) {
    if (!object.contains(key)) return true;
    if (!object[key].is_string()) return false;
    into = object[key];
    return true;
  };
  if (!take("op", step.op) || step.op.empty()) return Wrong(line, "a step needs an op");
  if (!take("proc", step.proc)) return Wrong(line, "proc is no string");
  if (!take("as", step.as)) return Wrong(line, "as is no string");
  if (object.contains("want")) {
    if (!object["want"].is_object()) return Wrong(line, "want is no object");
    step.want = object["want"];
  }
  step.arguments = object;
  return step;
}

}  // namespace

bool Scenario::HasTag(const std::string& tag) const { return std::find(tags.begin(), tags.end(), tag) != tags.end(); }

absl::StatusOr<std::vector<Scenario>> ParseScenarios(std::istream& file) {
  std::vector<Scenario> scenarios;
  std::string text;
  for (int line = 1; std::getline(file, text); ++line) {
    if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
    const nlohmann::json object = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!object.is_object()) return Wrong(line, "this is no JSON object");
    if (object.contains("scenario")) {
      absl::StatusOr<Scenario> scenario = ParseHeader(object, line);
      if (!scenario.ok()) return scenario.status();
      scenarios.push_back(*std::move(scenario));
      continue;
    }
    if (scenarios.empty()) return Wrong(line, "a step before the first scenario");
    absl::StatusOr<Step> step = ParseStep(object, line);
    if (!step.ok()) return step.status();
    scenarios.back().steps.push_back(*std::move(step));
  }
  return scenarios;
}

std::uint64_t NumberOf(const nlohmann::json& step, const char* key, std::uint64_t otherwise) {
  const auto found = step.find(key);
  if (found == step.end() || found->is_null()) return otherwise;
  if (found->is_string()) return std::stoull(found->get<std::string>(), nullptr, 16);
  if (found->is_number_unsigned()) return found->get<std::uint64_t>();
  if (found->is_number_integer()) return static_cast<std::uint64_t>(found->get<std::int64_t>());
  throw std::invalid_argument(absl::StrCat(key, " is no whole number"));
}

}  // namespace mapbroker::mapctl
