#include "pods/fields.h"

#include <arpa/inet.h>
#include <re2/re2.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>

#include "util/units.h"

namespace thaw::pods {
namespace {

using nlohmann::json;

constexpr double kMinCores = 0.01,
                 kMaxCores = 1024;  // less than 0.01 is below the kernel's smallest quota
constexpr std::uint64_t kMaxBytes = 1ull << 60;

bool matches(const std::string& text, std::string_view pattern) {
  return RE2::FullMatch(text, re2::StringPiece(pattern.data(), pattern.size()));
}

template <typename T>
std::optional<T> number(const std::string& text) {
  T value{};
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

// Levenshtein's, blind to case.
std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i);
    for (std::size_t j = 1; j <= b.size(); ++j) {
      std::size_t change = diagonal + (lower(a[i - 1]) != lower(b[j - 1]));
      diagonal = std::exchange(row[j], std::min({change, row[j] + 1, row[j - 1] + 1}));
    }
  }
  return row[b.size()];
}

// What the same thing is called in Docker Compose and Kubernetes.
constexpr std::pair<std::string_view, std::string_view> kForeignNames[] = {
    {"environment", "env"},
    {"volumes", "mounts"},
    {"volumeMounts", "mounts"},
    {"entrypoint", "command"},
    {"working_dir", "workdir"},
    {"workingDir", "workdir"},
    {"cpus", "cpu"},
    {"mem", "memory"},
    {"mem_limit", "memory"},
    {"src", "source"},
    {"hostPath", "source"},
    {"dst", "target"},
    {"destination", "target"},
    {"mountPath", "target"},
    {"ro", "readonly"},
    {"read_only", "readonly"},
    {"containerPort", "container"},
    {"hostPort", "host"},
    {"hostIP", "address"},
    {"httpGet", "http"},
    {"tcpSocket", "tcp"},
    {"condition", "when"},
    {"scale", "replicas"},
    {"gpus", "gpu"},
    {"terminationGracePeriodSeconds", "stop_grace"},
    {"stop_grace_period", "stop_grace"},
    {"container_name", "name"},
};

std::string nearest(const std::string& key, const std::vector<std::string>& known) {
  for (auto& [foreign, ours] : kForeignNames)
    if (key == foreign && std::find(known.begin(), known.end(), ours) != known.end())
      return std::string(ours);
  if (key.size() > 64) return {};
  std::string best;
  std::size_t limit = key.size() <= 3 ? 1 : key.size() <= 6 ? 2 : 3;
  for (auto& candidate : known) {
    std::size_t d = distance(key, candidate);
    // Of a short word more than half must be right, or everything would be near everything.
    if (d > limit || d * 2 >= std::max(key.size(), candidate.size()) + 1) continue;
    limit = d ? d - 1 : 0;
    best = candidate;
    if (!d) break;
  }
  return best;
}

std::string without_trailing_slash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

std::string absolute_path(const Place& at, const std::string& path) {
  std::filesystem::path result(path);
  if (result.is_relative()) {
    if (path.starts_with("~")) at.refuse("'~' is not expanded here", "write the whole path");
    if (at.reading.base_dir.empty())
      at.refuse(quote(path) + " is a relative path", "write an absolute one");
    result = std::filesystem::absolute(at.reading.base_dir) / result;
  }
  return without_trailing_slash(result.lexically_normal().string());
}

void refuse_nul(const Place& at, const std::string& text) {
  if (text.find('\0') != std::string::npos) at.refuse("it holds a NUL character", "leave it out");
}

}  // namespace

std::string Reading::locate(std::string path) const {
  int line = 0;
  for (std::string part = path; !line;) {
    auto found = lines.find(part);
    if (found != lines.end()) line = found->second;
    std::size_t cut = part.find_last_of(".[");
    if (part.empty() || line) break;
    part.resize(cut == std::string::npos ? 0 : cut);
  }
  std::string result = file;
  if (!file.empty() && line) result += ":" + std::to_string(line);
  if (!path.empty()) result += (result.empty() ? "" : ": ") + path;
  return result;
}

Place Place::child(const Node& item, const std::string& key) const {
  std::string name = quote(key);  // it may hold anything
  name = name.substr(1, name.size() - 2);
  std::string below = path.empty() ? name : path + "." + name;
  reading.lines[below] = item.line;
  return {reading, item, std::move(below)};
}

Place Place::element(std::size_t index) const {
  std::string below = path + "[" + std::to_string(index) + "]";
  reading.lines[below] = node.items[index].line;
  return {reading, node.items[index], std::move(below)};
}

