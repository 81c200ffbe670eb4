#include "util/fault.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

namespace thaw {
namespace {

struct Wanted {
  std::string name, victim, mark;
};

const Wanted& wanted() {
  static const Wanted value = [] {
    Wanted read;
    const char* fault = std::getenv("THAW_FAULT");
    const char* mark = std::getenv("THAW_FAULT_MARK");
    if (!fault) return read;
    read.name = fault;
    read.victim = "self";
    if (auto colon = read.name.find(':'); colon != std::string::npos) {
      read.victim = read.name.substr(colon + 1);
      read.name.resize(colon);
    }
    if (mark) read.mark = mark;
    return read;
  }();
  return value;
}

void kill_and_wait(int pid) {
  int handle = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
  ::kill(pid, SIGKILL);
  if (handle < 0) return;
  // What follows shall find it dead, unless it is frozen: then it cannot die.
  pollfd entry{handle, POLLIN, 0};
  ::poll(&entry, 1, 500);
  ::close(handle);
}

}  // namespace

void fault_point(FaultName name, std::initializer_list<Victim> victims) {
  const Wanted& fault = wanted();
  if (fault.name != name.text()) return;
  int pid = fault.victim == "self" ? ::getpid() : 0;
  for (const Victim& victim : victims)
    if (victim.name == fault.victim) pid = victim.pid;
  bool hold = fault.victim == "hold";
  if (pid <= 1 && !hold) return;
  if (!fault.mark.empty()) {
    int mark = ::open(fault.mark.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
    if (mark < 0) return;
    ::close(mark);
  }
  if (!hold) return kill_and_wait(pid);
  struct stat info;
  // Only a test waits here, so it may look again and again.
  std::string go = fault.mark + ".go";
  while (::stat(go.c_str(), &info) != 0) ::usleep(2000);
}

}  // namespace thaw
