// A client's end of the shared port: plain, or TLS. Reads and writes are coroutines of the front's
// thread; one of each at a time. Only for the files that use Asio.
#pragma once

#include <utility>  // Asio's awaitable.hpp uses std::exchange and does not say so

#include <boost/asio/awaitable.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/system/error_code.hpp>
#include <memory>
#include <string_view>

namespace thaw::front {

namespace asio = boost::asio;
using boost::system::error_code;
using Socket = asio::ip::tcp::socket;
template <typename T = void>
using Task = asio::awaitable<T>;

class Stream {
 public:
  explicit Stream(Socket socket) : socket_(std::move(socket)) {}
  virtual ~Stream() = default;

  // Where a call ends with an error, that is the answer; the end of the stream is asio::error::eof.
  virtual Task<error_code> open() = 0;  // the handshake
  virtual Task<std::size_t> read(char* data, std::size_t size, error_code& error) = 0;
  virtual Task<error_code> write(std::string_view a, std::string_view b, std::string_view c) = 0;
  virtual Task<> end_writing() = 0;
  virtual bool secure() const = 0;
  // Until a read would not wait; at once where that is not to be known (TLS has bytes in hand that
  // the kernel knows nothing of).
  Task<error_code> wait_readable();
  Socket& socket() { return socket_of(); }

 protected:
  virtual Socket& socket_of() { return socket_; }
  Socket socket_;
};

std::unique_ptr<Stream> plain_stream(Socket socket);
std::unique_ptr<Stream> tls_stream(Socket socket, asio::ssl::context& context);

// For the end towards a replica.
Task<std::size_t> read(Socket& socket, char* data, std::size_t size, error_code& error);
Task<error_code> write(Socket& socket, std::string_view a, std::string_view b = {},
                       std::string_view c = {});

}  // namespace thaw::front
