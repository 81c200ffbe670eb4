// Shows a pod's events on stderr while a call to the daemon lasts.
#pragma once

#include <string>
#include <thread>

#include "cli/context.h"

namespace thaw::cli {

class EventProgress {
 public:
  // Events of `pod` after `after`, when stderr is a terminal; nothing otherwise. Shows in its own
  // thread until finish().
  EventProgress(const Context& context, std::string pod, std::int64_t after);
  ~EventProgress();
  // Shows what is left. Called by the destructor.
  void finish();

 private:
  void show(const nlohmann::json& event);

  const Context& context_;
  std::string pod_;
  std::int64_t seen_, start_us_ = 0;
  Fd cancel_;
  std::thread thread_;
};

// To be shown: what happens after now.
std::int64_t newest_event(api::Client& client);

}  // namespace thaw::cli
