// Numbers with units as users write them: 2GiB, 500m, 10m, 1.5s.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace thaw {

// "512" (bytes), "64KiB", "1.5GiB", "200MB" (decimal), Kubernetes' "2Gi" and "500M". nullopt when
// it is not a size.
std::optional<std::uint64_t> parse_bytes(std::string_view text);
// "500ms", "5s", "10m", "1h30m", "2d"; a bare number is seconds. Result in microseconds. nullopt
// when it is not a duration.
std::optional<std::int64_t> parse_duration_us(std::string_view text);
// 90000000 -> "1m30s"; the shortest text that parses back to the same value.
std::string format_duration(std::int64_t microseconds);

}  // namespace thaw
