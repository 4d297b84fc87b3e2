// A file on FUSE whose server never answers the daemon once the file is open: what fstat, pread and close of it wait
// for.
#pragma once

#include <sys/types.h>

#include <string>

#include "shm_backend/unique_fd.h"
#include "tests/integration/temp_dir.h"

namespace mapbroker::testing {

// Needs root and /dev/fuse. At the end all who wait go on with an error.
//
// The server is a process of its own, and answers everybody else's closing: whoever serves a file and has it open would
// wait for himself at his own end, where no signal wakes him.
class HangingFile {
 public:
  // `victim`: the process whose calls hang.
  explicit HangingFile(pid_t victim);
  ~HangingFile();
  HangingFile(const HangingFile&) = delete;
  HangingFile& operator=(const HangingFile&) = delete;

  // False: no such file system can be mounted here.
  bool mounted() const { return mounted_; }
  // Open for reading. When the victim closes it, it waits.
  int fd() const { return fd_.get(); }

 private:
  const TempDir dir_;
  bool mounted_ = false;
  pid_t server_ = -1;
  shm::UniqueFd fd_;
};

}  // namespace mapbroker::testing
