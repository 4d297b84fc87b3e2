// An address and a port to listen on.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace mapbroker {

struct Endpoint {
  std::string address;  // numeric; IPv6 without brackets
  int port = 0;         // 0: any that is free
  bool loopback = false;

  // "127.0.0.1:9464", "[::1]:9464".
  std::string ToString() const;
  bool operator==(const Endpoint&) const = default;
};

// Reads what ToString writes; names are not looked up. EINVAL.
absl::StatusOr<Endpoint> ParseEndpoint(const std::string& text);

}  // namespace mapbroker
