// How a mapping of the pod specification is described once, as a table of fields, and read, written
// and turned into JSON Schema from that table. A value type is a small struct with
//   V read(const Place&) const;  nlohmann::json write(const V&) const;  nlohmann::json schema()
//   const;
// where write returns null for what is to be left out.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "pods/document.h"
#include "util/error.h"

namespace thaw::pods {

// What reading one specification needs to know and learns on the way.
struct Reading {
  std::string file;                // for messages
  std::string base_dir;            // for relative paths; empty: there must be none
  std::uint16_t default_port = 0;  // of http and tcp conditions; 0: none
  int condition_depth = 0;
  std::map<std::string, int> lines;  // of every path that was read

  // `file:line: path`. A path that was not read has the line of what would contain it.
  std::string locate(std::string path) const;
};

// A value and where it stands.
struct Place {
  Reading& reading;
  const Node& node;
  std::string path;  // such as ports[1].host

  Place child(const Node& item, const std::string& key) const;
  Place element(std::size_t index) const;
  [[noreturn]] void refuse(std::string cause, std::string remedy = {}) const;
  const std::string& text() const;  // of a scalar
  // Of a scalar that is not in quotes.
  const std::string& bare(std::string_view wanted) const;
  void expect(Node::Kind kind, std::string_view wanted) const;
};

// --- value types
// ----------------------------------------------------------------------------------------------------

struct Text {
  std::string_view pattern = {};  // RE2, of the whole text
  std::string_view rule = {};     // the pattern in words
  bool empty_allowed = false;
  std::string read(const Place& at) const;
  nlohmann::json write(const std::string& value) const {
    return value.empty() && !empty_allowed ? nlohmann::json() : nlohmann::json(value);
  }
  nlohmann::json schema() const;
};

struct Flag {
  bool read(const Place& at) const;
  nlohmann::json write(bool value) const { return value; }
  nlohmann::json schema() const { return {{"type", "boolean"}}; }
};

std::int64_t read_integer(const Place& at, std::int64_t min, std::int64_t max);

template <typename T>
struct Integer {
  std::int64_t min, max;
  T read(const Place& at) const { return static_cast<T>(read_integer(at, min, max)); }
  nlohmann::json write(T value) const { return value; }
  nlohmann::json schema() const {
    return {{"type", "integer"}, {"minimum", min}, {"maximum", max}};
  }
};

struct Cores {  // 1.5 or 500m
  double read(const Place& at) const;
  nlohmann::json write(double value) const { return value; }
  nlohmann::json schema() const;
};

struct Bytes {  // 0 or at least min
  std::uint64_t min;
  std::uint64_t read(const Place& at) const;
  nlohmann::json write(std::uint64_t value) const { return value; }
  nlohmann::json schema() const;
};

struct Duration {
  std::int64_t min_us, max_us;
  std::int64_t read(const Place& at) const;
  nlohmann::json write(std::int64_t value) const;
  nlohmann::json schema() const;
};

struct HostPath {  // relative ones are taken from the base folder
  std::string read(const Place& at) const;
  nlohmann::json write(const std::string& value) const {
    return value.empty() ? nlohmann::json() : nlohmann::json(value);
  }
  nlohmann::json schema() const { return {{"type", "string"}, {"minLength", 1}}; }
};

struct InnerPath {  // absolute, without . and ..
  std::string read(const Place& at) const;
  nlohmann::json write(const std::string& value) const {
    return value.empty() ? nlohmann::json() : nlohmann::json(value);
  }
  nlohmann::json schema() const { return {{"type", "string"}, {"pattern", "^/"}}; }
};

struct ImageReference {  // the path of a local transport is taken from the base folder
  std::string read(const Place& at) const;
  nlohmann::json write(const std::string& value) const {
    return value.empty() ? nlohmann::json() : nlohmann::json(value);
  }
  nlohmann::json schema() const { return {{"type", "string"}, {"minLength", 1}}; }
};

struct IpAddress {
  std::string read(const Place& at) const;
  nlohmann::json write(const std::string& value) const { return value; }
  nlohmann::json schema() const {
    return {{"type", "string"}, {"anyOf", {{{"format", "ipv4"}}, {{"format", "ipv6"}}}}};
  }
};

struct RegularExpression {
  std::string read(const Place& at) const;
  nlohmann::json write(const std::string& value) const { return value; }
  nlohmann::json schema() const { return {{"type", "string"}, {"minLength", 1}}; }
};

struct Variables {  // a map of text to text; numbers and booleans are taken as written
  std::map<std::string, std::string> read(const Place& at) const;
  nlohmann::json write(const std::map<std::string, std::string>& value) const {
    return value.empty() ? nlohmann::json::object() : nlohmann::json(value);
  }
  nlohmann::json schema() const;
};

template <typename E>
struct Choice {
  std::vector<std::pair<std::string, E>> values;
  E read(const Place& at) const {
    std::string allowed;
    for (auto& [name, value] : values) {
      if (at.text() == name) return value;
      allowed += (allowed.empty() ? "" : " or ") + name;
    }
    at.refuse(quote(at.text()) + " is not known here", "write " + allowed);
  }
  nlohmann::json write(E value) const {
    for (auto& [name, candidate] : values)
      if (candidate == value) return name;
    throw Error(Code::kInternal, "write the pod specification", "", "a value has no name");
  }
  nlohmann::json schema() const {
    nlohmann::json names = nlohmann::json::array();
    for (auto& [name, value] : values) names.push_back(name);
    return {{"enum", names}};
  }
};

// Its default is not written: what few pods have does not stand in all of them.
template <typename E>
struct RareChoice : Choice<E> {
  E usual;
  nlohmann::json write(E value) const {
    return value == usual ? nlohmann::json() : Choice<E>::write(value);
  }
  nlohmann::json schema() const {
    nlohmann::json result = Choice<E>::schema();
    result["default"] = Choice<E>::write(usual);
    return result;
  }
};

// Left out when it is not given, or false.
struct OptionalDuration : Duration {
  std::optional<std::int64_t> read(const Place& at) const { return Duration::read(at); }
  nlohmann::json write(const std::optional<std::int64_t>& value) const {
    return value ? Duration::write(*value) : nlohmann::json();
  }
};

struct RareFlag : Flag {
  nlohmann::json write(bool value) const { return value ? nlohmann::json(true) : nlohmann::json(); }
  nlohmann::json schema() const { return {{"type", "boolean"}, {"default", false}}; }
};

template <typename Inner>
struct ListOf {
  Inner inner;
  std::size_t min = 0, max = 10'000;
  auto read(const Place& at) const {
    at.expect(Node::Kind::kList, "a list, such as [a, b]");
    std::size_t count = at.node.items.size();
    if (count < min || count > max)
      at.refuse("the list has " + std::to_string(count) + " entries",
                "give it " + std::to_string(min) + " to " + std::to_string(max));
    std::vector<decltype(inner.read(at))> result;
    for (std::size_t i = 0; i < count; ++i) result.push_back(inner.read(at.element(i)));
    return result;
  }
  template <typename V>
  nlohmann::json write(const std::vector<V>& value) const {
    nlohmann::json list = nlohmann::json::array();
    for (auto& item : value) list.push_back(inner.write(item));
    return list;
  }
  nlohmann::json schema() const {
    nlohmann::json result = {{"type", "array"}, {"items", inner.schema()}};
    if (min) result["minItems"] = min;
    return result;
  }
};

template <typename Inner>
struct RareList : ListOf<Inner> {
  template <typename V>
  nlohmann::json write(const std::vector<V>& value) const {
    return value.empty() ? nlohmann::json() : ListOf<Inner>::write(value);
  }
};

// --- tables
// ---------------------------------------------------------------------------------------------------------

template <typename T>
struct Field {
  std::string key;
  std::string about;  // one sentence, for the JSON Schema
  bool required;
  std::function<void(const Place&, T&)> read;
  std::function<nlohmann::json(const T&)> write;
  std::function<nlohmann::json()> schema;
};

enum Presence { kOptional, kRequired };

template <typename T, typename V, typename Type>
Field<T> field(std::string key, V T::*member, Type type, std::string about,
               Presence presence = kOptional) {
  return {std::move(key),
          std::move(about),
          presence == kRequired,
          [=](const Place& at, T& object) { object.*member = type.read(at); },
          [=](const T& object) { return type.write(object.*member); },
          [=] { return type.schema(); }};
}

// Refuses the unknown key at `place`, naming the nearest of `known`, or all.
[[noreturn]] void refuse_key(const Place& place, const std::string& key,
                             const std::vector<std::string>& known);

template <typename T>
struct Object {
  const std::vector<Field<T>>& (*fields)();

