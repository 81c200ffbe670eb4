// No daemon answers. Apart from other errors, because scripts want to tell "no daemon" from "the
// daemon said no".
#pragma once

#include <string>

#include "util/error.h"

namespace thaw::api {

class Unreachable : public Error {
 public:
  Unreachable(std::string address, std::string cause)
      : Error(Code::kUnavailable, "reach the thaw daemon at", std::move(address), std::move(cause),
              "start it with `thaw daemon` (as root), or `systemctl start thaw`, or point "
              "--host/THAW_HOST at a running one") {}
};

}  // namespace thaw::api
