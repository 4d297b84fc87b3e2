// A file on FUSE whose server never answers once the file is open: what fstat, pread and close of it wait for.
#pragma once

#include <string>
#include <thread>

#include "shm_backend/unique_fd.h"
#include "tests/integration/temp_dir.h"

namespace mapbroker::testing {

// Needs root and /dev/fuse. At the end all who wait go on with an error.
class HangingFile {
 public:
  HangingFile();
  ~HangingFile();
  HangingFile(const HangingFile&) = delete;
  HangingFile& operator=(const HangingFile&) = delete;

  // False: no such file system can be mounted here.
  bool mounted() const { return mounted_; }
  // Open for reading. Whoever closes it waits.
  int fd() const { return fd_; }

 private:
  void Serve() const;

  const TempDir dir_;
  shm::UniqueFd device_;
  bool mounted_ = false;
  std::thread server_;
  int fd_ = -1;
};

}  // namespace mapbroker::testing
