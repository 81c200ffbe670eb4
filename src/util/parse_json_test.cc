#include "util/parse_json.h"

#include <gtest/gtest.h>

#include "util/error.h"

namespace thaw {
namespace {

std::string nested(std::size_t levels) {
  return std::string(levels, '[') + std::string(levels, ']');
}

TEST(ParseJson, RefusesWhatWouldHarmItsReader) {
  EXPECT_EQ(parse_json(R"({"a": [1, 2.5]})", "x")["a"][1], 2.5);
  EXPECT_EQ(parse_json(R"({"a": -1})", "x", Fractions::kRefused)["a"], -1);
  EXPECT_NO_THROW(parse_json(nested(64), "x"));
  for (const std::string& text : {nested(65), nested(500'000), std::string(500'000, '['),
                                  std::string("{"), std::string(), std::string("\xff")}) {
    try {
      parse_json(text, "the thing");
      ADD_FAILURE() << "accepted: " << text.substr(0, 80);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kCorrupt);
      EXPECT_EQ(error.object(), "the thing");
    }
  }
  for (const char* text : {R"({"size": 6.2e21})", "[1.5]", "[18446744073709551616]"})
    EXPECT_THROW(parse_json(text, "x", Fractions::kRefused), Error) << text;
}

}  // namespace
}  // namespace thaw
