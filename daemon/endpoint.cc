#include "daemon/endpoint.h"

#include <arpa/inet.h>

#include <cerrno>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "daemon/nommu/refusal.h"

namespace mapbroker {

std::string Endpoint::ToString() const {
  const bool brackets = absl::StrContains(address, ':');
  return absl::StrCat(brackets ? "[" : "", address, brackets ? "]:" : ":", port);
}

absl::StatusOr<Endpoint> ParseEndpoint(const std::string& text) {
  const absl::Status wrong = nommu::Refuse(
      EINVAL, "", absl::StrCat("\"", text, "\" is no address and port, like \"127.0.0.1:9464\" or \"[::1]:9464\""));
  const std::size_t colon = text.rfind(':');
  Endpoint endpoint;
  if (colon == std::string::npos || !absl::SimpleAtoi(text.substr(colon + 1), &endpoint.port) || endpoint.port < 0 ||
      endpoint.port > 65535) {
    return wrong;
  }
  endpoint.address = text.substr(0, colon);
  if (in_addr v4; inet_pton(AF_INET, endpoint.address.c_str(), &v4) == 1) {
    endpoint.loopback = ntohl(v4.s_addr) >> 24 == 127;
    return endpoint;
  }
  if (!absl::StartsWith(endpoint.address, "[") || !absl::EndsWith(endpoint.address, "]")) return wrong;
  endpoint.address = endpoint.address.substr(1, endpoint.address.size() - 2);
  in6_addr v6;
  if (inet_pton(AF_INET6, endpoint.address.c_str(), &v6) != 1) return wrong;
  endpoint.loopback = IN6_IS_ADDR_LOOPBACK(&v6);
  return endpoint;
}

}  // namespace mapbroker
