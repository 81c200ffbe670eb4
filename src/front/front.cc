#include "front/front.h"

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/ssl/context.hpp>
#include <csignal>
#include <cstring>
#include <future>
#include <set>
#include <thread>

#include <openssl/err.h>
#include <openssl/ssl.h>

#include "front/session.h"
#include "gateway/listener.h"
#include "gateway/relay.h"
#include "util/clock.h"
#include "util/error.h"
#include "util/log.h"
#include "util/watched_files.h"

namespace thaw::front {
namespace {

constexpr std::int64_t kComplaintEveryUs = 1'000'000;
constexpr int kRefusedAtOnce = 256;  // more are reset

Error unusable(const char* flag, const std::string& value, const std::string& cause,
               const char* remedy) {
  return Error(Code::kInvalid, std::string("use ") + flag, value, cause, remedy);
}

struct Place {
  std::string address;
  std::uint16_t port = 0;
};

Place parse_place(const std::string& text) {
  constexpr const char* remedy = "give one such as 0.0.0.0:80 or [::]:443";
  std::size_t colon = text.rfind(':');
  if (colon == std::string::npos) throw unusable("--front", text, "it is not ADDRESS:PORT", remedy);
  std::string address = text.substr(0, colon), number = text.substr(colon + 1);
  if (number.empty() || number.size() > 5 ||
      number.find_first_not_of("0123456789") != std::string::npos || std::stoi(number) > 65535)
    throw unusable("--front", text, "'" + number + "' is not a port", remedy);
  if (address.size() > 1 && address.front() == '[' && address.back() == ']')
    address = address.substr(1, address.size() - 2);
  return {gateway::normal_address(address), static_cast<std::uint16_t>(std::stoi(number))};
}

std::string openssl_reason() {
  char text[256] = "OpenSSL gives no reason";
  if (unsigned long code = ::ERR_get_error()) ::ERR_error_string_n(code, text, sizeof text);
  ::ERR_clear_error();
  return text;
}

// One protocol is spoken; a client that offers none of those we know decides for itself.
int choose_http1(SSL*, const unsigned char** chosen, unsigned char* size,
                 const unsigned char* offered, unsigned int length, void*) {
  static constexpr unsigned char kHttp1[] = "\x08http/1.1";
  unsigned char* found = nullptr;
  if (::SSL_select_next_proto(&found, size, kHttp1, sizeof kHttp1 - 1, offered, length) !=
      OPENSSL_NPN_NEGOTIATED)
    return SSL_TLSEXT_ERR_NOACK;
  *chosen = found;
  return SSL_TLSEXT_ERR_OK;
}

using Certificate = std::shared_ptr<asio::ssl::context>;  // nullptr: plain HTTP

Certificate certificate_of(const Options& options) {
  if (options.tls_cert.empty()) return nullptr;
  auto context = std::make_shared<asio::ssl::context>(asio::ssl::context::tls_server);
  SSL_CTX* native = context->native_handle();
  ::SSL_CTX_set_min_proto_version(native, TLS1_2_VERSION);
  ::SSL_CTX_set_mode(native, SSL_MODE_RELEASE_BUFFERS);
  ::SSL_CTX_set_alpn_select_cb(native, choose_http1, nullptr);
  ::ERR_clear_error();
  if (::SSL_CTX_use_certificate_chain_file(native, options.tls_cert.c_str()) != 1)
    throw unusable("--front-tls-cert", options.tls_cert, openssl_reason(),
                   "give a PEM file with the certificate first, then its chain");
  if (::SSL_CTX_use_PrivateKey_file(native, options.tls_key.c_str(), SSL_FILETYPE_PEM) != 1 ||
      ::SSL_CTX_check_private_key(native) != 1)
    throw unusable("--front-tls-key", options.tls_key, openssl_reason(),
                   "give the PEM file with the private key of that certificate");
  return context;
}

}  // namespace

struct Front::Impl {
  Impl(gateway::Gateway& gateway, Options wanted, Holder* holder)
      : options(std::move(wanted)),
        tls(certificate_of(options)),
        holder(holder),
        place(parse_place(options.address)),
        listener(gateway::listen_on(place.address, place.port, holder)),
        port(gateway::port_of(listener)),
        gateway(gateway),
        departures(io),
        shared{gateway, io, options, routes, departures},
        acceptor(io, listener.get()),
        pause(io) {}

  ~Impl() { stop_listening(); }

  void stop_listening() {
    if (!listener) return;
    acceptor.release();  // the descriptor belongs to `listener`
    gateway::stop_listening(listener, place.address, holder);
  }

  void accept_later() {
    acceptor.async_wait(asio::posix::stream_descriptor::wait_read, [this](error_code error) {
      if (!error) accept();
    });
  }

  void accept() {
    int cause = gateway::accept_waiting(
        listener, reserve,
        [this](Fd client, const sockaddr_storage& address) { open(std::move(client), address); },
        [this] { complain("a client of the shared port was reset", "no descriptors are left"); });
    if (cause == 0) return accept_later();
    complain("the shared port can accept nothing", std::strerror(cause));
    pause.expires_after(std::chrono::microseconds(gateway::kAcceptPauseUs));
    pause.async_wait([this](error_code error) {
      if (!error) accept_later();
    });
  }

