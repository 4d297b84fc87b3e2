// Lets boost::interprocess::mapped_region map a descriptor that came from anywhere: memfd_create, a socket.
#pragma once

#include <boost/interprocess/detail/os_file_functions.hpp>
#include <boost/interprocess/interprocess_fwd.hpp>

namespace mapbroker::shm {

// The part of a Boost.Interprocess memory object that mapped_region asks for. Does not own the descriptor.
class DescriptorMemory {
 public:
  DescriptorMemory(int fd, boost::interprocess::mode_t mode) : fd_(fd), mode_(mode) {}

  boost::interprocess::mapping_handle_t get_mapping_handle() const {
    return boost::interprocess::ipcdetail::mapping_handle_from_file_handle(fd_);
  }
  boost::interprocess::mode_t get_mode() const { return mode_; }

 private:
  int fd_;
  boost::interprocess::mode_t mode_;
};

}  // namespace mapbroker::shm
