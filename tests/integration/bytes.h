// The contents of files and mappings, as a failing test should show them: never whole.
#pragma once

#include <algorithm>
#include <ostream>
#include <string>
#include <utility>

namespace mapbroker::testing {

class Bytes : public std::string {
 public:
  using std::string::string;
  explicit Bytes(std::string bytes) : std::string(std::move(bytes)) {}

  Bytes Part(std::size_t offset, std::size_t size = npos) const { return Bytes(substr(offset, size)); }

  friend void PrintTo(const Bytes& bytes, std::ostream* out) {
    *out << bytes.size() << " bytes, " << std::count(bytes.begin(), bytes.end(), '\0') << " of them zero, of hash "
         << std::hash<std::string>()(bytes);
  }
};

}  // namespace mapbroker::testing
