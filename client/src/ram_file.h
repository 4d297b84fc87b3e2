// What the library knows of an open ram file.
#pragma once

#include <memory>

#include "client/src/session.h"
#include "mapbroker/ram_file.h"
#include "mapbroker/v1/ram_files.pb.h"

namespace mapbroker {

// Closes the file when destroyed.
struct RamFile::Impl {
  Impl(std::shared_ptr<Session> opened_in, int number) : session(std::move(opened_in)), fd(number) {}
  ~Impl();
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  const std::shared_ptr<Session> session;
  const int fd;  // its number in the session
};

RamStat FromProto(const v1::RamStat& stat);

}  // namespace mapbroker