void Place::refuse(std::string cause, std::string remedy) const {
  throw Error(Code::kInvalid, "read the pod specification", reading.locate(path), std::move(cause),
              std::move(remedy));
}

void Place::expect(Node::Kind kind, std::string_view wanted) const {
  if (node.kind == kind) return;
  std::string remedy = "write " + std::string(wanted);
  switch (node.kind) {
    case Node::Kind::kNull:
      refuse("it has no value", remedy + ", or leave the key out");
    case Node::Kind::kText:
      refuse(quote(node.text) + " is a single value", remedy);
    case Node::Kind::kList:
      refuse("it is a list", remedy);
    case Node::Kind::kMap:
      refuse("it is a mapping", remedy);
  }
}

const std::string& Place::text() const {
  expect(Node::Kind::kText, "a single value");
  refuse_nul(*this, node.text);
  return node.text;
}

const std::string& Place::bare(std::string_view wanted) const {
  expect(Node::Kind::kText, wanted);
  if (node.quoted)
    refuse(quote(node.text) + " in quotes is text",
           "write " + std::string(wanted) + " without quotes");
  return node.text;
}

void refuse_key(const Place& place, const std::string& key, const std::vector<std::string>& known) {
  std::string near = nearest(key, known);
  if (!near.empty()) place.refuse("unknown key " + quote(key), "did you mean '" + near + "'?");
  std::string list;
  for (auto& name : known) list += (list.empty() ? "" : ", ") + name;
  place.refuse("unknown key " + quote(key), "the keys here are " + list);
}

std::string Text::read(const Place& at) const {
  const std::string& text = at.text();
  if (text.empty() && !empty_allowed)
    at.refuse("it is empty", "give it a value, or leave the key out");
  if (!pattern.empty() && !matches(text, pattern))
    at.refuse(quote(text) + " is not " + std::string(rule));
  return text;
}

json Text::schema() const {
  json result = {{"type", "string"}};
  if (empty_allowed) result["type"] = json::array({"string", "number", "boolean"});
  if (!empty_allowed && pattern.empty()) result["minLength"] = 1;
  if (!pattern.empty()) result["type"] = json::array({"string", "integer"});  // as user: 1000
  if (!pattern.empty()) result["pattern"] = "^(?:" + std::string(pattern) + ")$";
  return result;
}

bool Flag::read(const Place& at) const {
  const std::string& text = at.bare("true or false");
  if (text == "true") return true;
  if (text == "false") return false;
  at.refuse(quote(text) + " is neither true nor false", "write true or false");
}

std::int64_t read_integer(const Place& at, std::int64_t min, std::int64_t max) {
  std::string range = "a whole number from " + std::to_string(min) + " to " + std::to_string(max);
  const std::string& text = at.bare(range);
  auto value = number<std::int64_t>(text);
  if (!value) at.refuse(quote(text) + " is not a whole number", "write " + range);
  if (*value < min || *value > max) at.refuse(text + " is out of range", "write " + range);
  return *value;
}

double Cores::read(const Place& at) const {
  constexpr const char* remedy =
      "write cores, such as 1.5 or 500m, from 0.01 to 1024, or 0 for no limit";
  std::string text = at.text();
  bool thousandths = text.ends_with('m');
  if (thousandths) text.pop_back();
  auto value = number<double>(text);
  if (!value || !std::isfinite(*value))
    at.refuse(quote(at.text()) + " is not a number of cores", remedy);
  double cores = thousandths ? *value / 1000 : *value;
  if (cores != 0 && (cores < kMinCores || cores > kMaxCores))
    at.refuse(at.text() + " is out of range", remedy);
  return cores + 0.0;  // no negative zero
}

json Cores::schema() const {
  return {{"anyOf",
           {{{"type", "number"}, {"minimum", 0}, {"maximum", kMaxCores}},
            {{"type", "string"}, {"pattern", "^[0-9.]+m?$"}}}}};
}

std::uint64_t Bytes::read(const Place& at) const {
  const std::string& text = at.text();
  std::string least =
      min % (1 << 20) ? std::to_string(min) + " bytes" : std::to_string(min >> 20) + "MiB";
  std::string remedy =
      "write a size such as 512MiB or 2GiB, at least " + least + ", or 0 for no limit";
  // Whole numbers of bytes are exact; units go through a double.
  auto value = number<std::uint64_t>(text);
  if (!value) value = parse_bytes(text);
  if (!value) at.refuse(quote(text) + " is not a size", remedy);
  if (*value && (*value < min || *value > kMaxBytes)) at.refuse(text + " is out of range", remedy);
  return *value;
}

