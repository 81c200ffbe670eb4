// Two connected sockets and the bytes between them, in both directions, with half-close, resets and
// back-pressure. Small transfers go through one shared buffer (recv, send); a direction that fills
// it is taken for a stream and moves with splice(2) through a pipe, which a direction holds only
// while bytes lie in it. Where none can be had, bytes stay in their socket until they can be sent
// on. Never blocks. Loop thread only.
//
// Sockets are watched edge-triggered: what epoll reports is noted in the sides, and a call that
// would block takes it away.
#pragma once

#include <sys/types.h>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "util/fd.h"

namespace thaw::gateway {

class DescriptorReserve;

struct Pipe {
  Fd read, write;
};

// What all relays of a thread share.
class RelayTools {
 public:
  static constexpr std::size_t kScratch = 64 * 1024;
  static constexpr int kPipeBytes = 256 * 1024;
  explicit RelayTools(DescriptorReserve& reserve) : reserve_(reserve) { has_pipe(); }

  // False when descriptors are exhausted; otherwise take_pipe gives one at once.
  bool has_pipe();
  Pipe take_pipe();
  void give_back(Pipe pipe);  // empty ones only
  char* scratch() { return scratch_.data(); }

 private:
  static constexpr std::size_t kSpares = 64;
  DescriptorReserve& reserve_;
  std::vector<Pipe> spares_;
  std::array<char, kScratch> scratch_;
};

class Relay {
 public:
  enum class Progress {
    kWaiting,   // for the next event
    kMore,      // its share of this turn is used up: pump again soon
    kFinished,  // both directions ended and were told so
    kBroken,    // one side was reset or failed: reset the other
  };
  struct Side {
    Fd fd;
    bool readable = false, writable = false;
    bool hung_up =
        false;  // its end of stream may be near: a short read is no proof that nothing is left
    bool failed = false;

    void note(std::uint32_t epoll_events);
  };

  Progress pump(RelayTools& tools);
  // Nothing is on its way, and the last bytes were the replica's.
  bool answered() const { return !asked_last_ && upward_.in_pipe == 0 && downward_.in_pipe == 0; }
  bool replica_ended() const { return downward_.ended; }  // it sends no more
  bool half_closed() const { return upward_.ended || downward_.ended; }
  std::uint64_t moved() const { return moved_; }  // bytes sent on, both directions

  Side client, replica;

 private:
  struct Flow {
    std::optional<Pipe> pipe;
    std::size_t in_pipe = 0;
    bool streaming = false;
    bool cut = false;  // the source failed: what was read is sent on, then the other side is reset
    bool ended = false;  // the other side was told that the source has ended
  };
  // Each: true when it did something and another step may follow.
  bool step(RelayTools& tools, Side& from, Side& to, Flow& flow);
  bool copy(RelayTools& tools, Side& from, Side& to, Flow& flow);
  bool fill(RelayTools& tools, Side& from, Side& to, Flow& flow);
  bool flush(RelayTools& tools, Side& to, Flow& flow);
  bool source_ended(ssize_t got, Side& from, Side& to, Flow& flow);
  bool target_failed(Side& to);
  static bool spent(const Flow& flow);

  Flow upward_, downward_;
  std::uint64_t moved_ = 0;
  bool asked_last_ = false;  // the last bytes were the client's
};

// Closes so that the peer sees a reset, not an end of stream.
void reset_socket(Fd& socket);
// A peer that vanished is noticed within two minutes.
void keep_alive(const Fd& socket);

}  // namespace thaw::gateway
