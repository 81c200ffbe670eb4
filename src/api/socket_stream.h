// A connected socket as Beast's synchronous streams want it, with a deadline and a stop event.
// (Asio's own synchronous sockets wait forever: they poll again after SO_RCVTIMEO.) Only for the
// files that use Beast.
#pragma once

#include <boost/asio/buffer.hpp>
#include <boost/asio/error.hpp>
#include <boost/system/error_code.hpp>
#include <boost/system/system_error.hpp>
#include <string_view>

#include "util/clock.h"
#include "util/fd.h"

namespace thaw::api {

class SocketStream {
 public:
  using error_code = boost::system::error_code;

  // `stop_fd` (may be -1): when readable, reads end with operation_aborted and writes get a short
  // last time.
  SocketStream(Fd socket, int stop_fd) : socket_(std::move(socket)), stop_fd_(stop_fd) {
    set_nonblocking(socket_, true);
  }

  int fd() const { return socket_.get(); }
  void set_read_deadline(Deadline deadline) { read_deadline_ = deadline; }
  void set_write_timeout_us(std::int64_t us) { write_timeout_us_ = us; }

  std::size_t receive(void* data, std::size_t size, error_code& error);
  std::size_t send(const void* data, std::size_t size, error_code& error);
  void write_all(std::string_view data, error_code& error);

  template <typename Buffers>
  std::size_t read_some(const Buffers& buffers, error_code& error) {
    error = {};
    for (auto it = boost::asio::buffer_sequence_begin(buffers);
         it != boost::asio::buffer_sequence_end(buffers); ++it) {
      boost::asio::mutable_buffer buffer(*it);
      if (buffer.size() > 0) return receive(buffer.data(), buffer.size(), error);
    }
    return 0;
  }
  template <typename Buffers>
  std::size_t write_some(const Buffers& buffers, error_code& error) {
    error = {};
    for (auto it = boost::asio::buffer_sequence_begin(buffers);
         it != boost::asio::buffer_sequence_end(buffers); ++it) {
      boost::asio::const_buffer buffer(*it);
      if (buffer.size() > 0) return send(buffer.data(), buffer.size(), error);
    }
    return 0;
  }
  template <typename Buffers>
  std::size_t read_some(const Buffers& buffers) {
    error_code error;
    std::size_t size = read_some(buffers, error);
    if (error) throw boost::system::system_error(error);
    return size;
  }
  template <typename Buffers>
  std::size_t write_some(const Buffers& buffers) {
    error_code error;
    std::size_t size = write_some(buffers, error);
    if (error) throw boost::system::system_error(error);
    return size;
  }

 private:
  bool wait(short events, Deadline deadline, error_code& error);

  Fd socket_;
  int stop_fd_;
  Deadline read_deadline_ = Deadline::never();
  std::int64_t write_timeout_us_ = 30'000'000;
};

}  // namespace thaw::api
