#include "daemon/size.h"

#include <algorithm>
#include <cctype>
#include <cerrno>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "daemon/nommu/refusal.h"

namespace mapbroker {

absl::StatusOr<std::uint64_t> ParseSize(const std::string& text) {
  const std::size_t digits = std::min(text.find_first_not_of("0123456789"), text.size());
  std::uint64_t number;
  const absl::Status no_size =
      nommu::Refuse(EINVAL, "", absl::StrCat("\"", text, "\" is no size: write bytes, or a number with K, M, G or T"));
  if (!absl::SimpleAtoi(text.substr(0, digits), &number)) return no_size;
  std::string unit = text.substr(digits);
  unsigned shift = 0;
  if (!unit.empty()) {
    const std::size_t power =
        std::string("KMGT").find(static_cast<char>(std::toupper(static_cast<unsigned char>(unit.front()))));
    const std::string rest = unit.substr(1);
    if (power == std::string::npos || (!rest.empty() && rest != "B" && rest != "iB")) return no_size;
    shift = 10 * static_cast<unsigned>(power + 1);
  }
  if (number > UINT64_MAX >> shift)
    return nommu::Refuse(EINVAL, "", absl::StrCat("\"", text, "\" is larger than any memory"));
  return number << shift;
}

}  // namespace mapbroker
