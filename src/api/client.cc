#include "api/client.h"

#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>

#include "api/json.h"
#include "api/socket_stream.h"
#include "api/tls.h"
#include "api/unreachable.h"
#include "util/error.h"
#include "util/version.h"

namespace thaw::api {
namespace {

namespace http = boost::beast::http;
using error_code = boost::system::error_code;
using nlohmann::json;

constexpr std::int64_t kConnectUs = 10'000'000;

// One request and its answer. The answer may take as long as it takes: a dump or a wait is the
// daemon's to limit.
class Call {
 public:
  Call(const Address& address, int cancel_fd) : address_(address), stream_(dial(), cancel_fd) {
    parser_.body_limit(UINT64_MAX);  // none does not mean none in Boost 1.74
    parser_.header_limit(64 * 1024);
  }

  void send(std::string_view method, const std::string& path, const json& body, bool upgrade,
            const std::string* bytes = nullptr) {
    http::request<http::string_body> request;
    request.method_string(boost::string_view(method.data(), method.size()));
    request.target(path);
    request.version(11);
    request.set(http::field::host, address_.is_unix ? "localhost" : address_.text().substr(4));
    if (!address_.token.empty())
      request.set(http::field::authorization, "Bearer " + address_.token);
    request.set(http::field::user_agent, "thaw/" + std::string(kVersion));
    if (upgrade) {
      request.set(http::field::connection, "Upgrade");
      request.set(http::field::upgrade, "thaw-exec");
    } else {
      request.set(http::field::connection, "close");
    }
    if (bytes) {
      request.set(http::field::content_type, "application/octet-stream");
      request.body() = *bytes;
    } else if (!body.is_null()) {
      request.set(http::field::content_type, "application/json");
      request.body() = dump(body);
    }
    request.prepare_payload();
    error_code error;
    http::write(stream_, request, error);
    // A server that refuses early may have closed already; its answer is still there to read.
    error_code read_error;
    http::read_header(stream_, buffer_, parser_, read_error);
    if (read_error) fail(error ? error : read_error);
  }

  int status() const { return parser_.get().result_int(); }

  // The next piece of the body; empty at its end, or when cancelled.
  std::string_view next() {
    while (!parser_.is_done()) {
      auto& body = parser_.get().body();
      body.data = block_;
      body.size = sizeof block_;
      error_code error;
      http::read_some(stream_, buffer_, parser_, error);
      if (error == boost::asio::error::operation_aborted) return {};
      if (error && error != http::error::need_buffer) fail(error);
      std::size_t count = sizeof block_ - body.size;
      if (count > 0) return {block_, count};
    }
    return {};
  }

  std::string rest() {
    std::string text;
    for (auto piece = next(); !piece.empty(); piece = next()) text += piece;
    return text;
  }

  [[noreturn]] void refuse() {
    std::string text = rest();
    json body = json::parse(text, nullptr, false);
    throw from_error_json(body.is_discarded() ? json(text) : body);
  }

  ExecConnection leave() {
    Fd copy(check(::dup(stream_.fd()), "duplicate", "connection"));
    set_nonblocking(copy, false);
    if (link_) link_->detach();
    return {std::move(copy),
            std::string(static_cast<const char*>(buffer_.data().data()), buffer_.size())};
  }

 private:
  Fd dial() {
    Deadline deadline = Deadline::after_us(kConnectUs);
    Fd socket = connect_to(address_, deadline);
    if (!address_.tls) return socket;
    link_ = std::make_unique<TlsLink>(TlsLink::connect(TlsContext::client(address_.ca_file),
                                                       std::move(socket), address_.host, deadline));
    return link_->take_plain();
  }

  [[noreturn]] void fail(const error_code& error) {
    if (error == http::error::end_of_stream || error == http::error::partial_message) {
      throw Unreachable(address_.text(), "it closed the connection in the middle of an answer");
    }
    throw Unreachable(address_.text(), error.message());
  }

  const Address& address_;
  std::unique_ptr<TlsLink> link_;  // outlives the stream
  SocketStream stream_;
  boost::beast::flat_buffer buffer_;
  http::response_parser<http::buffer_body> parser_;
  char block_[32 * 1024];
};

json call(const Address& address, std::string_view method, const std::string& path,
          const json& body, const std::string* bytes = nullptr) {
  Call request(address, -1);
  request.send(method, path, body, false, bytes);
  if (request.status() >= 300) request.refuse();
  std::string text = request.rest();
  json answer = json::parse(text, nullptr, false);
  if (answer.is_discarded()) throw from_error_json(json(text));
  return answer;
}

}  // namespace

std::string encode(std::string_view text) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~:@";
  std::string encoded;
  for (char c : text) {
    if (kPlain.find(c) != std::string_view::npos && text != "." && text != "..") {
      encoded += c;
    } else {
      encoded += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  return encoded;
}

std::string with_query(std::string path, const std::map<std::string, std::string>& query) {
  char separator = '?';
  for (auto& [key, value] : query) {
    if (value.empty()) continue;
    path += separator + encode(key) + "=" + encode(value);
    separator = '&';
  }
  return path;
}

json Client::get(const std::string& path) { return call(address_, "GET", path, nullptr); }

json Client::post(const std::string& path, const json& body) {
  return call(address_, "POST", path, body);
}

json Client::put(const std::string& path, const std::string& bytes) {
  return call(address_, "PUT", path, nullptr, &bytes);
}

json Client::remove(const std::string& path) { return call(address_, "DELETE", path, nullptr); }

void Client::stream(std::string_view method, const std::string& path, const json& body,
                    const std::function<bool(std::string_view)>& on_line, int cancel_fd) {
  Call request(address_, cancel_fd);
  request.send(method, path, body, false);
  if (request.status() >= 300) request.refuse();
  std::string pending;
  for (auto piece = request.next(); !piece.empty(); piece = request.next()) {
    pending += piece;
    std::size_t start = 0;
    for (std::size_t end; (end = pending.find('\n', start)) != std::string::npos; start = end + 1) {
      if (!on_line(std::string_view(pending).substr(start, end - start))) return;
    }
    pending.erase(0, start);
  }
  if (!pending.empty()) on_line(pending);
}

void Client::events(const std::string& path, const std::function<bool(const json&)>& on_event,
                    int cancel_fd) {
  std::string name;
  stream(
      "GET", path, nullptr,
      [&](std::string_view line) {
        if (line.starts_with("event: ")) name = line.substr(7);
        if (line.empty()) name.clear();
        if (!line.starts_with("data: ")) return true;
        if (name == "end") return false;
        json data = json::parse(line.substr(6));
        if (name == "error") throw from_error_json(data);
        return on_event(data);
      },
      cancel_fd);
}

ExecConnection Client::exec(const ExecRequest& request) {
  Call call(address_, -1);
  call.send("POST", "/v1/replicas/" + encode(request.replica) + "/exec",
            {{"argv", request.argv},
             {"terminal", request.terminal},
             {"rows", request.rows},
             {"columns", request.columns}},
            true);
  if (call.status() != 101) call.refuse();
  return call.leave();
}

}  // namespace thaw::api
