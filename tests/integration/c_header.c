/* The C header is C. */
#include "mapbroker/mapbroker.h"

mb_session* connect_from_c(const char* runtime_dir) { return mb_connect(runtime_dir); }
