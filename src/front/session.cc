#include "front/session.h"

#include <arpa/inet.h>
#include <fmt/format.h>

#include <limits>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/http/buffer_body.hpp>
#include <boost/beast/http/parser.hpp>

#include "front/head.h"
#include "util/clock.h"
#include "util/error.h"
#include "util/finally.h"
#include "util/log.h"

namespace thaw::front {
namespace {

constexpr std::uint32_t kHeaderLimit = 64 * 1024;
// (Beast 1.74 takes "none" for less than any length.)
constexpr auto kAnyLength = std::numeric_limits<std::uint64_t>::max();
constexpr std::size_t kBuffer = 64 * 1024;
constexpr std::size_t kFirstRead = 4 * 1024;
constexpr std::int64_t kHearUs = 2'000'000;
constexpr std::size_t kHearBytes = 1 << 20;
constexpr int kRetryAfterS = 2;
constexpr std::int64_t kComplaintEveryUs = 1'000'000;

using RequestParser = http::request_parser<http::buffer_body>;
using AnswerParser = http::response_parser<http::buffer_body>;

std::string address_text(const sockaddr_storage& address) {
  char text[INET6_ADDRSTRLEN] = "";
  if (address.ss_family == AF_INET6)
    ::inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6&>(address).sin6_addr, text,
                sizeof text);
  else
    ::inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in&>(address).sin_addr, text,
                sizeof text);
  return text;
}

// Gives the parser what is there; what it did not take stays.
template <typename Parser>
void feed(Parser& parser, std::string& bytes, error_code& error) {
  std::size_t used = parser.put(asio::buffer(bytes.data(), bytes.size()), error);
  bytes.erase(0, used);
}

std::string chunk_head(std::size_t size) { return fmt::format("{:x}\r\n", size); }

}  // namespace

// One request and its answer.
struct Session::Exchange {
  explicit Exchange(Shared& shared) : reach(shared.gateway, shared.io) {}
  RequestParser request;
  AnswerParser* answer = nullptr;
  RequestFacts facts;
  Reach reach;
  std::optional<Departures::Watch> departure;  // of the client, until its protocol is its own
  bool keep_alive = true;                      // as the client wishes
  unsigned version = 11;
  bool head = false;  // the answer has no body
  int status = 0;     // of the answer; 0: none was given
  std::string why;    // of one of ours
  std::string pod;
  Framing framing = Framing::kNone;
  std::string server_timing;
  std::string in;  // bytes of the replica that were read and not yet used
  // Shared with the gateway: CallTarget::moved_us.
  std::shared_ptr<std::atomic<std::int64_t>> moved_us =
      std::make_shared<std::atomic<std::int64_t>>(0);
};

// The request's body on its way, beside the answer's.
struct Session::Upload {
  Upload(asio::io_context& io, Exchange& exchange)
      : exchange(exchange), over(io, asio::steady_timer::time_point::max()) {}
  Exchange& exchange;
  asio::steady_timer over;  // never rings: cancelled when the upload has ended
  bool ended = false;
  bool complete = false;  // the client has sent all of it
};

Session::Session(Shared& shared, std::unique_ptr<Stream> client, const sockaddr_storage& address,
                 const sockaddr_storage& server, bool refused)
    : shared_(shared),
      client_(std::move(client)),
      address_(address),
      server_(server),
      refused_(refused),
      address_text_(address_text(address)),
      timer_(shared.io) {}

void Session::start(std::function<void()> ended) {
  auto self = shared_from_this();
  asio::co_spawn(
      shared_.io, [self]() -> Task<> { return self->run(); },
      [self, ended = std::move(ended)](std::exception_ptr failure) {
        try {
          if (failure) std::rethrow_exception(failure);
        } catch (const std::exception& error) {
          log::warn("a request on the shared port failed",
                    {{"client", self->address_text_}, {"error", describe(error)}});
        }
        self->close();
        ended();
      });
}

