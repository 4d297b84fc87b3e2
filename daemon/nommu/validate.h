// The first two questions of a mapping: may I, and what kind. Pure functions of the request, the file and the profile.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "daemon/nommu/file.h"
#include "daemon/nommu/map_request.h"
#include "daemon/nommu/profile.h"

namespace mapbroker::nommu {

// May I: the checks M1 to M19 in their order; the first that fails is the answer. `file` is null where no descriptor of
// that number exists. On success the capabilities that are left for this request, 0 for anonymous memory.
absl::StatusOr<Capabilities> ValidateMmapRequest(const MapRequest& request, const File* file, const Profile& profile);

// May I, once more, when the device sites no mapping (S10): the capabilities without kMapDirect. ENODEV where a copy is
// no way out, EACCES where the file cannot be read (P5). REQUIRES: `capabilities` hold kMapDirect.
absl::StatusOr<Capabilities> ValidateCopyInstead(const MapRequest& request, const File& file,
                                                 Capabilities capabilities);

// What kind: from the capabilities that validation left. A traced process shares no private mapping (S2).
MappingKind DetermineKind(const MapRequest& request, Capabilities capabilities);

}  // namespace mapbroker::nommu
