#include "tests/integration/temp_dir.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <system_error>

namespace mapbroker::testing {

TempDir::TempDir() {
  std::string pattern = (std::filesystem::temp_directory_path() / "mapbroker.XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr) throw std::system_error(errno, std::generic_category(), pattern);
  path_ = pattern;
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string TempDir::MakeFile(const std::string& name, std::size_t size) const {
  std::mt19937_64 random(size);
  std::string contents(size, '\0');
  for (std::size_t at = 0; at < size; at += 512) contents[at] = static_cast<char>(random());
  return WriteFile(name, contents);
}

std::string TempDir::MakeSparseFile(const std::string& name, std::uint64_t size) const {
  WriteFile(name, "");
  std::filesystem::resize_file(Path(name), size);
  return Path(name);
}

std::string TempDir::WriteFile(const std::string& name, const std::string& contents) const {
  std::ofstream file(Path(name), std::ios::binary);
  file << contents;
  EXPECT_TRUE(file.flush().good()) << Path(name);
  return Path(name);
}

std::vector<std::string> TempDir::Entries() const {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(path_)) names.push_back(entry.path().filename());
  return names;
}

Bytes ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return Bytes(std::istreambuf_iterator<char>(file), {});
}

}  // namespace mapbroker::testing