void Session::close() {
  ended_ = true;
  error_code ignored;
  timer_.cancel(ignored);
  // An answer that was cut off must not look like a whole one.
  if (broken_) client_->socket().set_option(asio::socket_base::linger(true, 0), ignored);
  client_->socket().close(ignored);
  if (upstream_) upstream_->close(ignored);
}

void Session::within(std::int64_t us) {
  if (ended_) return;
  if (refused_) us = std::min(us, kHearUs);
  bool sooner = deadline_us_ == 0 || monotonic_us() + us < deadline_us_;
  deadline_us_ = monotonic_us() + us;
  if (sooner) watch();
}

void Session::watch() {
  timer_.expires_after(
      std::chrono::microseconds(std::max<std::int64_t>(0, deadline_us_ - monotonic_us())));
  timer_.async_wait([self = shared_from_this()](error_code error) {
    if (error || self->ended_) return;
    if (monotonic_us() >= self->deadline_us_) return self->close();
    self->watch();
  });
}

Task<error_code> Session::say(std::string_view a, std::string_view b, std::string_view c) {
  return client_->write(a, b, c);
}

// More of the client's bytes, behind those in hand.
Task<std::size_t> Session::hear(error_code& error) {
  std::size_t before = in_.size();
  in_.resize(before + (before == 0 ? kFirstRead : kBuffer));
  std::size_t got = co_await client_->read(in_.data() + before, in_.size() - before, error);
  in_.resize(before + got);
  co_return got;
}

Task<> Session::run() {
  within(shared_.options.header_us);
  error_code error = co_await client_->open();
  if (error) co_return;
  for (;;) {
    if (in_.empty()) {
      // An idle client costs no buffers.
      in_ = std::string();
      scratch_ = std::vector<char>();
      within(shared_.options.idle_us);
      error = co_await client_->wait_readable();
      if (error) co_return;
    }
    bool go_on = co_await one_request();
    if (go_on && !ended_) continue;
    if (!ended_ && !broken_) co_await client_->end_writing();
    co_return;
  }
}

// False when the connection is over.
Task<bool> Session::one_request() {
  Exchange exchange(shared_);
  std::int64_t begin_us = monotonic_us();
  bool go_on = false;
  std::string failure;
  try {
    go_on = co_await serve(exchange);
  } catch (const std::exception& error) {
    failure = describe(error);
    broken_ = true;
  }
  if (!exchange.facts.request_id.empty()) tell(exchange, begin_us, failure);
  co_return go_on;
}

// A line for each request; those that failed are warnings, one a second at most.
void Session::tell(const Exchange& exchange, std::int64_t begin_us, const std::string& failure) {
  std::string cause = failure;
  if (cause.empty() && broken_ && !ended_) cause = "its answer was cut off";
  if (cause.empty() && exchange.status >= 500) cause = exchange.why;
  bool failed = !cause.empty();
  bool aloud = failed && monotonic_us() - shared_.complained_us >= kComplaintEveryUs;
  std::int64_t events = failed ? ++shared_.unsaid : 0;
  if (aloud) shared_.complained_us = monotonic_us(), shared_.unsaid = 0;
  std::string_view target(exchange.request.get().target().data(),
                          exchange.request.get().target().size());
  // Without its query, which may hold a secret.
  target = target.substr(0, target.find('?'));
  auto line = aloud ? log::warn : log::debug;
  line(failed ? "a request failed" : "request",
       {{"request", exchange.facts.request_id},
        {"pod", exchange.pod},
        {"replica", exchange.reach.replica()},
        {"client", address_text_},
        {"what", fmt::format("{} {}{}", std::string(exchange.request.get().method_string()),
                             exchange.facts.host, target)},
        {"status", std::to_string(exchange.status)},
        {"us", std::to_string(monotonic_us() - begin_us)},
        {"cause", cause},
        {"such_events", std::to_string(events)}});
}

