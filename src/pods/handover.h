// One daemon takes the place of another while that runs, and the connections that go through the
// earlier one live on. Each daemon has a door for as long as it lives: a private socket in its data
// directory. A daemon that starts knocks at all of them: the one that runs hands over, those that
// only finish their connections answer at once. From then on they tell it of the connections that
// they have, and are told by it which replicas are to get new ones.
#pragma once

#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "front/front.h"
#include "gateway/gateway.h"
#include "lifecycle/host.h"
#include "util/clock.h"
#include "util/fd.h"

namespace thaw::pods {

// Messages, as in lifecycle/shim_protocol.h:
//   to the earlier daemon   {"op": "take"}
//                           {"op": "open" | "close" | "drop", "id", "pod", "replica", "offer"}
//                           with the network namespace
//                           {"op": "end"}
//   to the later one        {"done": id, "held": {pod: n}, "active": {replica: [pod, n]}}

// --- the later daemon's side ---

class Predecessors {
 public:
  explicit Predecessors(const lifecycle::Settings& settings) : settings_(settings) {}
  ~Predecessors();

  // Whoever runs has handed over when this returns: the data directory's lock is free. Error
  // kTimeout when it does not.
  void take_over();
  // From now on their connections count in the gateway, which outlives this. Of a daemon that has
  // the lock.
  void follow(gateway::Gateway& gateway);

  // As the gateway's functions, for the connections that still wait there. After close() no more
  // are made, and those that were made count.
  void open(const std::string& pod, const std::string& replica, const Fd& netns,
            const gateway::Offer& offer);
  void close(const std::string& pod, const std::string& replica);
  void drop(const std::string& replica);
  void end();    // they end at once, with their connections
  void leave();  // they are another daemon's: nothing of theirs counts here any more

 private:
  struct One {
    Fd socket;
    int source;  // of the gateway's counts
    std::uint64_t done = 0;
    nlohmann::json report;
  };
  std::vector<std::string> doors() const;
  bool knock(const std::string& path, std::int64_t limit_us);
  std::uint64_t tell(nlohmann::json message, int descriptor = -1);
  void read_loop();

  const lifecycle::Settings& settings_;
  gateway::Gateway* gateway_ = nullptr;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<One> all_;            // those that have gone have no socket
  std::vector<std::string> stale_;  // doors of those that are dead
  std::uint64_t last_ = 0;
  Fd stop_ = Fd::event();
  std::thread reader_;
};

// --- the earlier daemon's side ---

class Door {
 public:
  explicit Door(const lifecycle::Settings& settings);
  ~Door();
  const Fd& fd() const { return listener_; }  // readable when somebody knocks
  Fd answer() const;                          // who wants to take over; empty: nobody after all

 private:
  const std::string path_;
  Fd listener_;
};

// Ends when no connection of this process is left, when the time is up, when a later daemon says
// so, or by a signal.
class Remainder {
 public:
  // `front` may be none. Both have been handed over with `changed`.
  Remainder(gateway::Gateway& gateway, front::Front* front, Fd changed)
      : gateway_(gateway), front_(front), changed_(std::move(changed)) {}
  // Tells the successor that all is his. False when he has gone.
  bool begin(Fd successor);
  void run(const Door& door, const Fd& signal, std::int64_t time_us);

 private:
  bool report(const Fd& to, std::uint64_t done = 0);
  bool obey(Fd& from);

  gateway::Gateway& gateway_;
  front::Front* front_;
  Fd changed_;
  std::vector<Fd> successors_;
  bool over_ = false;
};

}  // namespace thaw::pods
