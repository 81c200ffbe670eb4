// A YAML or JSON text as a plain tree in which every value knows its line. Bounded: 1 MiB of text,
// 32 levels, 100,000 values.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

namespace thaw::pods {

struct Node {
  enum class Kind { kNull, kText, kList, kMap };
  Kind kind = Kind::kNull;
  std::string text;     // kText: as written
  bool quoted = false;  // kText: it was in quotes, so it is text even when it looks like a number
  std::vector<Node> items;  // kList, kMap
  std::string key;          // inside a map; no two of one map are equal
  int line = 0;  // from 1: of the key in a map, else of the value; 0: not read from a text

  const Node* find(std::string_view name) const;  // in a map
  static Node map(std::vector<Node> items);
  static Node list(std::vector<std::string> texts);
  static Node value(std::string text, bool quoted = true);
  Node named(std::string name) &&;
};

// Exactly one document. kInvalid with `file:line` for what is not well-formed, for duplicate keys
// and for what exceeds the bounds.
Node parse_document(std::string_view text, const std::string& file);
Node document_of(const nlohmann::json& json);

// For messages: in quotes, cut to 100 bytes, control characters as '?'.
std::string quote(std::string_view text);

}  // namespace thaw::pods