Task<bool> Session::serve(Exchange& exchange) {
  exchange.request.header_limit(kHeaderLimit);
  exchange.request.body_limit(kAnyLength);
  // From its first byte on, however slowly the others come.
  bool begun = !client_->secure() || !in_.empty();
  within(begun ? shared_.options.header_us : shared_.options.idle_us);
  while (!exchange.request.is_header_done()) {
    error_code error;
    if (!in_.empty()) {
      feed(exchange.request, in_, error);
      if (exchange.request.is_header_done()) break;
    }
    if (error && error != http::error::need_more) {
      exchange.keep_alive = false;
      int status = 400;
      std::string text = "this is not a request of HTTP/1.1: " + error.message();
      if (error == http::error::header_limit)
        status = 431, text = "the request's header is too long";
      bool go_on = co_await reply(exchange, status, text);
      co_return go_on;
    }
    error = {};
    std::size_t got = co_await hear(error);
    if (got == 0 || error) co_return false;
    if (!std::exchange(begun, true)) within(shared_.options.header_us);
  }
  within(shared_.options.stall_us);

  const auto& request = exchange.request.get();
  exchange.version = request.version();
  exchange.keep_alive = request.keep_alive() && !shared_.leaving;
  exchange.head = request.method() == http::verb::head;
  exchange.facts = {.client = address_text_,
                    .request_id = request_id(request),
                    .host = host_of(request),
                    .secure = client_->secure(),
                    .upgrade = wants_upgrade(request)};
  if (request.method() == http::verb::connect || request.version() < 10 ||
      (request.version() == 11 && exchange.facts.host.empty() && request.count("Host") == 0)) {
    exchange.keep_alive = false;
    bool go_on = co_await reply(exchange, 400, "this request cannot be passed on");
    co_return go_on;
  }
  if (refused_) {
    exchange.keep_alive = false;
    std::string text = "too many clients are connected";
    bool go_on = co_await reply(exchange, 503, text, kRetryAfterS);
    co_return go_on;
  }
  std::string target(request.target());
  std::optional<Route> route = shared_.routes.find(exchange.facts.host, origin_form(target));
  if (!route) {
    bool go_on = co_await reply(exchange, 404, "no pod has a route for this host and path");
    co_return go_on;
  }

  exchange.pod = route->pod;
  std::int64_t begin_us = monotonic_us();
  gateway::CallTarget call{.pod = route->pod,
                           .route = route->host + route->path,
                           .port = route->port,
                           .client = address_,
                           .server = server_,
                           .bytes = static_cast<std::int64_t>(sizeof(Exchange) + kFirstRead +
                                                              in_.size() + target.size()),
                           .moved_us = exchange.moved_us};
  std::weak_ptr<Session> weak = weak_from_this();
  exchange.departure.emplace(shared_.departures, client_->socket().native_handle(),
                             [this, &exchange] {
                               exchange.reach.client_left();
                               // Nobody waits for the answer any more.
                               if (upstream_) close();
                             });
  // Made ahead: GCC 12 ends what is converted within a co_await twice.
  std::function<void()> dropped = [weak] {
    auto self = weak.lock();
    error_code ignored;
    if (self && self->upstream_) self->upstream_->close(ignored);
  };
  Reach::End end = co_await exchange.reach.connect(std::move(call), std::move(dropped));
  if (end == Reach::End::kClientLeft) co_return false;
  if (end == Reach::End::kRefused) {
    gateway::Refused why = exchange.reach.why();
    bool go_on = co_await reply(exchange, 503, why.text, gateway::retry_after_s(why.why));
    co_return go_on;
  }
  std::int64_t held_us = monotonic_us() - begin_us;
  const char* how = "running";
  if (exchange.reach.held()) how = exchange.reach.restored() ? "restored" : "cold";
  exchange.server_timing =
      fmt::format("hold;dur={:.1f};desc=\"{}\"", static_cast<double>(held_us) / 1000, how);

  upstream_ = &exchange.reach.upstream();
  Finally forget([this] { upstream_ = nullptr; });
  bool go_on = co_await forward(exchange);
  co_return go_on;
}

