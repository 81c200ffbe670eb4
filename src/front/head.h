// Heads of requests and answers as they are passed on: what concerns one connection only is taken
// out, what the front knows is put in. Only for the files that use Beast.
#pragma once

#include <boost/beast/http/fields.hpp>
#include <boost/beast/http/message.hpp>
#include <string>
#include <string_view>

namespace thaw::front {

namespace http = boost::beast::http;

struct RequestFacts {
  std::string client;      // address
  std::string request_id;  // for X-Request-Id
  std::string host;        // as asked for
  bool secure = false;
  bool upgrade = false;
};
// What goes to the replica. Its connection is for this request only.
std::string request_head(const http::request_header<>& request, const RequestFacts& facts,
                         bool chunked);

enum class Framing { kLength, kChunked, kUntilEnd, kNone };
struct AnswerFacts {
  std::string request_id;
  std::string server_timing;
  Framing framing = Framing::kNone;
  bool keep_alive = true;
  bool upgrade = false;
};
// What goes to the client. `version` is its own: 10 or 11.
std::string answer_head(const http::response_header<>& answer, const AnswerFacts& facts,
                        unsigned version);

// What the client said, if it is fit to be repeated; otherwise a new one.
std::string request_id(const http::request_header<>& request);
// Of the request's target or its Host field; "" when there is none.
std::string host_of(const http::request_header<>& request);
// Without a scheme and a host.
std::string origin_form(std::string_view target);
bool wants_upgrade(const http::request_header<>& request);

}  // namespace thaw::front
