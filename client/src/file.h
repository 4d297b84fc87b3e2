// What the library knows of an open ram file.
#pragma once

#include <memory>

#include "client/src/session.h"
#include "mapbroker/file.h"
#include "mapbroker/v1/files.pb.h"

namespace mapbroker {

// Closes the file when destroyed.
struct File::Impl {
  Impl(std::shared_ptr<Session> opened_in, int number) : session(std::move(opened_in)), fd(number) {}
  ~Impl();
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  const std::shared_ptr<Session> session;
  const int fd;  // its number in the session
};

FileStat FromProto(const v1::FileStat& stat);

}  // namespace mapbroker