json Bytes::schema() const {
  return {{"anyOf",
           {{{"type", "integer"}, {"minimum", 0}, {"maximum", kMaxBytes}},
            {{"type", "string"}, {"pattern", "^[0-9.]+ ?([kKMGT]i?B?|B)?$"}}}}};
}

std::int64_t Duration::read(const Place& at) const {
  const std::string& text = at.text();
  std::string remedy = "write a duration such as 500ms, 10s or 1m30s, from " +
                       format_duration(min_us) + " to " + format_duration(max_us);
  auto value = parse_duration_us(text);
  if (!value) at.refuse(quote(text) + " is not a duration", remedy);
  if (*value < min_us || *value > max_us) at.refuse(text + " is out of range", remedy);
  return *value;
}

json Duration::write(std::int64_t value) const { return format_duration(value); }

json Duration::schema() const {
  return {{"anyOf",
           {{{"type", "number"}, {"minimum", 0}},
            {{"type", "string"},
             {"pattern", "^[0-9.]+((d|h|m|s|ms|us)([0-9.]+(d|h|m|s|ms|us))*)?$"}}}}};
}

std::string HostPath::read(const Place& at) const {
  const std::string& text = at.text();
  if (text.empty()) at.refuse("it is empty", "write a path");
  return absolute_path(at, text);
}

std::string InnerPath::read(const Place& at) const {
  const std::string& text = at.text();
  std::filesystem::path path(text);
  bool climbs = std::find(path.begin(), path.end(), "..") != path.end();
  if (!text.starts_with('/') || climbs)
    at.refuse(quote(text) + " is not an absolute path without '..'",
              "write the path as the container sees it, from /");
  std::string result = without_trailing_slash(path.lexically_normal().string());
  return result.starts_with("//") ? result.substr(1) : result;
}

std::string ImageReference::read(const Place& at) const {
  static constexpr std::string_view kLocal[] = {"oci:", "dir:", "oci-archive:", "docker-archive:"};
  const std::string& text = at.text();
  if (!matches(text, "[^\\s\\x00-\\x1f]+"))
    at.refuse(quote(text) + " is not an image reference",
              "write one such as docker://python:3.12 or oci:./images/app:1");
  for (std::string_view transport : kLocal) {
    if (!text.starts_with(transport)) continue;
    std::string path = text.substr(transport.size()), rest;
    if (transport != "dir:")  // what follows the path is the image's name within it
      if (std::size_t colon = path.find(':'); colon != std::string::npos) {
        rest = path.substr(colon);
        path.resize(colon);
      }
    if (path.empty())
      at.refuse(quote(text) + " names no path", "write one, such as oci:./images/app:1");
    return std::string(transport) + absolute_path(at, path) + rest;
  }
  return text;
}

std::string IpAddress::read(const Place& at) const {
  const std::string& text = at.text();
  unsigned char address[sizeof(in6_addr)];
  if (::inet_pton(AF_INET, text.c_str(), address) == 1 ||
      ::inet_pton(AF_INET6, text.c_str(), address) == 1)
    return text;
  at.refuse(quote(text) + " is not an IP address", "write one such as 127.0.0.1, 0.0.0.0 or ::1");
}

std::string RegularExpression::read(const Place& at) const {
  const std::string& text = at.text();
  if (text.empty())
    at.refuse("the regular expression is empty, so that everything would match", "write one");
  RE2 expression(text, RE2::Quiet);
  if (!expression.ok())
    at.refuse(quote(text) + " is not a regular expression: " + expression.error(),
              "write one in RE2's syntax");
  return text;
}

std::map<std::string, std::string> Variables::read(const Place& at) const {
  at.expect(Node::Kind::kMap, "a mapping of names to values, such as {MODE: fast}");
  std::map<std::string, std::string> result;
  for (auto& item : at.node.items) {
    Place place = at.child(item, item.key);
    if (!matches(item.key, "[-._a-zA-Z][-._a-zA-Z0-9]*"))
      place.refuse(quote(item.key) + " is not a variable's name",
                   "use letters, digits, '_', '-' and '.', and no digit at the front");
    if (item.kind == Node::Kind::kNull)
      place.refuse("it has no value", "write \"\" for an empty one");
    result[item.key] = place.text();
  }
  return result;
}

json Variables::schema() const {
  return {{"type", "object"},
          {"propertyNames", {{"pattern", "^[-._a-zA-Z][-._a-zA-Z0-9]*$"}}},
          {"additionalProperties", {{"type", {"string", "number", "boolean"}}}}};
}

}  // namespace thaw::pods
