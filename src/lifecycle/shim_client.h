// The daemon's side of a shim's socket. Calls from any thread; a reader thread hands answers out.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <nlohmann/json.hpp>

#include "lifecycle/shim_protocol.h"
#include "util/clock.h"
#include "util/fd.h"
#include "util/process.h"

namespace thaw::lifecycle {

class ShimClient {
 public:
  explicit ShimClient(Fd socket);
  // Connects to a running shim by its socket's path; kUnavailable when nobody listens.
  static std::unique_ptr<ShimClient> connect(const std::string& path);
  ~ShimClient();
  ShimClient(const ShimClient&) = delete;
  ShimClient& operator=(const ShimClient&) = delete;

  // One operation. Throws the shim's Error, kTimeout at the deadline (the operation goes on),
  // kUnavailable when the shim is gone. `received` takes descriptors of the answer.
  nlohmann::json call(nlohmann::json request, Deadline deadline,
                      const std::vector<int>& descriptors = {},
                      std::vector<Fd>* received = nullptr);

  // Readable for ever once the container has exited or the shim is gone.
  int ended_fd() const { return ended_.get(); }
  bool lost() const;
  std::optional<ExitStatus> exit_status() const;
  void set_exit_status(ExitStatus status);  // learnt from "status" after a restart

  // Runs a program in the container to its end (see ProbeTarget::exec).
  RunResult exec(const std::vector<std::string>& argv, Deadline deadline, const std::string& input,
                 int cancel_fd);

  // An exec session: started, signalled, waited for.
  int start_session(const std::vector<std::string>& argv, bool terminal, int rows, int columns,
                    const std::vector<int>& stdio, Fd* terminal_fd);
  void signal_session(int session, int number);
  // kUnavailable when the shim is gone. nullopt at the deadline or when cancel_fd is readable.
  std::optional<ExitStatus> wait_session(int session, Deadline deadline);

 private:
  void read_loop();
  Fd socket_, ended_;
  std::mutex send_mutex_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::int64_t, std::optional<Message>> answers_;  // waited for
  std::map<int, ExitStatus> sessions_;                      // ended
  std::optional<ExitStatus> exit_;
  bool lost_ = false;
  std::int64_t next_id_ = 1;
  std::thread reader_;
};

}  // namespace thaw::lifecycle
