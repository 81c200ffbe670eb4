// Connections inside a replica's network whose source is an address of the outside: how a client's
// own address is kept. The program's answers must come back to us instead of leaving by the default
// route, so they carry a mark, and what carries it is local.
#pragma once

#include "util/fd.h"

namespace thaw::network {

inline constexpr int kForeignMark = 77;  // SO_MARK of such a connection

// For the life of the namespace, once. About 0.1 ms.
void admit_foreign_sources(const Fd& netns);

}  // namespace thaw::network
