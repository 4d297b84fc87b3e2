// Files that a daemon before this one had open: their copies are shared on, but nothing more can be read of them.
#pragma once

#include <memory>

#include "daemon/backing/backing.h"
#include "daemon/record.pb.h"
#include "shm_backend/held_pages.h"

namespace mapbroker::backing {

// `pages` holds what of a device's memory is mapped; it outlives the file.
std::shared_ptr<Backing> Remember(const record::File& file, shm::HeldPages& pages);

}  // namespace mapbroker::backing
