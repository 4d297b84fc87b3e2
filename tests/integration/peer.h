// A real client process: does what a test tells it, through libmapbroker.
#pragma once

#include <csignal>
#include <cstdint>
#include <string>

#include "mapbroker/client.h"
#include "tests/integration/bytes.h"
#include "tests/integration/child.h"

namespace mapbroker::testing {

// What came of a Map.
struct MapReply {
  int error = 0;  // errno, 0 for success
  std::string rule, sentence;
  int number = -1;  // names the mapping in the peer
  std::uint64_t address = 0, length = 0;
  MappingKind kind = MappingKind::kAnonymous;
  bool existing = false;
  std::uint64_t pointer = 0;  // where the peer has it
};

// Every call fails the test when the peer does not answer.
class Peer {
 public:
  // Starts the process and has it open a session; as this user, which only root can, if it is not 0.
  explicit Peer(const std::string& runtime_dir, const ConnectOptions& options = {}, uid_t user = 0);

  pid_t pid() const { return process_.pid(); }

  // Opens `path` read-only (empty: no file) and maps it; `options.fd` means nothing.
  MapReply Map(const std::string& path, const MapOptions& options);
  // The same in two steps, so that a test can do something between them.
  void StartMap(const std::string& path, const MapOptions& options);
  MapReply FinishMap();

  // The bytes of a mapping.
  Bytes Read(const MapReply& mapping);
  // Adds one to every byte of a mapping.
  void Scribble(const MapReply& mapping);
  // std::hash of the bytes: for mappings too large to read.
  std::uint64_t Hash(const MapReply& mapping);
  // The errno.
  int Unmap(const MapReply& mapping);
  // Unmaps everything and ends the session.
  void Disconnect();
  // Closes the connection to the handoff socket behind the library's back.
  void CloseHandoffConnection();

  // Of its session.
  std::string Token();
  // Makes a ram file, or changes its length; the errno.
  int SizeRamFile(const std::string& name, std::uint64_t size);
  // All bytes of a ram file.
  Bytes ReadRamFile(const std::string& name);
  // Changes a mapping's length; the errno.
  int Remap(const MapReply& mapping, std::uint64_t length);
  // Connects anew with its token, and leaves the connection that was.
  void TakeUp();
  // Lets it make calls of every kind, on this file and on ram files, until it is killed.
  void StartChurn(const std::string& path);
  void StartKill() { process_.Signal(SIGKILL); }

  // Kills the process and waits until it is dead.
  void Kill();
  // Lets main return without unmapping anything; its exit status.
  int ReturnFromMain();

 private:
  std::string Ask(const std::string& command);

  Child process_;
};

}  // namespace mapbroker::testing
