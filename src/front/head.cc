#include "front/head.h"

#include <fmt/format.h>

#include <boost/beast/http/rfc7230.hpp>
#include <initializer_list>

#include "util/file.h"

namespace thaw::front {
namespace {

using http::field;

std::string_view view(boost::string_view text) { return {text.data(), text.size()}; }

bool has_token(boost::string_view list, std::string_view token) {
  return http::token_list{list}.exists(boost::string_view(token.data(), token.size()));
}

// RFC 9110, 7.6.1: for one connection only.
bool of_connection(field name) {
  switch (name) {
    case field::connection:
    case field::keep_alive:
    case field::proxy_connection:
    case field::proxy_authenticate:
    case field::proxy_authorization:
    case field::te:
    case field::trailer:
    case field::transfer_encoding:
    case field::upgrade:
      return true;
    default:
      return false;
  }
}

void append(std::string& head, std::string_view name, std::string_view value) {
  head.append(name).append(": ").append(value).append("\r\n");
}

bool same(std::string_view a, std::string_view b) {
  return boost::beast::iequals(boost::string_view(a.data(), a.size()),
                               boost::string_view(b.data(), b.size()));
}

// What the client may not say for us.
bool is_ours(std::string_view name) {
  for (std::string_view ours : {"x-forwarded-for", "x-forwarded-proto", "x-forwarded-host",
                                "x-forwarded-port", "x-real-ip", "forwarded", "x-request-id"})
    if (same(name, ours)) return true;
  return false;
}

template <typename Header>
bool named_by_connection(const Header& header, std::string_view name) {
  auto connection = header.find(field::connection);
  return connection != header.end() && has_token(connection->value(), name);
}

}  // namespace

std::string request_head(const http::request_header<>& request, const RequestFacts& facts,
                         bool chunked) {
  std::string head;
  head.reserve(1024);
  head.append(view(request.method_string())).append(" ");
  head.append(origin_form(view(request.target()))).append(" HTTP/1.1\r\n");
  append(head, "Host", facts.host);
  for (const auto& entry : request) {
    std::string_view name = view(entry.name_string());
    if (entry.name() == field::host || of_connection(entry.name()) || is_ours(name) ||
        named_by_connection(request, name))
      continue;
    append(head, name, view(entry.value()));
  }
  append(head, "X-Forwarded-For", facts.client);
  append(head, "X-Forwarded-Proto", facts.secure ? "https" : "http");
  append(head, "X-Forwarded-Host", facts.host);
  append(head, "X-Request-Id", facts.request_id);
  if (chunked) append(head, "Transfer-Encoding", "chunked");
  if (facts.upgrade) {
    append(head, "Connection", "Upgrade");
    append(head, "Upgrade", view(request[field::upgrade]));
  } else {
    append(head, "Connection", "close");
  }
  return head.append("\r\n");
}

std::string answer_head(const http::response_header<>& answer, const AnswerFacts& facts,
                        unsigned version) {
  std::string head;
  head.reserve(1024);
  head.append(fmt::format("HTTP/1.1 {} ", answer.result_int()));
  head.append(view(answer.reason())).append("\r\n");
  bool names_request = false;
  for (const auto& entry : answer) {
    std::string_view name = view(entry.name_string());
    if (of_connection(entry.name()) || named_by_connection(answer, name)) continue;
    // The length of what is sent in chunks would be a second, perhaps another, length.
    if (entry.name() == field::content_length && facts.framing != Framing::kLength &&
        facts.framing != Framing::kNone)
      continue;
    names_request = names_request || same(name, "x-request-id");
    append(head, name, view(entry.value()));
  }
  if (!names_request && !facts.request_id.empty()) append(head, "X-Request-Id", facts.request_id);
  if (!facts.server_timing.empty()) append(head, "Server-Timing", facts.server_timing);
  if (facts.framing == Framing::kChunked) append(head, "Transfer-Encoding", "chunked");
  if (facts.upgrade) {
    append(head, "Connection", "Upgrade");
    append(head, "Upgrade", view(answer[field::upgrade]));
  } else if (answer.result_int() >= 200) {
    if (!facts.keep_alive)
      append(head, "Connection", "close");
    else if (version < 11)
      append(head, "Connection", "keep-alive");
  }
  return head.append("\r\n");
}

std::string request_id(const http::request_header<>& request) {
  auto given = request.find("X-Request-Id");
  if (given == request.end()) return random_hex(32);
  std::string_view id = view(given->value());
  bool fit = !id.empty() && id.size() <= 128;
  for (char c : id) fit = fit && c > ' ' && c < 0x7f;
  return fit ? std::string(id) : random_hex(32);
}

std::string host_of(const http::request_header<>& request) {
  std::string_view target = view(request.target());
  if (std::size_t scheme = target.find("://");
      scheme != std::string_view::npos && !target.starts_with('/')) {
    target.remove_prefix(scheme + 3);
    return std::string(target.substr(0, target.find_first_of("/?#")));
  }
  return std::string(view(request[field::host]));
}

std::string origin_form(std::string_view target) {
  if (target.starts_with('/') || target == "*") return std::string(target);
  std::size_t scheme = target.find("://");
  if (scheme == std::string_view::npos) return std::string(target);
  target.remove_prefix(scheme + 3);
  std::size_t path = target.find_first_of("/?");
  if (path == std::string_view::npos) return "/";
  return (target[path] == '?' ? "/" : "") + std::string(target.substr(path));
}

bool wants_upgrade(const http::request_header<>& request) {
  // What follows is out of our sight, so it must be what we know: h2c would bring requests that no
  // route was asked about.
  return request.version() == 11 && same(view(request[field::upgrade]), "websocket") &&
         has_token(request[field::connection], "upgrade");
}

}  // namespace thaw::front
