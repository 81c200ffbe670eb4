#include "api/tls.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

#include "util/error.h"

namespace thaw::api {
namespace {

// For the last bytes of an answer whose reader does not read.
constexpr std::int64_t kFlushUs = 5'000'000;

std::string openssl_error(const std::string& fallback) {
  unsigned long code = ::ERR_get_error();
  ::ERR_clear_error();
  const char* reason = code ? ::ERR_reason_error_string(code) : nullptr;
  return reason ? reason : fallback;
}

void ssl_deleter(ssl_st* ssl) { ::SSL_free(ssl); }

std::shared_ptr<ssl_st> make_ssl(const TlsContext& context, const Fd& socket) {
  std::shared_ptr<ssl_st> ssl(::SSL_new(context.get()), ssl_deleter);
  if (!ssl || ::SSL_set_fd(ssl.get(), socket.get()) != 1)
    throw Error(Code::kExhausted, "begin", "TLS", openssl_error("no memory"));
  set_nonblocking(socket, true);
  return ssl;
}

// nullptr, or why not.
const char* shake_hands(ssl_st* ssl, const Fd& socket, int (*step)(ssl_st*), Deadline deadline) {
  for (;;) {
    ::ERR_clear_error();
    int result = step(ssl);
    if (result == 1) return nullptr;
    int wanted = ::SSL_get_error(ssl, result);
    if (wanted != SSL_ERROR_WANT_READ && wanted != SSL_ERROR_WANT_WRITE)
      return "the handshake failed";
    pollfd entry{socket.get(), static_cast<short>(wanted == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT),
                 0};
    int ready = ::poll(&entry, 1, deadline.poll_ms());
    if (ready == 0) return "it took too long";
    if (ready < 0 && errno != EINTR) return "the connection broke";
  }
}

// One direction's bytes on their way.
struct Buffer {
  char data[16 * 1024];
  std::size_t begin = 0, end = 0;
  bool empty() const { return begin == end; }
  void filled(std::size_t count) { begin = 0, end = count; }
};

class Pump {
 public:
  Pump(std::shared_ptr<ssl_st> ssl, Fd socket, Fd inner)
      : ssl_(std::move(ssl)), socket_(std::move(socket)), inner_(std::move(inner)) {
    set_nonblocking(inner_, true);
  }

  void run() {
    while (move()) {
      // An end that nothing is wanted of would still tell, for ever, that it is closed.
      pollfd entries[] = {{socket_events_ ? socket_.get() : -1, socket_events_, 0},
                          {inner_events_ ? inner_.get() : -1, inner_events_, 0}};
      int ready = ::poll(entries, 2, inner_over_ ? flush_.poll_ms() : -1);
      if (ready == 0 || (ready < 0 && errno != EINTR)) return;
      // Gone for good, and nobody waits for what it might have sent.
      if (entries[1].revents & POLLERR) return;
    }
  }

 private:
  // Moves what can be moved, and sets what to wait for. False at the end.
  bool move() {
    socket_events_ = inner_events_ = 0;
    if (in_.empty() && !peer_over_) {
      int count = ::SSL_read(ssl_.get(), in_.data, sizeof in_.data);
      if (count > 0)
        in_.filled(static_cast<std::size_t>(count));
      else if (!waits(count))
        peer_over_ = true;
    }
    if (!in_.empty()) {
      ssize_t count = ::send(inner_.get(), in_.data + in_.begin, in_.end - in_.begin, MSG_NOSIGNAL);
      if (count > 0)
        in_.begin += static_cast<std::size_t>(count);
      else if (errno == EAGAIN)
        inner_events_ |= POLLOUT;
      else if (errno != EINTR)
        in_.begin = in_.end;  // nobody reads any more
      if (in_.empty()) again();
    }
    if (peer_over_ && in_.empty() && !told_) {
      ::shutdown(inner_.get(), SHUT_WR);
      told_ = true;
    }
    if (out_.empty() && !inner_over_) {
      ssize_t count = ::recv(inner_.get(), out_.data, sizeof out_.data, 0);
      if (count > 0) {
        out_.filled(static_cast<std::size_t>(count));
      } else if (count < 0 && (errno == EAGAIN || errno == EINTR)) {
        inner_events_ |= POLLIN;
      } else {
        inner_over_ = true;
        flush_ = Deadline::after_us(kFlushUs);
      }
    }
    if (!out_.empty()) {
      ::ERR_clear_error();
      int count =
          ::SSL_write(ssl_.get(), out_.data + out_.begin, static_cast<int>(out_.end - out_.begin));
      if (count > 0) {
        out_.begin += static_cast<std::size_t>(count);
        if (out_.empty()) again();
      } else if (!waits(count)) {
        return false;
      }
    }
    if (inner_over_ && out_.empty()) {
      ::SSL_shutdown(ssl_.get());
      return false;
    }
    return true;
  }

