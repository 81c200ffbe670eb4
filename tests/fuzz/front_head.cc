// Heads of requests and answers that the shared port passes on. What it makes of them must be one
// head: nobody's line may become another's.
#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/parser.hpp>

#include "front/head.h"
#include "fuzz.h"

namespace {

namespace http = thaw::front::http;

void one_head(const std::string& head) {
  if (head.size() < 4 || head.find("\r\n\r\n") != head.size() - 4) abort();
  for (std::size_t at = 0; at < head.size(); ++at)
    if ((head[at] == '\n' && (at == 0 || head[at - 1] != '\r')) || head[at] == '\0') abort();
}

template <bool isRequest>
bool parse(http::parser<isRequest, http::empty_body>& parser, std::string_view text) {
  boost::beast::error_code error;
  parser.header_limit(16 * 1024);
  parser.put(boost::asio::buffer(text.data(), text.size()), error);
  return !error && parser.is_header_done();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string_view text(reinterpret_cast<const char*>(data), size);
  return fuzz::run([&] {
    http::request_parser<http::empty_body> request;
    if (parse(request, text)) {
      const auto& head = request.get().base();
      for (bool upgrade : {false, thaw::front::wants_upgrade(head)}) {
        std::string sent = thaw::front::request_head(head,
                                                     {"192.0.2.1", thaw::front::request_id(head),
                                                      thaw::front::host_of(head), false, upgrade},
                                                     !upgrade);
        one_head(sent);
        http::request_parser<http::empty_body> again;
        if (parse(again, sent) && again.get().count("X-Forwarded-For") != 1) abort();
      }
    }
    http::response_parser<http::empty_body> answer;
    if (parse(answer, text))
      for (auto framing : {thaw::front::Framing::kLength, thaw::front::Framing::kChunked})
        one_head(
            thaw::front::answer_head(answer.get().base(), {"id", "", framing, true, false}, 11));
  });
}
