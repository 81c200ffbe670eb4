// The tables, and how a file of an older Thaw becomes one of this Thaw.
#pragma once

#include <string>

namespace thaw::state {

class Connection;

// Brings an empty file or one of an older version to this version in one transaction. kCorrupt when
// the file is damaged or another program's, kUnsupported when it is of a newer Thaw.
void open_schema(Connection& db, const std::string& path);

}  // namespace thaw::state
