// What a client of the API sends: target, query and body.
#include "api/exchange.h"
#include "api/target.h"
#include "fuzz.h"

namespace {

class Asked final : public thaw::api::Exchange {
 public:
  using Exchange::Exchange;
  void reply(int, const nlohmann::json&) override {}
  void begin(int, std::string_view) override {}
  bool write(std::string_view) override { return false; }
  bool begun() const override { return false; }
  bool wait(int, int) override { return false; }
  thaw::api::Upgraded upgrade(std::string_view) override { return {}; }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  auto parts = fuzz::parts(data, size, 2);
  // The server's own parser of heads lets no such target through.
  for (unsigned char c : parts[0])
    if (c <= ' ' || c == 0x7f) return 0;
  thaw::api::Request request;
  request.method = "POST";
  request.target = parts[0];
  request.body = parts[1];
  return fuzz::run([&] {
    fuzz::run([&] { thaw::api::parse_target(request); });
    for (const std::string& segment : request.segments)
      if (segment == ".." || segment == "." || segment.find('\0') != std::string::npos) abort();
    alignas(16) static char nobody[64];  // nothing here asks a backend
    Asked asked(request, reinterpret_cast<thaw::api::Backend&>(nobody));
    fuzz::run([&] { (void)asked.query_number("limit", 100, 0, 1000); });
    fuzz::run([&] { (void)asked.query_flag("follow"); });
    nlohmann::json body = asked.body_object({"replicas", "wait", "name", "scope", "argv"});
    // As refusals do.
    for (auto& [key, value] : body.items())
      (void)value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  });
}
