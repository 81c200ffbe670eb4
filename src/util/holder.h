// Keeps duplicates of a daemon's listening sockets in a small process of their own, which outlives
// the daemon, however that dies, and hands them to the next one: connections that come in between
// wait in the kernel, instead of being refused. The process ends when it is dismissed, or when no
// daemon has come for its sockets for a minute.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "util/fd.h"

namespace thaw {

// A daemon's end. Thread-safe. A holder that cannot be reached is started again, with all that was
// kept; when that fails, the sockets end with the daemon, and the log says so.
class Holder {
 public:
  // The holder of this folder with what it keeps, or a new one. Who calls owns the folder.
  explicit Holder(const std::string& folder);
  ~Holder();  // dismisses one that it has started: then this daemon ends in order

  // What an earlier daemon kept under this name; empty when there is nothing. It stays kept: what
  // is not what was expected is to be dropped.
  Fd take(const std::string& name);
  void keep(const std::string& name, const Fd& socket);
  void drop(const std::string& name);  // afterwards the holder has it no more
  void drop_untaken();                 // what nobody took
  // Another daemon has its sockets: it says nothing any more.
  void leave();
  void dismiss();  // it ends, and has nothing any more when this returns

 private:
  void start();
  bool ask(std::string_view text, int descriptor = -1);
  void tell(std::string_view text, int descriptor = -1);

  const std::string folder_;
  std::mutex mutex_;
  Fd socket_;
  bool left_ = false, found_ = false;
  std::map<std::string, Fd> kept_, untaken_;
};

// The process: `thaw holder FOLDER`, its daemon at descriptor 3.
int holder_main(int argc, char** argv);
// The same, ending `wait_us` after the last daemon has gone.
void hold_descriptors(const std::string& folder, Fd daemon, std::int64_t wait_us);

}  // namespace thaw
