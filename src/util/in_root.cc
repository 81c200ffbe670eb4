#include "util/in_root.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "util/error.h"

namespace thaw {

Fd try_open_in_root(const Fd& root, const std::string& path, int flags) {
  open_how how{};
  how.flags = static_cast<unsigned long long>(flags | O_CLOEXEC);
  how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
  // EAGAIN: a rename anywhere on the host crossed with a ".." in the path. The kernel asks to try
  // again.
  for (int attempt = 0;; ++attempt) {
    int fd = static_cast<int>(::syscall(SYS_openat2, root.get(), path.c_str(), &how, sizeof how));
    if (fd >= 0 || errno != EAGAIN || attempt == 128) return Fd(fd);
  }
}

Fd open_in_root(const Fd& root, const std::string& path, int flags) {
  Fd file = try_open_in_root(root, path, flags);
  if (!file) throw_errno("open", path);
  return file;
}

}  // namespace thaw
