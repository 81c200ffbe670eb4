#include "util/private_tmpfs.h"

#include <sched.h>
#include <sys/mount.h>

#include <exception>
#include <thread>

#include "util/error.h"

namespace thaw {

void with_private_tmpfs(const std::string& path, const std::function<void()>& work) {
  std::exception_ptr failure;
  // The thread gives up sharing its root and mounts with the others, and ends.
  std::thread([&] {
    try {
      check(::unshare(CLONE_NEWNS), "unshare mount namespace");
      check(::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr), "make mounts private",
            "/");
      check(::mount("tmpfs", path.c_str(), "tmpfs", 0, "mode=755"), "mount tmpfs at", path);
      work();
    } catch (...) {
      failure = std::current_exception();
    }
  }).join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace thaw
