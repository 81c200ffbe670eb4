#include "api/server.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <cerrno>
#include <cstring>
#include <list>
#include <mutex>
#include <thread>

#include "api/exchange.h"
#include "api/json.h"
#include "api/routes.h"
#include "api/socket_stream.h"
#include "api/target.h"
#include "api/workspace.h"
#include "util/file.h"
#include "util/log.h"
#include "util/version.h"

namespace thaw::api {
namespace {

namespace http = boost::beast::http;
using error_code = boost::system::error_code;

constexpr std::uint64_t kBodyLimit = 1 << 20;
constexpr std::uint32_t kHeaderLimit = 16 * 1024;
constexpr std::int64_t kIdleUs = 75'000'000;  // between requests, and for a request's header
constexpr std::int64_t kBodyUs = 30'000'000;
constexpr std::int64_t kLingerUs = 1'000'000;
// For a client over the network that has not shown a token: its handshake, then its header, then a
// body.
constexpr std::int64_t kStrangerUs = 5'000'000;

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return result;
}

std::string view(boost::string_view text) { return std::string(text.data(), text.size()); }

// One request on a connection, as the handlers see it.
class HttpExchange final : public Exchange {
 public:
  HttpExchange(Request request, Backend& backend, SocketStream& stream, std::string received,
               int stop_fd, unsigned version, bool keep_alive, std::string id = {})
      : Exchange(std::move(request), backend),
        stream_(stream),
        received_(std::move(received)),
        stop_fd_(stop_fd),
        version_(version),
        keep_alive_(keep_alive),
        id_(std::move(id)) {}

  void reply(int status, const nlohmann::json& body) override { answer(status, body, {}); }

  void answer(int status, const nlohmann::json& body,
              const std::map<std::string, std::string>& headers) {
    http::response<http::string_body> response(static_cast<http::status>(status), version_);
    set_common(response);
    for (auto& [name, value] : headers) response.set(name, value);
    response.set(http::field::content_type, "application/json");
    response.keep_alive(keep_alive_);
    response.body() = dump(body) + "\n";
    response.prepare_payload();
    status_ = status;
    begun_ = true;
    error_code error;
    http::write(stream_, response, error);
    if (error) keep_alive_ = false;
  }

  void begin(int status, std::string_view content_type) override {
    http::response<http::empty_body> response(static_cast<http::status>(status), version_);
    set_common(response);
    response.set(http::field::content_type,
                 boost::string_view(content_type.data(), content_type.size()));
    if (content_type == "text/event-stream") response.set("X-Accel-Buffering", "no");
    chunked_ = version_ >= 11;
    if (!chunked_) keep_alive_ = false;
    response.keep_alive(keep_alive_);
    response.chunked(chunked_);
    content_type_ = content_type;
    status_ = status;
    begun_ = streaming_ = true;
    http::response_serializer<http::empty_body> serializer(response);
    error_code error;
    http::write_header(stream_, serializer, error);
    if (error) gone_ = true;
  }

  bool write(std::string_view data) override {
    if (data.empty()) return !gone_;
    if (gone_) return false;
    error_code error;
    if (chunked_) {
      stream_.write_all(fmt::format("{:x}\r\n{}\r\n", data.size(), data), error);
    } else {
      stream_.write_all(data, error);
    }
    if (error) gone_ = true;
    return !gone_;
  }

  bool begun() const override { return begun_; }

  bool wait(int fd, int timeout_ms) override {
    if (gone_) return false;
    pollfd entries[] = {{stream_.fd(), POLLRDHUP, 0}, {stop_fd_, POLLIN, 0}, {fd, POLLIN, 0}};
    if (::poll(entries, 3, timeout_ms) < 0) return errno == EINTR;
    return !entries[0].revents && !entries[1].revents;
  }

  Upgraded upgrade(std::string_view protocol) override {
    begun_ = true;
    keep_alive_ = false;
    status_ = 101;
    error_code error;
    stream_.write_all(fmt::format("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
                                  "Upgrade: {}\r\nServer: thaw/{}\r\nX-Request-Id: {}\r\n\r\n",
                                  protocol, kVersion, id_),
                      error);
    return {stream_.fd(), stop_fd_, std::move(received_)};
  }

  // Ends the answer; afterwards keep_alive() says whether the connection goes on.
  void finish() {
    if (streaming_ && chunked_ && !gone_) {
      error_code error;
      stream_.write_all("0\r\n\r\n", error);
      if (error) gone_ = true;
    }
  }
  // A failure after the stream began: its last line, since the status is sent.
  void fail_stream(const Error& error) {
    if (status_ == 101) return;
    std::string line = dump(error_json(error));
    write(content_type_ == "text/event-stream" ? "event: error\ndata: " + line + "\n\n"
                                               : line + "\n");
  }
  bool keep_alive() const { return keep_alive_ && !gone_; }
  int status() const { return status_; }

