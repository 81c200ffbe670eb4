// What every verb needs: how to reach the daemon, and how to speak to people and programs.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "api/client.h"
#include "util/error.h"

namespace thaw::cli {

// Exit codes that scripts can rely on; listed in thaw(1).
enum ExitCode {
  kOk = 0,
  kFailed = 1,
  kUsage = 2,
  kNoDaemon = 3,
  kNotFound = 4,
  kConflict = 5,
  kTimeout = 6,
  kInterrupted = 130
};
int exit_code_of(const Error& error);

class Context {
 public:
  std::string host;  // --host; empty: THAW_HOST, then the default socket

  api::Client client() const;
  bool progress() const;     // stderr is a terminal
  bool color(int fd) const;  // a terminal, and NO_COLOR is not set
};

inline constexpr const char* kDefaultHost = "unix:/var/lib/thaw/thaw.sock";

// To stdout. A closed stdout ends the program as SIGPIPE does.
void print(std::string_view text);
void print_line(std::string_view text);
void print_json(const nlohmann::json& value);
void print_error(std::string_view text);  // to stderr, with a newline

// A table for people: header, rows; columns as wide as needed, the last one cut at the terminal's
// edge.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : rows_{std::move(header)} {}
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  std::string text(std::size_t width = 0, bool color = false) const;  // width 0: no limit
  void print(const Context& context) const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

// --json: the array as it came; -q: one key of each; else a table.
struct Listing {
  bool json = false, quiet = false;
};

// Small texts for tables.
std::string age(std::int64_t since_us, std::int64_t now_us);  // "5s", "3m", "2h", "4d"; "-" for 0
std::string span(std::int64_t us);                            // "850us", "12.3ms", "1.24s", "2m05s"
std::string text_of(const nlohmann::json& value,
                    const char* fallback = "-");  // null and "" become the fallback

// Numbers and durations from the command line; kInvalid names the option.
std::int64_t number(const std::string& text, const std::string& option, std::int64_t low,
                    std::int64_t high);
std::int64_t duration_us(const std::string& text, const std::string& option);
std::uint64_t size_bytes(const std::string& text, const std::string& option);
std::string absolute_path(const std::string& path);

}  // namespace thaw::cli