Task<bool> Session::forward(Exchange& exchange) {
  bool chunked = exchange.request.chunked();
  std::string head = request_head(exchange.request.get(), exchange.facts, chunked);
  error_code error = co_await write(*upstream_, head);
  auto work = std::make_shared<Upload>(shared_.io, exchange);
  if (error) work->ended = true;  // its answer, if any, says more
  if (!work->ended && exchange.request.is_done()) work->ended = work->complete = true;
  if (!work->ended) {
    auto self = shared_from_this();
    asio::co_spawn(
        shared_.io, [self, work]() -> Task<> { return self->upload(work); },
        [self, work](std::exception_ptr) {
          work->ended = true;
          work->over.cancel();
        });
  }
  bool go_on = false;
  std::exception_ptr failure;
  try {
    go_on = co_await download(exchange, *work);
  } catch (...) {
    failure = std::current_exception();
  }
  bool complete = work->complete;
  if (!work->ended) {
    // The answer came before the request was over: what is left of the request has no reader.
    error_code ignored;
    upstream_->close(ignored);
    client_->socket().cancel(ignored);
    co_await wait_for(*work);
  }
  if (failure) std::rethrow_exception(failure);
  if (go_on && !complete) {
    co_await hear_out();
    go_on = false;
  }
  co_return go_on;
}

Task<> Session::wait_for(Upload& work) {
  error_code ignored;
  while (!work.ended)
    co_await work.over.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
}

// More of a request's body. A client that is gone in the middle: the replica must not take what it
// has for the whole.
Task<bool> Session::hear_more() {
  error_code error, ignored;
  std::size_t got = co_await hear(error);
  if (got > 0 && !error) co_return true;
  if (!ended_ && upstream_ && error != asio::error::operation_aborted) upstream_->close(ignored);
  co_return false;
}

Task<> Session::upload(std::shared_ptr<Upload> work) {
  RequestParser& request = work->exchange.request;
  bool chunked = request.chunked();
  std::vector<char> buffer(kBuffer);
  while (!request.is_done()) {
    error_code error;
    if (in_.empty()) {
      bool more = co_await hear_more();
      if (!more) co_return;
    }
    within(shared_.options.stall_us);
    auto& body = request.get().body();
    body.data = buffer.data();
    body.size = buffer.size();
    error = {};
    feed(request, in_, error);
    std::size_t size = buffer.size() - body.size;
    if (error && error != http::error::need_buffer && error != http::error::need_more) {
      error_code ignored;
      if (upstream_) upstream_->close(ignored);
      co_return;
    }
    if (size > 0) {
      if (!upstream_) co_return;
      std::string_view data(buffer.data(), size);
      if (chunked) {
        std::string before = chunk_head(size);
        error = co_await write(*upstream_, before, data, "\r\n");
      } else {
        error = co_await write(*upstream_, data);
      }
      if (error) co_return;
    } else if (error == http::error::need_more) {
      bool more = co_await hear_more();
      if (!more) co_return;
    }
  }
  work->complete = true;
  if (chunked && upstream_) co_await write(*upstream_, "0\r\n\r\n");
}