 private:
  template <typename Response>
  void set_common(Response& response) {
    response.set(http::field::server, "thaw/" + std::string(kVersion));
    response.set(http::field::cache_control, "no-store");
    response.set("X-Content-Type-Options", "nosniff");
    if (!id_.empty()) response.set("X-Request-Id", id_);
  }

  SocketStream& stream_;
  std::string received_, content_type_;
  int stop_fd_;
  unsigned version_;
  bool keep_alive_;
  std::string id_;
  bool begun_ = false, streaming_ = false, chunked_ = false, gone_ = false;
  int status_ = 0;
};

// A web page in a browser on this machine can reach a loopback port: it must not be able to command
// us, neither directly (browsers send Origin) nor under a name of its own that it points at
// 127.0.0.1 (then Host is that name).
void refuse_browsers(const http::fields& fields, const std::string& target, bool any_host) {
  if (fields.count(http::field::origin)) {
    throw HttpError(403, Code::kDenied, "answer", target, "web pages may not use this API",
                    "use the thaw command or a program of yours");
  }
  if (any_host) return;
  std::string host = lower(view(fields[http::field::host]));
  std::string name =
      host.starts_with("[") ? host.substr(0, host.find(']') + 1) : host.substr(0, host.find(':'));
  if (name == "localhost" || name == "[::1]" || name.starts_with("127.")) return;
  throw HttpError(403, Code::kDenied, "answer", target,
                  "the request is for the host '" + host + "', which is not this one's loopback",
                  "ask for 127.0.0.1 or localhost");
}

// The client's own name for its request, or one of ours: in the answer, the log, and the events
// that it makes happen.
std::string request_id(const http::fields& fields) {
  std::string id = view(fields["X-Request-Id"]);
  bool fit = !id.empty() && id.size() <= 128 &&
             std::all_of(id.begin(), id.end(), [](char c) { return c > ' ' && c < 0x7f; });
  return fit ? id : random_hex(16);
}

std::optional<Token> token_of(const http::fields& fields, Backend& backend) {
  std::string text = view(fields[http::field::authorization]);
  constexpr std::string_view kScheme = "bearer ";
  if (text.size() <= kScheme.size() || lower(text.substr(0, kScheme.size())) != kScheme)
    return std::nullopt;
  return backend.tokens().find(trim(text.substr(kScheme.size())));
}

[[noreturn]] void refuse_stranger(const http::fields& fields, const std::string& target) {
  throw HttpError(401, Code::kDenied, "answer", target,
                  fields.count(http::field::authorization) ? "the token is not known here"
                                                           : "no token was sent",
                  "make one with `thaw token create` on that machine, and put it into THAW_TOKEN",
                  {{"WWW-Authenticate", "Bearer"}});
}

// One connection, from accept to its end.
class Connection {
 public:
  Connection(Backend& backend, Fd socket, bool tcp, bool tls, int stop_fd)
      : backend_(backend),
        tcp_(tcp),
        tls_(tls),
        stop_fd_(stop_fd),
        stream_(std::move(socket), stop_fd) {}

  void serve() {
    while (serve_one()) {
    }
  }
  void refuse(int status, const Error& error) {
    HttpExchange exchange({}, backend_, stream_, {}, stop_fd_, 11, false);
    exchange.answer(status, error_json(error), {});
    linger();
  }

 private:
  bool serve_one() {
    http::request_parser<http::string_body> parser;
    parser.body_limit(kBodyLimit);
    parser.header_limit(kHeaderLimit);
    error_code error;
    stream_.set_read_deadline(Deadline::after_us(tls_ && !token_ ? kStrangerUs : kIdleUs));
    http::read_header(stream_, buffer_, parser, error);
    if (!error) {
      auto& fields = parser.get();
      // Over the network nobody is trusted: a token says what its bearer may do.
      if (tls_) token_ = token_of(fields, backend_);
      if (boost::beast::iequals(fields[http::field::expect], "100-continue")) {
        stream_.write_all("HTTP/1.1 100 Continue\r\n\r\n", error);
      }
      stream_.set_read_deadline(Deadline::after_us(tls_ && !token_ ? kStrangerUs : kBodyUs));
      if (!error) http::read(stream_, buffer_, parser, error);
    }
    if (error) {
      refuse_bad(error);
      return false;
    }
    return answer(parser.get());
  }

