// How benchmark programs say what they measured: a table row, and a JSON object for programs.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace mapbroker::bench {

// The sample below which a part (0 to 1) of them lies. REQUIRES: there is one.
inline double Quantile(std::vector<double> samples, double part) {
  const auto at = samples.begin() + static_cast<std::ptrdiff_t>(part * static_cast<double>(samples.size() - 1));
  std::nth_element(samples.begin(), at, samples.end());
  return *at;
}

inline double Median(const std::vector<double>& samples) { return Quantile(samples, 0.5); }

// Prints the row; appends it as one JSON object a line to the file that MAPBROKER_BENCH_JSON names.
inline void Report(const std::string& name, double ours, double baseline, const std::string& unit) {
  const double ratio = ours / baseline;
  std::printf("%-58s %14.2f %14.2f %8.3f  %s\n", name.c_str(), ours, baseline, ratio, unit.c_str());
  std::fflush(stdout);
  if (const char* path = std::getenv("MAPBROKER_BENCH_JSON"); path != nullptr) {
    const nlohmann::json row{{"name", name}, {"ours", ours}, {"baseline", baseline}, {"ratio", ratio}, {"unit", unit}};
    std::ofstream(path, std::ios::app) << row << '\n';
  }
}

}  // namespace mapbroker::bench
