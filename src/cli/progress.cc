#include "cli/progress.h"

#include "util/clock.h"

namespace thaw::cli {

EventProgress::EventProgress(const Context& context, std::string pod, std::int64_t after)
    : context_(context), pod_(std::move(pod)), seen_(after) {
  if (!context.progress()) return;
  start_us_ = wall_us();
  cancel_ = Fd::event();
  thread_ = std::thread([this] {
    try {
      context_.client().events(
          api::with_query("/v1/events",
                          {{"follow", "true"}, {"pod", pod_}, {"after", std::to_string(seen_)}}),
          [this](const nlohmann::json& event) {
            show(event);
            return true;
          },
          cancel_.get());
    } catch (const std::exception&) {
      // The call that this only accompanies meets the same failure and reports it.
    }
  });
}

EventProgress::~EventProgress() { finish(); }

void EventProgress::finish() {
  if (!thread_.joinable()) return;
  signal_event(cancel_);
  thread_.join();
  try {
    auto left = context_.client().get(
        api::with_query("/v1/events", {{"pod", pod_}, {"after", std::to_string(seen_)}}));
    for (auto& event : left) show(event);
  } catch (const std::exception&) {  // as above
  }
}

void EventProgress::show(const nlohmann::json& event) {
  seen_ = event.at("id");
  double seconds = static_cast<double>(event.at("time_us").get<std::int64_t>() - start_us_) / 1e6;
  bool color = context_.color(2);
  // "warming", "ready" of a replica speak for themselves; others name their object: "checkpoint
  // available".
  std::string what = event.at("type");
  std::string message = text_of(event.at("message"), "");
  if (what.starts_with("replica.")) what = what.substr(8);
  std::replace(what.begin(), what.end(), '.', ' ');
  print_error(fmt::format("{}{:>8.3f}s{}  {:<12}  {}{}{}", color ? "\033[2m" : "",
                          std::max(0.0, seconds), color ? "\033[0m" : "",
                          text_of(event.at("replica"), ""), what, message.empty() ? "" : ": ",
                          message));
}

std::int64_t newest_event(api::Client& client) {
  return client.get("/v1/version").at("last_event");
}

}  // namespace thaw::cli