  void refuse_bad(const error_code& error) {
    if (error == http::error::body_limit) {
      refuse(413,
             Error(Code::kInvalid, "read the request", {}, "its body is above 1 MiB", "send less"));
    } else if (error == http::error::header_limit || error == http::error::buffer_overflow) {
      refuse(431, Error(Code::kInvalid, "read the request", {}, "its headers are above 16 KiB",
                        "send less"));
    } else if (error.category() == make_error_code(http::error::bad_method).category() &&
               error != http::error::end_of_stream && error != http::error::partial_message) {
      refuse(400, Error(Code::kInvalid, "read the request", {}, error.message(), "send HTTP/1.1"));
    }
    // Else the client left or was silent too long: nobody to tell.
  }

  bool answer(http::request<http::string_body>& message) {
    Request request;
    request.method = view(message.method_string());
    request.target = view(message.target());
    std::string type = lower(view(message[http::field::content_type]));
    request.content_type = trim(type.substr(0, type.find(';')));
    request.upgrade = lower(view(message[http::field::upgrade]));
    request.last_event_id = view(message["Last-Event-ID"]);
    request.body = std::move(message.body());
    std::string received;
    if (!request.upgrade.empty()) {
      received.assign(static_cast<const char*>(buffer_.data().data()), buffer_.size());
    }
    std::int64_t start = monotonic_us();
    std::string id = request_id(message);
    log::Context about("request", id);
    std::string label = request.method + " " + request.target;
    std::optional<Error> bad;
    std::optional<HttpError> refused;
    try {
      if (tcp_) refuse_browsers(message, label, tls_);
      if (tls_ && !token_) refuse_stranger(message, label);
      if (token_) request.scope = token_->scope;
    } catch (const HttpError& error) {
      refused = error;
    }
    try {
      parse_target(request);
    } catch (const Error& error) {
      bad = error;
    }
    std::unique_ptr<Backend> inside;
    if (token_ && !token_->workspace.empty()) inside = inside_workspace(backend_, *token_);
    HttpExchange exchange(std::move(request), inside ? *inside : backend_, stream_,
                          std::move(received), stop_fd_, message.version(), message.keep_alive(),
                          id);
    try {
      if (refused) throw HttpError(*refused);
      if (bad) throw Error(*bad);
      dispatch(exchange);
    } catch (const HttpError& error) {
      fail(exchange, error.status(), error, error.headers());
    } catch (const Error& error) {
      fail(exchange, http_status(error.code()), error, {});
    } catch (const std::exception& error) {
      log::error("request failed", {{"what", label}, {"error", describe(error)}});
      fail(exchange, 500, Error(Code::kInternal, "answer", label, error.what(), "report this"), {});
    }
    exchange.finish();
    log::debug("request", {{"what", label},
                           {"status", std::to_string(exchange.status())},
                           {"us", std::to_string(monotonic_us() - start)}});
    return exchange.keep_alive();
  }

  static void fail(HttpExchange& exchange, int status, const Error& error,
                   const std::map<std::string, std::string>& headers) {
    if (exchange.begun()) {
      exchange.fail_stream(error);
    } else {
      exchange.answer(status, error_json(error), headers);
    }
  }

  // Closing with unread input resets the connection, and the client would never see the answer:
  // read a little of it first.
  void linger() {
    ::shutdown(stream_.fd(), SHUT_WR);
    stream_.set_read_deadline(Deadline::after_us(kLingerUs));
    char block[16 * 1024];
    error_code error;
    for (std::size_t total = 0; !error && total < 4 * kBodyLimit;) {
      total += stream_.receive(block, sizeof block, error);
    }
  }

  Backend& backend_;
  bool tcp_, tls_;
  int stop_fd_;
  std::optional<Token> token_;  // of the last request
  SocketStream stream_;
  boost::beast::flat_buffer buffer_{kHeaderLimit + kBodyLimit};
};

}  // namespace

struct Server::Impl {
  struct Worker {
    std::atomic<bool> done = false;
    std::thread thread;
    std::size_t listener = 0;
  };

  Backend& backend;
  ServerOptions options;
  std::vector<Fd> listeners;
  Fd stop_event = Fd::event(), stop_acceptor = Fd::event();
  std::thread acceptor;
  std::list<Worker> workers;  // the acceptor's, then stop()'s
  std::mutex tls_mutex;       // of options.tls

  Impl(Backend& the_backend, ServerOptions the_options)
      : backend(the_backend), options(std::move(the_options)) {
    for (auto& address : options.listen) {
      listeners.push_back(listen_on(address, options.holder));
      set_nonblocking(listeners.back(), true);
    }
  }

