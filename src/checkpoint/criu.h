// CRIU's RPC in its swrk form: a CRIU started ahead waits on a socket pair for one request,
// answers, and exits.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/criu_install.h"
#include "util/clock.h"
#include "util/error.h"
#include "util/fd.h"
#include "util/process.h"

namespace thaw::checkpoint {

namespace rpc {
class Request;
}

struct DumpRequest {
  int pid = 0;                         // the container's init, host's number
  int images_dir = -1, work_dir = -1;  // descriptors of ours; dump.log goes to work_dir
  std::vector<std::pair<std::string, std::string>> mounts;  // {target in the container, key}
  bool leave_stopped = false;  // every process is stopped afterwards, not run on
  int log_level = 2;           // 0..4
};

struct RestoreRequest {
  int images_dir = -1, work_dir = -1;                       // restore.log goes to work_dir
  std::string root;                                         // the overlay's mount point
  std::vector<std::pair<std::string, std::string>> mounts;  // {key, source on the host}
  std::vector<std::pair<std::string, int>> inherit;  // {"pipe:[inode at the dump]", number in CRIU}
  bool lazy = false;  // a page service listens at work_dir/lazy-pages.socket
  bool leave_stopped = false;
  int log_level = 2;
};

struct CriuOutcome {
  bool success = false;
  bool timed_out = false;  // killed by us
  // A cause that is no word of CRIU's about the program or its images: a stage of ours has failed,
  // the host had no room, or somebody has killed CRIU.
  std::optional<Code> beside;
  int pid = 0;           // of the restored init, host's number
  int error_number = 0;  // CRIU's cr_errno
  std::string reason;    // the first error line of its log, else its message, else how it ended
  std::string log_tail;  // last lines of the log when it failed
};

class Swrk {
 public:
  // Starts it in the caller's namespaces with the given descriptors at the given numbers and in the
  // given cgroups.
  static Swrk start(const CriuInstall& criu, ProcessOptions options);
  int pid() const { return process_.pid(); }
  bool running() const { return !wait_readable(process_.pidfd().get(), Deadline::after_us(0)); }

  // `on_stage` is called at CRIU's notifications ("post-dump": the tree is still frozen). When it
  // throws, the dump fails and the tree runs on.
  CriuOutcome dump(const DumpRequest& request,
                   const std::function<void(const std::string& stage)>& on_stage,
                   Deadline deadline);
  // The same for "pre-resume": everything is restored, nothing runs yet. When it throws, the
  // restore fails and nothing is left of it.
  CriuOutcome restore(const RestoreRequest& request,
                      const std::function<void(const std::string& stage)>& on_stage,
                      Deadline deadline);
  void kill() { process_.kill(9); }

 private:
  Swrk(Process process, Fd socket) : process_(std::move(process)), socket_(std::move(socket)) {}
  CriuOutcome converse(const rpc::Request& request,
                       const std::function<void(const std::string& stage)>& on_stage,
                       Deadline deadline, int work_dir, const char* log_name);
  CriuOutcome finish(CriuOutcome outcome, int work_dir, const char* log_name);
  Process process_;
  Fd socket_;
};

// Times CRIU measured during a dump, from the stats-dump image that it leaves in its work folder.
struct DumpTimes {
  std::int64_t freezing_us = 0, frozen_us = 0;
  std::int64_t memory_us = 0, write_us = 0;  // taking memory out of the tree, writing it down
  std::uint64_t pages_written = 0;
};
DumpTimes read_dump_stats(const std::string& work_dir);

}  // namespace thaw::checkpoint
