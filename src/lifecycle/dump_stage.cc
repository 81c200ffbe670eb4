#include "lifecycle/dump_stage.h"

#include <sys/mount.h>

#include <utility>

#include "store/copy.h"
#include "util/error.h"
#include "util/file.h"

namespace thaw::lifecycle {

DumpStage::Mount::Mount(std::string at) : path(std::move(at)) {
  make_directories(path, 0700);
  // A huge page for each of a thousand small images would have to be filled with zeros.
  check(::mount("tmpfs", path.c_str(), "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC,
                "mode=700,size=100%,huge=never"),
        "mount tmpfs at", path);
}

DumpStage::Mount::~Mount() {
  ::umount2(path.c_str(), MNT_DETACH);
  ::rmdir(path.c_str());
}

DumpStage::DumpStage(const std::string& path, std::size_t images, std::uint64_t expected)
    : mount_(path), memory_(mount_.path, images, expected) {}

void DumpStage::write(const std::string& directory) {
  store::copy_tree(mount_.path, directory);
  memory_.write(directory);
}

}  // namespace thaw::lifecycle
