// Slots: prepared places for replicas, of no pod yet. A pool makes some ahead; taking one costs
// nothing, and a restore without a free one makes its own.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "checkpoint/criu_install.h"
#include "lifecycle/host.h"
#include "lifecycle/shim_client.h"
#include "network/network.h"
#include "runtime/cgroup.h"
#include "runtime/container.h"

namespace thaw::lifecycle {

// The daemon has no descriptors, memory, threads or disk left for something: that says nothing
// about a replica or its shim.
bool no_room(const std::exception& error);
inline constexpr const char* kMoreRoom = "raise the daemon's limits (LimitNOFILE=, TasksMax=)";

struct Slot {
  std::string name;
  runtime::SlotPaths paths;
  network::Endpoint endpoint;
  std::string cgroup;  // path in the hierarchies
  int shim_pid = 0;
  Fd shim_handle;                    // pidfd
  std::shared_ptr<ShimClient> shim;  // exec sessions may hold it a little longer
};

class Slots {
 public:
  Slots(const Settings& settings, checkpoint::CriuInstall criu, network::Network& network);
  ~Slots();  // destroys the unused ones

  // Starts preparing slots ahead; after the old ones were adopted, so that these are not taken for
  // new ones.
  void start_refill();
  // How many are kept ready from now on; those beyond it go in the background.
  void set_most(int most);
  std::unique_ptr<Slot> take();
  // Ends everything that lives in the slot and removes all it had on the host; its files, which may
  // be many, after that. Never throws: what could not be removed is logged and tried again.
  void destroy(std::unique_ptr<Slot> slot) noexcept;
  // After a daemon's restart: a slot whose shim lives; nullptr (and everything cleaned up) when it
  // does not. Throws when the host has no room to find out: nothing has happened to the slot then.
  std::unique_ptr<Slot> adopt(const std::string& name);
  // Names found in the data directory.
  std::vector<std::string> found() const;
  // Ends the refilling, destroys the unused ones, and waits until the files of all are removed.
  void close();

 private:
  std::unique_ptr<Slot> make();
  struct Leftover {
    std::string name, cgroup;
    int index = -1;  // of its network; -1: released
  };
  void clean(Leftover slot) noexcept;
  bool release(Leftover& slot) noexcept;
  bool remove_files(const Leftover& slot) noexcept;
  void refill_loop();
  void clean_loop();
  const Settings& settings_;
  checkpoint::CriuInstall criu_;
  network::Network& network_;
  runtime::CgroupLayout layout_;
  // Ours, on a mount of its own that cannot be written to: a container in which a process of the
  // shim's shows may come by the shim's program, not change it.
  Fd program_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::unique_ptr<Slot>> ready_;
  std::size_t most_;
  std::deque<Leftover> leftovers_;  // are still to be removed
  bool closing_ = false, all_destroyed_ = false;
  std::thread refill_, cleaner_;
};

}  // namespace thaw::lifecycle
