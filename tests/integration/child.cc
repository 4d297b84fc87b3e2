#include "tests/integration/child.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <thread>

namespace mapbroker::testing {
namespace {

using shm::UniqueFd;

struct Channel {
  UniqueFd ours, theirs;
};

// A socket pair, since a write to one can fail without SIGPIPE.
Channel MakeChannel() {
  std::array<int, 2> ends;
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0) {
    throw std::system_error(errno, std::generic_category(), "socketpair");
  }
  return Channel{UniqueFd(ends[0]), UniqueFd(ends[1])};
}

std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (std::string& string : strings) pointers.push_back(string.data());
  pointers.push_back(nullptr);
  return pointers;
}

bool Readable(int fd) {
  const int milliseconds = static_cast<int>(std::chrono::milliseconds(kDeadline).count());
  pollfd waiting{.fd = fd, .events = POLLIN, .revents = 0};
  int ready;
  do {
    ready = poll(&waiting, 1, milliseconds);
  } while (ready < 0 && errno == EINTR);
  return ready > 0;
}

}  // namespace

bool WaitUntil(const std::string& what, const std::function<bool()>& condition) {
  const auto end = std::chrono::steady_clock::now() + kDeadline;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) {
      ADD_FAILURE() << "did not come to pass: " << what;
      return false;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

Child::Child(const std::vector<std::string>& arguments, const Environment& environment,
             const std::vector<int>& descriptors) {
  Channel in = MakeChannel(), out = MakeChannel();
  errors_.reset(memfd_create("errors", MFD_CLOEXEC));
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in.theirs.get(), STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, out.theirs.get(), STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, errors_.get(), STDERR_FILENO);
  std::vector<UniqueFd> aside;  // where none of the numbers in the child is
  for (const int descriptor : descriptors) {
    const int number = STDERR_FILENO + 1 + static_cast<int>(aside.size());
    aside.emplace_back(fcntl(descriptor, F_DUPFD_CLOEXEC, 100));
    posix_spawn_file_actions_adddup2(&actions, aside.back().get(), number);
  }

  std::vector<std::string> argument_strings = arguments, environment_strings;
  for (const auto& [name, value] : environment) environment_strings.push_back(name + "=" + value);
  // Each once: of a name that is there twice, shells and the C library take different ones.
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry, name = text.substr(0, text.find('='));
    const bool given = std::any_of(environment.begin(), environment.end(),
                                   [&](const auto& variable) { return variable.first == name; });
    if (!given) environment_strings.push_back(text);
  }
  const int error = posix_spawn(&pid_, arguments[0].c_str(), &actions, nullptr, Pointers(argument_strings).data(),
                                Pointers(environment_strings).data());
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) throw std::system_error(error, std::generic_category(), arguments[0]);
  // The C library's header of pidfd_open(2) cannot be used from C++ in Debian 12.
  pidfd_.reset(static_cast<int>(syscall(SYS_pidfd_open, pid_, 0)));
  input_ = std::move(in.ours);
  output_ = std::move(out.ours);
}

Child::~Child() {
  if (reaped_) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

bool Child::Running() const {
  pollfd ended{.fd = pidfd_.get(), .events = POLLIN, .revents = 0};
  return poll(&ended, 1, 0) == 0;
}

void Child::WriteLine(const std::string& line) {
  const std::string text = line + "\n";
  if (send(input_.get(), text.data(), text.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(text.size())) {
    ADD_FAILURE() << "process " << pid_ << " does not take its input: " << Errors();
  }
}

bool Child::FillBuffer() {
  if (!Readable(output_.get())) {
    ADD_FAILURE() << "process " << pid_ << " says nothing more: " << Errors();
    return false;
  }
  std::array<char, 65536> bytes;
  const ssize_t count = read(output_.get(), bytes.data(), bytes.size());
  if (count > 0) buffer_.append(bytes.data(), static_cast<std::size_t>(count));
  return count > 0;
}

std::string Child::ReadLine() {
  while (buffer_.find('\n') == std::string::npos && FillBuffer()) {
  }
  const std::size_t end = std::min(buffer_.find('\n'), buffer_.size());
  const std::string line = buffer_.substr(0, end);
  buffer_.erase(0, end + 1);
  return line;
}

std::string Child::ReadAll() {
  while (FillBuffer()) {
  }
  return std::exchange(buffer_, {});
}

std::string Child::Errors() const {
  struct stat file;
  fstat(errors_.get(), &file);
  std::string text(static_cast<std::size_t>(file.st_size), '\0');
  text.resize(static_cast<std::size_t>(std::max<ssize_t>(0, pread(errors_.get(), text.data(), text.size(), 0))));
  return text;
}

void Child::Signal(int signal) const { kill(pid_, signal); }

int Child::Wait() {
  input_.reset();
  if (!Readable(pidfd_.get())) {
    ADD_FAILURE() << "process " << pid_ << " does not end: " << Errors();
    kill(pid_, SIGKILL);
  }
  int status = 0;
  waitpid(pid_, &status, 0);
  reaped_ = true;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

std::size_t CountDescriptors(pid_t pid, const std::string& target) {
  std::size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/fd")) {
    std::error_code gone;
    count += std::filesystem::read_symlink(entry.path(), gone).string().rfind(target, 0) == 0 ? 1 : 0;
  }
  return count;
}

Finished Run(const std::vector<std::string>& arguments, const Environment& environment) {
  Child child(arguments, environment);
  child.CloseInput();
  std::string output = child.ReadAll();
  const int status = child.Wait();
  return Finished{.status = status, .output = std::move(output), .errors = child.Errors()};
}

}  // namespace mapbroker::testing
