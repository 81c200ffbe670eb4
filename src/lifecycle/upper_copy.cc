#include "lifecycle/upper_copy.h"

#include <sys/stat.h>

#include "store/linked_names.h"
#include "util/error.h"

namespace thaw::lifecycle {

void UpperCopy::ahead(const std::vector<int>& pids) {
  try {
    before_ = runtime::mapped_files(pids);
  } catch (const Error&) {
    return;  // a process has just ended: then all is copied in the freeze
  }
  // What a disk still writes reaches a file after its times have changed.
  if (!before_.asynchronous) copy_.ahead();
}

void UpperCopy::finish(const std::vector<int>& pids, const std::vector<std::string>& lowers) {
  // A page that was written to through a mapping is written to again without a trace.
  runtime::MappedFiles mapped;
  if (copy_.begun()) mapped = runtime::mapped_files(pids);
  mapped.writable.merge(before_.writable);
  store::TreeSize size = copy_.finish([&](const std::string& path) {
    if (mapped.writable.empty()) return false;
    struct stat info;
    return ::lstat((merged_ + "/" + path).c_str(), &info) != 0 ||
           mapped.writable.contains({info.st_dev, info.st_ino});
  });
  store::add_linked_names(size.linked, merged_, lowers, to_);
}

}  // namespace thaw::lifecycle
