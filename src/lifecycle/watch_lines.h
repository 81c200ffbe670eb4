// Lines of a container's log and of its notify file, of which a container makes up the text.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace thaw::lifecycle {

// Joins what the log's writer cut: parts marked P belong to the next F of the same stream.
class LogText {
 public:
  // The finished text that this line ends; nullopt when it is only a part.
  std::optional<std::string> add(std::string_view line);

 private:
  std::string out_, err_;
};

// One line of the notify file: "<pid> <JSON string>".
struct Datagram {
  int pid = 0;
  std::string text;

  static std::optional<Datagram> parse(std::string_view line);
  // The value of KEY=VALUE, one a line, as in sd_notify(3).
  std::optional<std::string> get(std::string_view key) const;
};

}  // namespace thaw::lifecycle
