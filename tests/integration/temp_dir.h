// A directory of a test's own, and files in it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "tests/integration/bytes.h"

namespace mapbroker::testing {

// Removed with all that is in it at the end of the test.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  std::string Path(const std::string& name) const { return path_ + "/" + name; }

  // Makes a file of `size` bytes that differ from page to page; its path.
  std::string MakeFile(const std::string& name, std::size_t size) const;
  // Makes a file of `size` zero bytes that takes no disk; its path.
  std::string MakeSparseFile(const std::string& name, std::uint64_t size) const;
  // Makes a file of these contents; its path.
  std::string WriteFile(const std::string& name, const std::string& contents) const;

  // Names of what is in the directory.
  std::vector<std::string> Entries() const;

 private:
  std::string path_;
};

// The file's bytes.
Bytes ReadFile(const std::string& path);

}  // namespace mapbroker::testing
