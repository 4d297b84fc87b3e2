// What a Client is made of.
#pragma once

#include <memory>

#include "client/src/session.h"
#include "mapbroker/client.h"

namespace mapbroker {

struct Client::Impl {
  std::shared_ptr<Session> session;
};

}  // namespace mapbroker
