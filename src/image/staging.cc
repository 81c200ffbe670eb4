#include "image/staging.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <cerrno>

#include "util/error.h"
#include "util/file.h"
#include "util/log.h"

namespace thaw::image {
namespace {

constexpr std::string_view kPrefix = "image-";

void remove_quietly(const std::string& path) noexcept {
  try {
    remove_tree(path);
  } catch (const std::exception& error) {
    log::warn("cannot remove a temporary directory, it will be tried again",
              {{"path", path}, {"why", describe(error)}});
  }
}

}  // namespace

Staging::Staging(const std::string& store_dir) {
  make_directories(store_dir + "/tmp", 0700);
  for (;;) {
    path_ = store_dir + "/tmp/" + std::string(kPrefix) + random_hex();
    check(::mkdir(path_.c_str(), 0700), "make directory", path_);
    lock_.reset(::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!lock_ && errno != ENOENT) throw_errno("open", path_);
    if (lock_) check(::flock(lock_.get(), LOCK_EX), "lock", path_);
    // Before the lock was ours, remove_abandoned() may have taken the directory for an abandoned
    // one.
    if (lock_ && exists(path_)) return;
  }
}

Staging::~Staging() { remove_quietly(path_); }

void Staging::remove_abandoned(const std::string& store_dir) {
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator(store_dir + "/tmp", none)) {
    if (!entry.path().filename().string().starts_with(kPrefix)) continue;
    Fd lock(::open(entry.path().c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!lock || ::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) continue;
    remove_quietly(entry.path().string());
  }
}

}  // namespace thaw::image
