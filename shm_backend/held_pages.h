// Pages of the pool that several holders keep: a run goes back to the pool when the last of them lets it go.
#pragma once

#include <boost/icl/interval_map.hpp>
#include <cstdint>

#include "shm_backend/mutex.h"
#include "shm_backend/page_pool.h"

namespace mapbroker::shm {

// Thread-safe. The cost of a call grows with the number of runs with different holders that it meets, never with pages.
class HeldPages {
 public:
  explicit HeldPages(PagePool& pages) : pages_(pages) {}

  // One more holder. REQUIRES: the run is allocated, and if this is not its first holder, is held by another
  // throughout.
  void Hold(Run run);

  // One holder less. REQUIRES: one Hold for each page of it.
  void Drop(Run run);

 private:
  PagePool& pages_;
  Mutex mutex_;
  // Page to number of holders; what nobody holds is not in it.
  boost::icl::interval_map<std::uint64_t, std::uint32_t> holders_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mapbroker::shm
