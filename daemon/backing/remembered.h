// Files that a daemon before this one had open: their copies are shared on, but nothing more can be read of them.
#pragma once

#include <memory>

#include "daemon/backing/backing.h"
#include "daemon/backing/device.h"
#include "daemon/record.pb.h"

namespace mapbroker::backing {

// `device`: whose memory is mapped by it; null: nobody's.
std::shared_ptr<Backing> Remember(const record::File& file, std::shared_ptr<Device> device = nullptr);

}  // namespace mapbroker::backing
