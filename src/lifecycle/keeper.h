// The keeper: a forked child of the shim that holds a second reference to every userfaultfd of the
// replica. While it does, a fault that nobody answers blocks instead of reading zeros. When the
// shim ends without a word, the keeper kills everything in the replica's cgroup, then itself.
#pragma once

#include <string>
#include <utility>

#include "util/fd.h"

namespace thaw::lifecycle {

class Keeper {
 public:
  Keeper() = default;
  // Forks. Call it while the caller has one thread. `procs_file`: cgroup.procs of the replica's
  // cgroup. `thawing`: what thaws it, a file and its text; nothing frozen can be killed.
  static Keeper start(const std::string& procs_file,
                      const std::pair<std::string, std::string>& thawing);
  void hold(int fd) const;  // passes a duplicate; throws when the keeper is gone
  void let_go() const;      // closes all it holds: the memory is whole
  int socket() const { return socket_.get(); }  // readable for ever once it is gone
  void dismiss();  // the replica has ended: the keeper goes without killing anything
  explicit operator bool() const { return static_cast<bool>(socket_); }

 private:
  Fd socket_;
};

}  // namespace thaw::lifecycle