// The answer's head, with what comes before it; then its body.
Task<bool> Session::download(Exchange& exchange, Upload& work) {
  scratch_.resize(kBuffer);
  for (;;) {
    AnswerParser answer;
    answer.header_limit(kHeaderLimit);
    answer.body_limit(kAnyLength);
    answer.skip(exchange.head);
    while (!answer.is_header_done()) {
      error_code error;
      if (!exchange.in.empty()) {
        feed(answer, exchange.in, error);
        if (answer.is_header_done()) break;
      }
      std::size_t got = 0;
      bool wrong = error && error != http::error::need_more;
      if (!wrong) {
        error = {};
        got = co_await read(*upstream_, scratch_.data(), scratch_.size(), error);
        exchange.in.append(scratch_.data(), got);
      }
      if (got > 0) continue;
      if (ended_) co_return false;
      exchange.keep_alive = exchange.keep_alive && work.complete;
      std::string text = "the replica ended the connection before it answered";
      if (wrong) text = "the replica's answer is not HTTP/1.1: " + error.message();
      bool go_on = co_await reply(exchange, 502, text);
      co_return go_on;
    }
    within(shared_.options.stall_us);
    exchange.answer = &answer;
    const auto& head = answer.get();
    AnswerFacts facts{.request_id = exchange.facts.request_id,
                      .server_timing = exchange.server_timing};
    unsigned status = head.result_int();
    exchange.status = static_cast<int>(status);
    facts.upgrade = status == 101 && exchange.facts.upgrade;
    if (status < 200 && !facts.upgrade) {
      if (status != 101 && exchange.version == 11) {
        facts.server_timing.clear();
        std::string text = answer_head(head, facts, exchange.version);
        error_code error = co_await say(text);
        if (error) co_return false;
      }
      if (status == 101) {
        std::string text = "the replica changed the protocol unasked";
        bool go_on = co_await reply(exchange, 502, text);
        co_return go_on;
      }
      continue;
    }
    bool bodiless = exchange.head || status == 204 || status == 304 || facts.upgrade;
    if (bodiless)
      exchange.framing = Framing::kNone;
    else if (answer.content_length())
      exchange.framing = Framing::kLength;
    else
      exchange.framing = exchange.version == 11 ? Framing::kChunked : Framing::kUntilEnd;
    exchange.keep_alive = exchange.keep_alive && exchange.framing != Framing::kUntilEnd;
    facts.framing = exchange.framing;
    facts.keep_alive = exchange.keep_alive;
    std::string text = answer_head(head, facts, exchange.version);
    if (facts.upgrade) {
      error_code error = co_await say(text);
      exchange.departure.reset();
      if (!error) co_await tunnel(exchange);
      co_return false;
    }
    // The head goes with the first bytes of the body: one packet for a small answer.
    exchange.server_timing = std::move(text);
    bool whole = co_await answer_body(exchange);
    broken_ = !whole;
    co_return (exchange.keep_alive && whole);
  }
}

Task<bool> Session::answer_body(Exchange& exchange) {
  AnswerParser& answer = *exchange.answer;
  std::string head = std::move(exchange.server_timing);
  std::vector<char> buffer(kBuffer);
  bool chunked = exchange.framing == Framing::kChunked;
  bool until_end = answer.need_eof() && exchange.framing != Framing::kNone;
  error_code error;
  while (exchange.framing != Framing::kNone && !answer.is_done()) {
    bool ended = false;
    if (exchange.in.empty()) {
      // A head that waits for its body must not wait long.
      if (!head.empty() && upstream_->available(error) == 0) {
        error = co_await say(head);
        if (error) co_return false;
        head.clear();
      }
      error = {};
      std::size_t got = co_await read(*upstream_, scratch_.data(), scratch_.size(), error);
      if (got == 0) {
        ended = true;
        if (!until_end || (error && error != asio::error::eof)) {
          // Cut off: the client must see that, too.
          if (!head.empty()) co_await say(head);
          co_return false;
        }
      }
      exchange.in.append(scratch_.data(), got);
    }
    within(shared_.options.stall_us);
    auto& body = answer.get().body();
    body.data = buffer.data();
    body.size = buffer.size();
    error = {};
    if (ended)
      answer.put_eof(error);
    else
      feed(answer, exchange.in, error);
    if (error && error != http::error::need_buffer && error != http::error::need_more)
      co_return false;
    bool stuck = error == http::error::need_more;
    std::size_t size = buffer.size() - body.size;
    if (size > 0) {
      std::string_view data(buffer.data(), size);
      if (chunked) {
        head += chunk_head(size);
        error = co_await say(head, data, "\r\n");
      } else {
        error = co_await say(head, data);
      }
      head.clear();
      if (error) co_return false;
    } else if (stuck && !ended) {
      // Part of a chunk's head: more of it.
      error = {};
      std::size_t got = co_await read(*upstream_, scratch_.data(), scratch_.size(), error);
      if (got == 0) co_return false;
      exchange.in.append(scratch_.data(), got);
    }
  }
  if (chunked) head += "0\r\n\r\n";
  if (!head.empty()) {
    error = co_await say(head);
    if (error) co_return false;
  }
  co_return true;
}

