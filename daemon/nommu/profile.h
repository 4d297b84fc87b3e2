// What differs between the kernels whose rules can be chosen: the table P of semantics.md, and nothing else.
#pragma once

#include <string>

namespace mapbroker::nommu {

struct Profile {
  const char* name;
  // P1: an address asked for without MAP_FIXED is EINVAL; otherwise it is ignored.
  bool refuses_address_hint;
  // P2: a private request shorter than a page is a small object, which need not be page-aligned.
  bool has_small_objects;
  // P3: only exactly the same page range shares a copy; otherwise any range that lies within the copy's.
  bool shares_equal_ranges_only;
  // P4: munmap names one whole mapping by its start and its length or 0; otherwise anonymous memory may be unmapped in
  // page-aligned parts and length 0 is EINVAL.
  bool unmaps_whole_mappings_only;
  // P6: mremap may grow a mapping into all the memory that was allocated for it; otherwise up to the length that it was
  // made with.
  bool grows_into_slack;
  // U3: mremap with a wrong old length is EFAULT; otherwise EINVAL.
  bool faults_wrong_old_length;
  // S11: the flash driver lets only shared mappings be direct.
  bool flash_is_shared_only;
  // P5: mmap itself checks that the descriptor is open for reading, before the checks of shared mappings.
  bool checks_read_mode_first;
  // P7: a driver is told of each mapping that goes; otherwise when the last one of the same memory goes.
  bool closes_each_mapping;
  // P8: a mapping is as long as asked for; otherwise its length is rounded up to pages.
  bool keeps_exact_length;
};

// The seed document, kernel 2.6.18: the default.
inline constexpr Profile kClassic{
    .name = "classic",
    .refuses_address_hint = true,
    .has_small_objects = true,
    .shares_equal_ranges_only = true,
    .unmaps_whole_mappings_only = true,
    .grows_into_slack = true,
    .faults_wrong_old_length = true,
    .flash_is_shared_only = false,
    .checks_read_mode_first = false,
    .closes_each_mapping = false,
    .keeps_exact_length = true,
};

// Kernel 6.12 without an MMU, as recorded.
inline constexpr Profile kModern{
    .name = "modern",
    .refuses_address_hint = false,
    .has_small_objects = false,
    .shares_equal_ranges_only = false,
    .unmaps_whole_mappings_only = false,
    .grows_into_slack = false,
    .faults_wrong_old_length = false,
    .flash_is_shared_only = true,
    .checks_read_mode_first = true,
    .closes_each_mapping = true,
    .keeps_exact_length = false,
};

// nullptr: there is no profile of that name.
inline const Profile* FindProfile(const std::string& name) {
  for (const Profile* profile : {&kClassic, &kModern}) {
    if (name == profile->name) return profile;
  }
  return nullptr;
}

}  // namespace mapbroker::nommu
