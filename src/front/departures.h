// Tells when the peer of a socket has ended its stream, whatever lies unread before that: Asio
// knows of readable sockets only. Of the front's thread. Only for the files that use Asio.
#pragma once

#include "front/stream.h"
#include "util/fd.h"

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <cstdint>
#include <functional>
#include <map>

namespace thaw::front {

class Departures {
 public:
  explicit Departures(asio::io_context& io);
  void close();  // tells nothing any more; the context can run out of work

  // Ends with the object, which must end before the socket is closed for good and before this.
  class Watch {
   public:
    Watch(Departures& owner, int fd, std::function<void()> left);
    ~Watch();
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

   private:
    Departures& owner_;
    const int fd_;
    const std::uint64_t number_;
  };

 private:
  void wait();
  void tell();

  Fd epoll_;
  asio::posix::stream_descriptor readable_;
  std::uint64_t last_ = 0;
  std::map<std::uint64_t, std::function<void()>> watched_;
};

}  // namespace thaw::front
