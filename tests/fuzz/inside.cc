// What a container can say to those that wait for it: answers to probes, datagrams, lines of its
// log.
#include "api/log_reader.h"
#include "fuzz.h"
#include "lifecycle/http_answer.h"
#include "lifecycle/watch_lines.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string text(reinterpret_cast<const char*>(data), size);
  return fuzz::run([&] {
    if (auto status = thaw::lifecycle::status_of(text); status && (*status < 100 || *status > 999))
      abort();
    if (auto end = thaw::lifecycle::answer_size(text);
        end && *end > text.size() + thaw::lifecycle::kAnswerLimit)
      abort();
    thaw::lifecycle::LogText log;
    for (std::string_view rest = text; !rest.empty();) {
      std::string_view line = rest.substr(0, rest.find('\n'));
      rest.remove_prefix(std::min(line.size() + 1, rest.size()));
      log.add(line);
      if (auto datagram = thaw::lifecycle::Datagram::parse(line)) datagram->get("STATUS");
      if (auto entry = thaw::api::parse_log_line(line)) {
        thaw::api::parse_rfc3339_us(entry->time);
        // The API sends it so.
        (void)thaw::api::to_json(*entry).dump(-1, ' ', false,
                                              nlohmann::json::error_handler_t::replace);
      }
    }
  });
}
