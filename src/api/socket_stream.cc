#include "api/socket_stream.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

namespace thaw::api {
namespace {
constexpr std::int64_t kLastWriteUs = 2'000'000;  // for an answer under way when the daemon stops
}

bool SocketStream::wait(short events, Deadline deadline, error_code& error) {
  bool reading = events == POLLIN;
  for (;;) {
    pollfd entries[] = {{socket_.get(), events, 0}, {stop_fd_, POLLIN, 0}};
    int ready = ::poll(entries, stop_fd_ >= 0 ? 2 : 1, deadline.poll_ms());
    if (ready < 0 && errno == EINTR) continue;
    if (ready < 0) {
      error.assign(errno, boost::system::system_category());
      return false;
    }
    if (ready == 0) {
      error = boost::asio::error::timed_out;
      return false;
    }
    if (entries[0].revents) return true;
    if (reading) {
      error = boost::asio::error::operation_aborted;
      return false;
    }
    deadline = Deadline::after_us(std::min(deadline.left_us(), kLastWriteUs));
    pollfd only = entries[0];
    do {
      ready = ::poll(&only, 1, deadline.poll_ms());
    } while (ready < 0 && errno == EINTR);
    if (ready > 0) return true;
    error = boost::asio::error::timed_out;
    return false;
  }
}

std::size_t SocketStream::receive(void* data, std::size_t size, error_code& error) {
  for (;;) {
    ssize_t count = ::recv(socket_.get(), data, size, 0);
    if (count > 0) return static_cast<std::size_t>(count);
    if (count == 0) {
      error = boost::asio::error::eof;
      return 0;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN) {
      error.assign(errno, boost::system::system_category());
      return 0;
    }
    if (!wait(POLLIN, read_deadline_, error)) return 0;
  }
}

std::size_t SocketStream::send(const void* data, std::size_t size, error_code& error) {
  for (;;) {
    ssize_t count = ::send(socket_.get(), data, size, MSG_NOSIGNAL);
    if (count >= 0) return static_cast<std::size_t>(count);
    if (errno == EINTR) continue;
    if (errno != EAGAIN) {
      error.assign(errno, boost::system::system_category());
      return 0;
    }
    if (!wait(POLLOUT, Deadline::after_us(write_timeout_us_), error)) return 0;
  }
}

void SocketStream::write_all(std::string_view data, error_code& error) {
  error = {};
  while (!data.empty() && !error) data.remove_prefix(send(data.data(), data.size(), error));
}

}  // namespace thaw::api
