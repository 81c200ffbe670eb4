#include "lifecycle/slot_target.h"

#include <fcntl.h>

#include "util/error.h"

namespace thaw::lifecycle {

SlotTarget::SlotTarget(Slot& slot, int init_pid, std::string log_dir,
                       const std::vector<std::string>& argv)
    : slot_(slot), init_pid_(init_pid), log_dir_(std::move(log_dir)), python_("python3") {
  if (argv.empty()) return;
  std::string program = argv[0].substr(argv[0].rfind('/') + 1);
  if (program.rfind("python", 0) == 0 || program.rfind("pypy", 0) == 0) python_ = argv[0];
}

int SlotTarget::netns_fd() const { return slot_.endpoint.netns.get(); }

Fd SlotTarget::open_root() const {
  return Fd::open(fmt::format("/proc/{}/root", init_pid_), O_PATH | O_DIRECTORY);
}

std::string SlotTarget::thaw_dir() const { return slot_.paths.thaw(); }
std::string SlotTarget::log_path() const { return log_dir_ + "/container.log"; }
std::string SlotTarget::notify_path() const { return slot_.paths.notify(); }
std::string SlotTarget::python() const { return python_; }

RunResult SlotTarget::exec(const std::vector<std::string>& argv, Deadline deadline,
                           const std::string& input, int cancel_fd) {
  return slot_.shim->exec(argv, deadline, input, cancel_fd);
}

}  // namespace thaw::lifecycle