  TlsContext certificate() {
    std::lock_guard lock(tls_mutex);
    return options.tls.value();
  }

  void reap() {
    workers.remove_if([](Worker& worker) {
      if (!worker.done) return false;
      worker.thread.join();
      return true;
    });
  }

  void accept_all() {
    std::vector<pollfd> entries;
    for (auto& listener : listeners) entries.push_back({listener.get(), POLLIN, 0});
    entries.push_back({stop_acceptor.get(), POLLIN, 0});
    for (;;) {
      if (::poll(entries.data(), entries.size(), -1) < 0 && errno != EINTR) {
        log::error("the API stops accepting", {{"error", std::strerror(errno)}});
        return;
      }
      if (entries.back().revents) return;
      for (std::size_t index = 0; index < listeners.size(); ++index) {
        if (entries[index].revents) accept_one(index);
      }
    }
  }

  void accept_one(std::size_t index) {
    Fd socket(::accept4(listeners[index].get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!socket) {
      if (errno != EMFILE && errno != ENFILE && errno != ENOMEM && errno != ENOBUFS) return;
      log::warn("a connection has to wait", {{"error", std::strerror(errno)}});
      pollfd stop{stop_acceptor.get(), POLLIN, 0};
      ::poll(&stop, 1, 100);  // the connection stays readable: without a pause this would spin
      return;
    }
    reap();
    bool tcp = !options.listen[index].is_unix, tls = options.listen[index].tls;
    auto open = std::count_if(workers.begin(), workers.end(),
                              [&](const Worker& worker) { return worker.listener == index; });
    if (open >= options.max_connections) {
      if (!tls) refuse(std::move(socket));
      return;
    }
    Worker& worker = workers.emplace_back();
    worker.listener = index;
    try {
      worker.thread = std::thread([this, &worker, tcp, tls, fd = std::move(socket)]() mutable {
        try {
          if (tls) {
            TlsLink link =
                TlsLink::accept(certificate(), std::move(fd), Deadline::after_us(kStrangerUs));
            Connection(backend, link.take_plain(), tcp, tls, stop_event.get()).serve();
          } else {
            Connection(backend, std::move(fd), tcp, tls, stop_event.get()).serve();
          }
        } catch (const Error& error) {
          log::debug("a connection was not accepted", {{"error", error.what()}});
        } catch (const std::exception& error) {
          log::error("a connection ended badly", {{"error", describe(error)}});
        }
        worker.done = true;
      });
    } catch (const std::system_error& error) {
      workers.pop_back();
      log::error("a connection was dropped", {{"error", describe(error)}});
    }
  }

  void refuse(Fd socket) {
    Error error(Code::kUnavailable, "answer", {},
                fmt::format("{} connections are open, which is the limit", options.max_connections),
                "try again later, or close some");
    std::string body = dump(error_json(error)) + "\n";
    std::string text = fmt::format(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
        "Content-Length: {}\r\nRetry-After: 1\r\nConnection: close\r\n\r\n{}",
        body.size(), body);
    // It fits into the empty socket buffer; a peer that cannot take it gets nothing. Nor may the
    // acceptor wait for it.
    if (::send(socket.get(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT) > 0) {
      ::shutdown(socket.get(), SHUT_WR);
      char block[4096];
      while (::recv(socket.get(), block, sizeof block, MSG_DONTWAIT) > 0) {
      }
    }
  }

  void stop_accepting() {
    signal_event(stop_acceptor);
    if (acceptor.joinable()) acceptor.join();
  }

  void close() {
    signal_event(stop_event);
    stop_accepting();
    for (std::size_t i = 0; i < listeners.size(); ++i)
      stop_listening(listeners[i], options.listen[i], options.holder);
    listeners.clear();
  }
};

Server::Server(Backend& backend, ServerOptions options)
    : impl_(std::make_unique<Impl>(backend, std::move(options))) {}

Server::~Server() { stop(); }

void Server::start() {
  impl_->acceptor = std::thread([this] { impl_->accept_all(); });
}

void Server::close() { impl_->close(); }

void Server::hand_over() {
  impl_->stop_accepting();
  impl_->listeners.clear();
}

void Server::stop() {
  impl_->close();
  for (auto& worker : impl_->workers) worker.thread.join();
  impl_->workers.clear();
}

void Server::use_certificate(TlsContext tls) {
  std::lock_guard lock(impl_->tls_mutex);
  impl_->options.tls = std::move(tls);
}

const std::vector<Address>& Server::addresses() const { return impl_->options.listen; }

}  // namespace thaw::api
