// Messages between the daemon and a shim: JSON objects over a SEQPACKET unix socket, descriptors
// beside them.
//   request  {"id": n, "op": "...", ...}
//   answer   {"id": n, "result": {...}}  or  {"id": n, "error": {"code", "action", "object",
//   "cause", "remedy"}} event    {"event": "exited" | "exec-exited", ...}
// Operations and their members stand in shim.cc, one function each.
#pragma once

#include <optional>
#include <vector>

#include <nlohmann/json.hpp>

#include "util/error.h"
#include "util/fd.h"
#include "util/process.h"

namespace thaw::lifecycle {

struct Message {
  nlohmann::json body;
  std::vector<Fd> descriptors;
};

// Throws Error (kUnavailable) when the other side is gone. At most 200 KiB and 8 descriptors.
void send_message(const Fd& socket, const nlohmann::json& body,
                  const std::vector<int>& descriptors = {});
// Blocks. nullopt when the other side has closed.
std::optional<Message> receive_message(const Fd& socket);

nlohmann::json error_json(const std::exception& error);
Error error_from_json(const nlohmann::json& json);
nlohmann::json status_json(const ExitStatus& status);
ExitStatus status_from_json(const nlohmann::json& json);

}  // namespace thaw::lifecycle
