// Conditions asked of a real replica, through its slot's shim.
#pragma once

#include "lifecycle/condition.h"
#include "lifecycle/slots.h"

namespace thaw::lifecycle {

class SlotTarget : public ProbeTarget {
 public:
  // All must outlive it. `argv` is the pod's command.
  SlotTarget(Slot& slot, int init_pid, std::string log_dir, const std::vector<std::string>& argv);
  int netns_fd() const override;
  Fd open_root() const override;
  std::string thaw_dir() const override;
  std::string log_path() const override;
  std::string notify_path() const override;
  std::string python() const override;
  RunResult exec(const std::vector<std::string>& argv, Deadline deadline, const std::string& input,
                 int cancel_fd) override;

 private:
  Slot& slot_;
  int init_pid_;
  std::string log_dir_, python_;
};

}  // namespace thaw::lifecycle