// --- after an upgrade: bytes ---

Task<> Session::tunnel(Exchange& exchange) {
  auto work = std::make_shared<Upload>(shared_.io, exchange);
  auto self = shared_from_this();
  exchange.moved_us->store(monotonic_us());
  asio::co_spawn(
      shared_.io, [self, work]() -> Task<> { return self->copy_up(*self->upstream_, work); },
      [self, work](std::exception_ptr) {
        work->ended = true;
        work->over.cancel();
      });
  error_code error;
  while (!error) {
    if (exchange.in.empty()) {
      std::size_t got = co_await read(*upstream_, scratch_.data(), scratch_.size(), error);
      if (got == 0) break;
      exchange.in.assign(scratch_.data(), got);
      exchange.moved_us->store(monotonic_us());
    }
    within(shared_.options.stall_us);
    error = co_await say(exchange.in);
    exchange.in.clear();
  }
  error_code ignored;
  if (!ended_) co_await client_->end_writing();
  if (error && error != asio::error::eof) client_->socket().cancel(ignored);
  co_await wait_for(*work);
}

Task<> Session::copy_up(Socket& upstream, std::shared_ptr<Upload> work) {
  error_code error;
  for (;;) {
    if (in_.empty()) {
      std::size_t got = co_await hear(error);
      if (got == 0) break;
      work->exchange.moved_us->store(monotonic_us());
    }
    within(shared_.options.stall_us);
    error = co_await write(upstream, in_);
    in_.clear();
    if (error) break;
  }
  error_code ignored;
  upstream.shutdown(Socket::shutdown_send, ignored);
}

// --- our own answers ---

Task<bool> Session::reply(Exchange& exchange, int status, const std::string& text,
                          int retry_after_s) {
  exchange.status = status;
  exchange.why = text;
  // What is left of the request is not read for an answer that does not depend on it.
  bool keep = exchange.keep_alive && exchange.request.is_done();
  std::string reason(http::obsolete_reason(static_cast<http::status>(status)));
  std::string head = fmt::format(
      "HTTP/1.1 {} {}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n", status,
      reason, text.size() + 1);
  if (retry_after_s > 0) head += fmt::format("Retry-After: {}\r\n", retry_after_s);
  if (!exchange.facts.request_id.empty())
    head += fmt::format("X-Request-Id: {}\r\n", exchange.facts.request_id);
  if (!keep)
    head += "Connection: close\r\n";
  else if (exchange.version < 11)
    head += "Connection: keep-alive\r\n";
  head += "\r\n";
  if (!exchange.head) head += text + "\n";
  error_code error = co_await say(head);
  if (error) co_return false;
  if (!keep) co_await hear_out();
  co_return keep;
}

// Closing with a client's words unread would reset it, and the reset may overtake the answer.
Task<> Session::hear_out() {
  co_await client_->end_writing();
  within(kHearUs);
  std::size_t heard = 0;
  error_code error;
  while (!error && heard < kHearBytes && !ended_) {
    in_.clear();
    heard += co_await hear(error);
  }
}

}  // namespace thaw::front
