// Forks before it uses the library; then parent and child each have a session.
//
//   fork_first RUNTIME_DIR
#include <sys/wait.h>
#include <unistd.h>

#include <iostream>

#include "mapbroker/client.h"

namespace {

int MapsOnce(const char* runtime_dir) {
  auto client = mapbroker::Client::Connect({.runtime_dir = runtime_dir});
  if (!client.ok()) return std::cout << client.status() << std::endl, 1;
  const auto mapping = client->Map({.length = 4096, .flags = MAP_PRIVATE | MAP_ANONYMOUS});
  return mapping.ok() ? 0 : 2;
}

}  // namespace

int main(int, char** argv) {
  const pid_t pid = fork();
  const int mine = MapsOnce(argv[1]);
  if (pid == 0) return mine;
  int childs = 0;
  waitpid(pid, &childs, 0);
  return mine == 0 && childs == 0 ? 0 : 1;
}
