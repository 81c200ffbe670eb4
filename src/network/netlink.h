// Requests to the kernel over netlink: several messages in one write, each acknowledged, each
// failure told with its name.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "util/fd.h"

struct nlattr;
struct nlmsghdr;

namespace thaw::network {

// A netlink socket of the calling thread's network namespace; it stays one of that namespace
// wherever the thread goes.
Fd open_netlink(int protocol);

// Messages that are sent together. The kernel handles them in order and does not stop at a failure,
// except in nftables, where a batch is one transaction.
class Batch {
 public:
  explicit Batch(std::size_t capacity = 8192);

  // Starts the next message. `what` names it in errors ("create link thaw0-1"). The pointer is good
  // for libmnl's put functions until the next call; a message may grow by `room` bytes.
  // `unanswered` for messages that the kernel never acknowledges.
  nlmsghdr* message(int type, int flags, std::string what, std::size_t room = 1024,
                    bool unanswered = false);

 private:
  friend struct BatchRunner;
  void finish_message();

  std::vector<char> buffer_;
  std::size_t used_ = 0;      // bytes of finished messages
  nlmsghdr* open_ = nullptr;  // the message being built
  std::uint32_t first_sequence_;
  std::vector<std::string> what_;  // by sequence number
  std::vector<bool> unanswered_;
};

struct NetlinkFailure {
  int error_number = 0;
  std::string what;  // of the message that failed
  std::string hint;  // the kernel's own words, often empty
};

// Sends the batch and reads every answer, so that the socket is in step afterwards whatever
// happened. The first failure is returned. Answers that are not acknowledgements (dumps, objects)
// go to `on_object`. One thread a socket at a time.
std::optional<NetlinkFailure> try_send(const Fd& socket, Batch& batch,
                                       const std::function<void(const nlmsghdr*)>& on_object = {});
// The same, throwing.
void send(const Fd& socket, Batch& batch,
          const std::function<void(const nlmsghdr*)>& on_object = {});
[[noreturn]] void throw_failure(const NetlinkFailure& failure);

// The attributes behind a message's fixed header of `offset` bytes, and those within an attribute.
// (libmnl's own loops are C only.)
std::vector<const nlattr*> attributes_of(const nlmsghdr* message, std::size_t offset);
std::vector<const nlattr*> attributes_of(const nlattr* nest);

}  // namespace thaw::network