  T read(const Place& at) const {
    T object;
    read_into(at, object);
    return object;
  }

  // In the order of the table, not of the text: a field may need what stands before it.
  void read_into(const Place& at, T& object) const {
    at.expect(Node::Kind::kMap, "a mapping of keys to values");
    std::vector<std::string> known;
    for (auto& field : fields()) known.push_back(field.key);
    for (auto& item : at.node.items)
      if (std::find(known.begin(), known.end(), item.key) == known.end())
        refuse_key(at.child(item, item.key), item.key, known);
    for (auto& field : fields()) {
      if (const Node* item = at.node.find(field.key)) {
        field.read(at.child(*item, field.key), object);
      } else if (field.required) {
        at.refuse("the key '" + field.key + "' is missing", "add it");
      }
    }
  }

  nlohmann::json write(const T& object) const {
    nlohmann::json result = nlohmann::json::object();
    for (auto& field : fields())
      if (nlohmann::json value = field.write(object); !value.is_null())
        result[field.key] = std::move(value);
    return result;
  }

  nlohmann::json schema() const {
    const nlohmann::json defaults = write(T{});
    nlohmann::json properties = nlohmann::json::object(), required = nlohmann::json::array();
    for (auto& field : fields()) {
      nlohmann::json& property = properties[field.key] = field.schema();
      property["description"] = field.about;
      if (field.required) {
        required.push_back(field.key);
      } else if (auto value = defaults.find(field.key);
                 value != defaults.end() && value->is_primitive()) {
        property["default"] = *value;
      }
    }
    nlohmann::json result = {
        {"type", "object"}, {"additionalProperties", false}, {"properties", properties}};
    if (!required.empty()) result["required"] = required;
    return result;
  }
};

}  // namespace thaw::pods
