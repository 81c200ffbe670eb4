// Listening TCP sockets, and what to do when no descriptor is left for the next client.
#pragma once

#include <sys/socket.h>

#include <climits>
#include <cstdint>
#include <functional>
#include <string>

#include "util/fd.h"
#include "util/holder.h"

namespace thaw::gateway {

// An IPv4 or IPv6 address as text, or nothing (127.0.0.1). kInvalid when it is neither.
std::string normal_address(const std::string& address);
// "127.0.0.1:80", "[::1]:80"
std::string endpoint_text(const std::string& address, std::uint16_t port);
// Whether both cannot be bound at once.
bool addresses_overlap(const std::string& a, const std::string& b);

// Non-blocking; accepted sockets inherit TCP_NODELAY and keep-alive (a client that vanished is
// noticed within two minutes). kConflict when another socket has it; the message does not know
// whose.
Fd listen_on(const std::string& address, std::uint16_t port);
// The same, with a socket that outlives this daemon (`holder` may be none): the one that an earlier
// daemon listened on there, if it is kept and is one.
Fd listen_on(const std::string& address, std::uint16_t port, Holder* holder);
// Closes such a one for good.
void stop_listening(Fd& listener, const std::string& address, Holder* holder);
std::uint16_t port_of(const Fd& listener);

// Clients must not take the descriptors that the daemon itself needs, for replicas and its
// database: from the last ones they get none. The kernel gives the lowest number that is free, so a
// number among the last says that those before are in use, whoever has them. One thread.
//
// And one descriptor is kept back, so that with all others in use a waiting client can still be
// taken and reset. Left alone it would keep its listener readable, and the thread spinning.
class DescriptorReserve {
 public:
  DescriptorReserve();
  void look();  // at the process's limit, which others may change
  bool reached_by(const Fd& fd);
  // Takes and resets one waiting client. 0, or why it could not: EAGAIN when none waits (accept(2)
  // looks for a descriptor before it looks for a client, so it complains then, too).
  int shed(const Fd& listener);

 private:
  void retake();
  Fd fd_;
  int line_ = INT_MAX;  // the first number of the last ones
};

// Takes the clients that wait at a listener, some at a time: it is level-triggered, and those that
// are there have their turn. `on_shed` is called for each that was reset because no descriptor was
// left. 0, or the errno for which the listener must not be watched for kAcceptPauseUs: nothing can
// be accepted, and it would stay readable and keep the thread spinning.
int accept_waiting(
    const Fd& listener, DescriptorReserve& reserve,
    const std::function<void(Fd client, const sockaddr_storage& address)>& on_client,
    const std::function<void()>& on_shed = [] {});
inline constexpr std::int64_t kAcceptPauseUs = 100'000;

}  // namespace thaw::gateway
