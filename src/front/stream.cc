#include "front/stream.h"

#include <array>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>

namespace thaw::front {
namespace {

using Buffers = std::array<asio::const_buffer, 3>;

Buffers buffers_of(std::string_view a, std::string_view b, std::string_view c) {
  return {asio::buffer(a.data(), a.size()), asio::buffer(b.data(), b.size()),
          asio::buffer(c.data(), c.size())};
}

template <typename Any>
Task<std::size_t> read_from(Any& stream, char* data, std::size_t size, error_code& error) {
  std::size_t got = co_await stream.async_read_some(
      asio::buffer(data, size), asio::redirect_error(asio::use_awaitable, error));
  co_return got;
}

template <typename Any>
Task<error_code> write_to(Any& stream, Buffers buffers) {
  error_code error;
  co_await asio::async_write(stream, buffers, asio::redirect_error(asio::use_awaitable, error));
  co_return error;
}

class Plain final : public Stream {
 public:
  using Stream::Stream;
  Task<error_code> open() override { co_return error_code(); }
  Task<std::size_t> read(char* data, std::size_t size, error_code& error) override {
    return read_from(socket_, data, size, error);
  }
  Task<error_code> write(std::string_view a, std::string_view b, std::string_view c) override {
    return write_to(socket_, buffers_of(a, b, c));
  }
  Task<> end_writing() override {
    error_code ignored;
    socket_.shutdown(Socket::shutdown_send, ignored);
    co_return;
  }
  bool secure() const override { return false; }
};

class Tls final : public Stream {
 public:
  Tls(Socket socket, asio::ssl::context& context)
      : Stream(Socket(socket.get_executor())), stream_(std::move(socket), context) {}
  Task<error_code> open() override {
    error_code error;
    co_await stream_.async_handshake(asio::ssl::stream_base::server,
                                     asio::redirect_error(asio::use_awaitable, error));
    co_return error;
  }
  Task<std::size_t> read(char* data, std::size_t size, error_code& error) override {
    std::size_t got = co_await read_from(stream_, data, size, error);
    // Whether a stream was cut off is for the length of the message to tell.
    if (error == asio::ssl::error::stream_truncated) error = asio::error::eof;
    co_return got;
  }
  Task<error_code> write(std::string_view a, std::string_view b, std::string_view c) override {
    // A record each would cost more than copying what is short.
    if (a.size() + b.size() + c.size() <= kJoined) {
      joined_.clear();
      joined_.append(a).append(b).append(c);
      a = joined_, b = c = {};
    }
    return write_to(stream_, buffers_of(a, b, c));
  }
  Task<> end_writing() override {
    // Only our own word: the peer's may never come.
    SSL_set_shutdown(stream_.native_handle(), SSL_RECEIVED_SHUTDOWN);
    error_code ignored;
    co_await stream_.async_shutdown(asio::redirect_error(asio::use_awaitable, ignored));
    stream_.next_layer().shutdown(Socket::shutdown_send, ignored);
  }
  bool secure() const override { return true; }

 private:
  static constexpr std::size_t kJoined = 16 * 1024;
  Socket& socket_of() override { return stream_.next_layer(); }

  asio::ssl::stream<Socket> stream_;
  std::string joined_;
};

}  // namespace

Task<error_code> Stream::wait_readable() {
  error_code error;
  if (secure()) co_return error;
  co_await socket().async_wait(Socket::wait_read, asio::redirect_error(asio::use_awaitable, error));
  co_return error;
}

std::unique_ptr<Stream> plain_stream(Socket socket) {
  return std::make_unique<Plain>(std::move(socket));
}

std::unique_ptr<Stream> tls_stream(Socket socket, asio::ssl::context& context) {
  return std::make_unique<Tls>(std::move(socket), context);
}

Task<std::size_t> read(Socket& socket, char* data, std::size_t size, error_code& error) {
  return read_from(socket, data, size, error);
}

Task<error_code> write(Socket& socket, std::string_view a, std::string_view b, std::string_view c) {
  return write_to(socket, buffers_of(a, b, c));
}

}  // namespace thaw::front
