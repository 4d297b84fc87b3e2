// What the parts of the C face share: a session, its attached memory and its open ram files.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "client/src/attachment.h"
#include "client/src/session.h"
#include "mapbroker/client.h"
#include "mapbroker/file.h"
#include "mapbroker/mapbroker.h"
#include "shm_backend/mutex.h"
#include "shm_backend/unique_fd.h"

namespace mapbroker::c_face {

// A run of attached pool memory: a mapping, or what partial unmapping left of one.
struct Piece {
  std::uint64_t length = 0;  // bytes
  std::uint64_t pool_address = 0;
  std::shared_ptr<Attachment> attachment;
  std::shared_ptr<PassedFile> file;
};

// A ram file, and the descriptor that stands for it: an empty file of this process, so that its number is no other
// file's. If the program closes it by itself, the inode tells that the number means something else now.
struct OpenFile {
  shm::UniqueFd stand_in;
  ino_t inode = 0;
  std::shared_ptr<File> file;
};

// Sets errno and the sentence of mb_strerror.
void Fail(const absl::Status& status);

// Keeps the mapping for mb_munmap; where it is attached.
void* Keep(mb_session& session, Mapped mapped);

// The ram file that a descriptor stands for, null if it stands for none.
std::shared_ptr<File> PoolFileOf(mb_session& session, int fd);

}  // namespace mapbroker::c_face

struct mb_session {
  explicit mb_session(std::shared_ptr<mapbroker::Session> opened)
      : session(std::move(opened)), client(mapbroker::Client::Of(session)) {}

  const std::shared_ptr<mapbroker::Session> session;
  mapbroker::Client client;  // of the same session
  const std::string token = client.Token();
  mapbroker::shm::Mutex mutex;
  std::map<std::byte*, mapbroker::c_face::Piece> pieces ABSL_GUARDED_BY(mutex);  // by where they are; disjoint
  std::map<int, mapbroker::c_face::OpenFile> files ABSL_GUARDED_BY(mutex);       // by descriptor
};
