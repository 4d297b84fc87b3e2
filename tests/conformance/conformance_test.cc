// Every recording of tests/conformance/recorded/ is played by mapctl replay under modern; what differs must be
// justified in deviations.toml, and what is justified there must differ. The further cases of tests/conformance/cases/,
// written for classic, must all agree.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <toml++/toml.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

namespace {

using nlohmann::json;

struct Deviation {
  std::string file, scenario;
  std::set<int> lines;  // empty: all steps of the scenario
  bool met = false;
};

std::vector<Deviation> ReadDeviations(const std::string& file) {
  std::vector<Deviation> deviations;
  const toml::table table = toml::parse_file(CONFORMANCE_DIR "/deviations.toml");
  for (const toml::node& node : *table["deviation"].as_array()) {
    const toml::table& entry = *node.as_table();
    for (const char* key : {"rule", "answer", "why"}) {
      EXPECT_FALSE(entry[key].value_or(std::string()).empty()) << key << " is missing at " << entry.source().begin;
    }
    Deviation deviation{entry["file"].value_or(std::string()), entry["scenario"].value_or(std::string()), {}, false};
    if (const toml::array* lines = entry["lines"].as_array(); lines != nullptr) {
      for (const toml::node& line : *lines) deviation.lines.insert(line.value_or(0));
    }
    if (deviation.file == file) deviations.push_back(std::move(deviation));
  }
  return deviations;
}

// The objects that the tool printed, a line each; its exit status is 0 or 1.
std::vector<json> Play(const std::string& profile, const std::string& path) {
  std::vector<json> objects;
  const std::string command = std::string(MAPCTL) + " --json replay --profile " + profile + " " + path;
  FILE* tool = popen(command.c_str(), "r");
  char* line = nullptr;
  std::size_t size = 0;
  while (getline(&line, &size, tool) > 0) objects.push_back(json::parse(line));
  std::free(line);
  const int status = pclose(tool);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) <= 1) << status;
  return objects;
}

std::vector<std::string> FilesIn(const std::string& directory) {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(CONFORMANCE_DIR "/" + directory)) {
    if (entry.path().extension() == ".jsonl") files.push_back(entry.path().filename());
  }
  std::sort(files.begin(), files.end());
  return files;
}

std::string TestName(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = std::filesystem::path(info.param).stem();
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

class ConformanceTest : public ::testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Recorded, ConformanceTest, ::testing::ValuesIn(FilesIn("recorded")), TestName);
class CasesConformanceTest : public ::testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Classic, CasesConformanceTest, ::testing::ValuesIn(FilesIn("cases")), TestName);

TEST_P(ConformanceTest, AnswersAsTheRecordedKernel) {
  std::vector<Deviation> deviations = ReadDeviations(GetParam());
  const std::vector<json> played = Play("modern", CONFORMANCE_DIR "/recorded/" + GetParam());
  ASSERT_FALSE(played.empty());
  const json& summary = played.back();
  ASSERT_TRUE(summary.contains("agree"));
  EXPECT_GT(summary["agree"].get<int>(), 0);
  RecordProperty("agree", summary["agree"].get<int>());
  RecordProperty("not_applicable", summary["not_applicable"].get<int>());
  for (std::size_t i = 0; i + 1 < played.size(); ++i) {
    const json& difference = played[i];
    bool justified = false;
    for (Deviation& deviation : deviations) {
      if (deviation.scenario != difference["scenario"]) continue;
      if (!deviation.lines.empty() && !deviation.lines.contains(difference["line"].get<int>())) continue;
      deviation.met = justified = true;
    }
    EXPECT_TRUE(justified) << "line " << difference["line"] << ", " << difference["scenario"] << "\n  step "
                           << difference["step"] << "\n  got  " << difference["got"];
  }
  for (const Deviation& deviation : deviations) {
    EXPECT_TRUE(deviation.met) << deviation.scenario << " does not deviate: take it out of deviations.toml";
  }
}

TEST_P(CasesConformanceTest, AgreesInEveryStep) {
  const std::vector<json> played = Play("classic", CONFORMANCE_DIR "/cases/" + GetParam());
  ASSERT_EQ(played.size(), 1u) << played.front();
  EXPECT_GT(played.back()["agree"].get<int>(), 0);
  EXPECT_EQ(played.back()["not_applicable"].get<int>(), 0);
}

}  // namespace
