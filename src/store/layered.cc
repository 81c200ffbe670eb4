#include "store/layered.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include <sstream>

namespace thaw::store {

Fd open_layered(const std::vector<std::string>& layers, const std::string& path) {
  for (const std::string& layer : layers) {
    std::string at = layer;
    std::istringstream parts(path);
    bool hidden = false;  // what lower layers have at this path
    for (std::string part; std::getline(parts, part, '/');) {
      if (part.empty()) continue;
      if (part == "." || part == "..") return {};
      at += "/" + part;
      struct stat info;
      if (::lstat(at.c_str(), &info) != 0) {
        at.clear();
        break;
      }
      for (const char* name : {"opaque", "redirect", "metacopy"})
        hidden = hidden || ::lgetxattr(at.c_str(), (std::string("trusted.overlay.") + name).c_str(),
                                       nullptr, 0) >= 0;
      hidden = hidden || !S_ISDIR(info.st_mode);
    }
    struct stat info;
    if (!at.empty() && ::lstat(at.c_str(), &info) == 0 && S_ISREG(info.st_mode) &&
        ::lgetxattr(at.c_str(), "trusted.overlay.metacopy", nullptr, 0) < 0)
      return Fd::open(at, O_RDONLY | O_NOFOLLOW);
    if (hidden) return {};
  }
  return {};
}

}  // namespace thaw::store