  bool waits(int result) {
    int wanted = ::SSL_get_error(ssl_.get(), result);
    if (wanted == SSL_ERROR_WANT_READ) socket_events_ |= POLLIN;
    if (wanted == SSL_ERROR_WANT_WRITE) socket_events_ |= POLLOUT;
    return wanted == SSL_ERROR_WANT_READ || wanted == SSL_ERROR_WANT_WRITE;
  }

  // There may be more at once: what OpenSSL has decrypted already wakes no poll.
  void again() { inner_events_ |= POLLIN | POLLOUT; }

  std::shared_ptr<ssl_st> ssl_;
  Fd socket_, inner_;
  Buffer in_, out_;
  bool peer_over_ = false, inner_over_ = false, told_ = false;
  short socket_events_ = 0, inner_events_ = 0;
  Deadline flush_ = Deadline::never();
};

}  // namespace

TlsContext::TlsContext(ssl_ctx_st* context) : context_(context, ::SSL_CTX_free) {
  if (!context) throw Error(Code::kExhausted, "prepare", "TLS", openssl_error("no memory"));
  ::SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
  ::SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
}

TlsContext TlsContext::server(const std::string& certificate, const std::string& key) {
  TlsContext context(::SSL_CTX_new(::TLS_server_method()));
  if (::SSL_CTX_use_certificate_chain_file(context.get(), certificate.c_str()) != 1)
    throw Error(Code::kInvalid, "use certificate", certificate, openssl_error("it cannot be read"),
                "give a PEM file with --tls-cert");
  if (::SSL_CTX_use_PrivateKey_file(context.get(), key.c_str(), SSL_FILETYPE_PEM) != 1 ||
      ::SSL_CTX_check_private_key(context.get()) != 1)
    throw Error(Code::kInvalid, "use key", key, openssl_error("it cannot be read"),
                "give the certificate's key, a PEM file, with --tls-key");
  return context;
}

TlsContext TlsContext::client(const std::string& ca_file) {
  TlsContext context(::SSL_CTX_new(::TLS_client_method()));
  ::SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
  bool ok = ca_file.empty()
                ? ::SSL_CTX_set_default_verify_paths(context.get()) == 1
                : ::SSL_CTX_load_verify_locations(context.get(), ca_file.c_str(), nullptr) == 1;
  if (!ok)
    throw Error(Code::kInvalid, "use certificates of", ca_file, openssl_error("it cannot be read"),
                "give a PEM file in THAW_CA");
  return context;
}

TlsLink::TlsLink(std::shared_ptr<ssl_st> ssl, Fd socket) {
  auto [ours, theirs] = Fd::socket_pair(SOCK_STREAM);
  plain_ = std::move(ours);
  auto pump = std::make_shared<Pump>(std::move(ssl), std::move(socket), std::move(theirs));
  thread_ = std::thread([pump = std::move(pump)]() mutable {
    // OpenSSL writes without MSG_NOSIGNAL.
    sigset_t signals;
    ::sigemptyset(&signals);
    ::sigaddset(&signals, SIGPIPE);
    ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    pump->run();
    pump.reset();
  });
}

TlsLink::~TlsLink() {
  plain_.reset();
  if (thread_.joinable()) thread_.join();
}

void TlsLink::detach() { thread_.detach(); }

TlsLink TlsLink::accept(const TlsContext& context, Fd socket, Deadline deadline) {
  auto ssl = make_ssl(context, socket);
  if (const char* why = shake_hands(ssl.get(), socket, ::SSL_accept, deadline))
    throw Error(Code::kInvalid, "accept TLS connection", "", openssl_error(why));
  return TlsLink(std::move(ssl), std::move(socket));
}

TlsLink TlsLink::connect(const TlsContext& context, Fd socket, const std::string& host,
                         Deadline deadline) {
  auto ssl = make_ssl(context, socket);
  // A number is looked for among the certificate's addresses, a name among its names.
  X509_VERIFY_PARAM* wanted = ::SSL_get0_param(ssl.get());
  if (::X509_VERIFY_PARAM_set1_ip_asc(wanted, host.c_str()) != 1) {
    ::SSL_set1_host(ssl.get(), host.c_str());
    ::SSL_set_tlsext_host_name(ssl.get(), host.c_str());
  }
  if (const char* why = shake_hands(ssl.get(), socket, ::SSL_connect, deadline)) {
    long verdict = ::SSL_get_verify_result(ssl.get());
    if (verdict != X509_V_OK)
      throw Error(Code::kDenied, "trust the certificate of", host,
                  ::X509_verify_cert_error_string(verdict),
                  "put the certificate of who signed it into a file, and name that in THAW_CA");
    throw Error(Code::kUnavailable, "speak TLS with", host, openssl_error(why));
  }
  return TlsLink(std::move(ssl), std::move(socket));
}

}  // namespace thaw::api