  void open(Fd client, const sockaddr_storage& address) {
    bool refuse = sessions.size() >= static_cast<std::size_t>(options.connections) ||
                  reserve.reached_by(client);
    if (refuse) {
      complain("a client of the shared port was refused", "as many as may be are connected");
      if (refused >= kRefusedAtOnce) return gateway::reset_socket(client);
    }
    sockaddr_storage server{};
    socklen_t size = sizeof server;
    ::getsockname(client.get(), reinterpret_cast<sockaddr*>(&server), &size);
    Socket socket(io);
    error_code error;
    socket.assign(address.ss_family == AF_INET6 ? asio::ip::tcp::v6() : asio::ip::tcp::v4(),
                  client.get(), error);
    if (error) return complain("a client of the shared port was reset", error.message());
    (void)client.release();
    auto stream = tls ? tls_stream(std::move(socket), *tls) : plain_stream(std::move(socket));
    auto session = std::make_shared<Session>(shared, std::move(stream), address, server, refuse);
    sessions.insert(session);
    refused += refuse;
    session->start([this, refuse, weak = std::weak_ptr(session)] {
      refused -= refuse;
      if (auto ended = weak.lock()) sessions.erase(ended);
      clients = std::ssize(sessions);
      if (changed) signal_event(changed);
    });
    clients = std::ssize(sessions);
  }

  // The files are others now. What cannot be used changes nothing. Connections keep what they have.
  void renew_certificate() {
    try {
      asio::post(io, [this, renewed = certificate_of(options)] { tls = renewed; });
      log::info("the shared port has a new certificate", {{"file", options.tls_cert}});
    } catch (const Error& error) {
      log::warn("the shared port keeps its certificate: the new one cannot be used",
                {{"error", error.what()}});
    }
  }

  void complain(std::string_view message, std::string_view cause) {
    ++unsaid;
    if (monotonic_us() - complained_us < kComplaintEveryUs) return;
    log::warn(message, {{"cause", std::string(cause)}, {"such_events", std::to_string(unsaid)}});
    complained_us = monotonic_us();
    unsaid = 0;
  }

  void run() {
    sigset_t all;
    sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, nullptr);
    ::pthread_setname_np(::pthread_self(), "front");
    for (;;) {
      try {
        io.run();
        return;
      } catch (const std::exception& error) {
        log::error("the shared port could not handle an event", {{"error", describe(error)}});
      }
    }
  }

  const Options options;
  Certificate tls;  // of the next connections
  Holder* holder;
  const Place place;
  Fd listener;
  const std::uint16_t port;
  gateway::Gateway& gateway;
  Routes routes;
  asio::io_context io{1};
  Departures departures;
  Shared shared;
  asio::posix::stream_descriptor acceptor;
  asio::steady_timer pause;
  gateway::DescriptorReserve reserve;
  std::set<std::shared_ptr<Session>> sessions;
  int refused = 0;  // of them, that are only told why
  std::atomic<std::int64_t> clients = 0;
  Fd changed;  // once it has handed over
  std::int64_t complained_us = 0, unsaid = 0;
  std::thread thread;
  std::optional<WatchedFiles> files;
};

Front::Front(gateway::Gateway& gateway, Options options, Holder* holder)
    : impl_(std::make_unique<Impl>(gateway, std::move(options), holder)) {}

void Front::start() {
  impl_->accept_later();
  impl_->thread = std::thread([impl = impl_.get()] { impl->run(); });
  if (impl_->tls)
    impl_->files.emplace(std::vector{impl_->options.tls_cert, impl_->options.tls_key},
                         [impl = impl_.get()] { impl->renew_certificate(); });
}

Front::~Front() {
  Impl& impl = *impl_;
  if (!impl.thread.joinable()) return;
  impl.files.reset();
  asio::post(impl.io, [&impl] {
    error_code ignored;
    impl.acceptor.cancel(ignored);
    impl.pause.cancel(ignored);
    impl.departures.close();
    for (auto& session : std::set(impl.sessions)) session->close();
  });
  // The sessions see that their sockets are closed, and end; then nothing is left to do.
  impl.thread.join();
  // What the gateway still had to say to their calls it has said when it answers this, and
  // forgotten them when it answers once more.
  for (int i = 0; i < 2; ++i) impl.gateway.traffic({});
}

void Front::hand_over(const Fd& changed) {
  Impl& impl = *impl_;
  std::promise<void> done;
  asio::post(impl.io, [&] {
    error_code ignored;
    impl.acceptor.cancel(ignored);
    impl.pause.cancel(ignored);
    impl.holder = nullptr;
    impl.stop_listening();
    impl.shared.leaving = true;
    impl.changed = changed.duplicate();
    done.set_value();
  });
  done.get_future().get();
}

std::int64_t Front::clients() const { return impl_->clients; }

std::uint16_t Front::port() const { return impl_->port; }
Routes& Front::routes() { return impl_->routes; }

}  // namespace thaw::front
