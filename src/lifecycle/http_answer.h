// What a probe reads of an HTTP server in a container, which may say anything.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace thaw::lifecycle {

inline constexpr std::size_t kAnswerLimit = 64 << 10;  // more of an answer is not read

// Where the answer ends: after the header, or after the body where its length is told; nullopt
// while the header is incomplete or the end is told by closing.
std::optional<std::size_t> answer_size(const std::string& answer);
// 200 of "HTTP/1.1 200 OK"; nullopt when it is no status line.
std::optional<int> status_of(std::string_view answer);

}  // namespace thaw::lifecycle
