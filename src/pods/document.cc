#include "pods/document.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <istream>
#include <map>
#include <optional>
#include <set>
#include <streambuf>

#include "util/error.h"

namespace thaw::pods {
namespace {

using nlohmann::json;

constexpr std::size_t kTextLimit = 1 << 20;
constexpr std::size_t kDepthLimit = 32;
constexpr std::size_t kNodeLimit = 100'000;
constexpr std::size_t kExpandedLimit = 4 * kTextLimit;  // bytes of all texts, aliases expanded

[[noreturn]] void refuse(const std::string& file, int line, std::string cause,
                         std::string remedy = {}) {
  throw Error(Code::kInvalid, "read the pod specification",
              line > 0 ? file + ":" + std::to_string(line) : file, std::move(cause),
              std::move(remedy));
}

// Builds the tree from yaml-cpp's events instead of from its nodes, which silently keep both of two
// equal keys, and check the bounds while the text is read.
class Builder : public YAML::EventHandler {
 public:
  explicit Builder(const std::string& file) : file_(file) {}

  Node take() { return std::move(root_); }
  bool empty() const { return !complete_; }

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    Node node;
    node.line = mark.line + 1;
    add(std::move(node), anchor);
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    auto found = anchors_.find(anchor);
    if (found == anchors_.end())
      refuse(file_, mark.line + 1, "the alias stands inside the value that it names",
             "write the value out");
    Node node = copy(found->second, open_.size(), mark.line + 1);
    node.line = mark.line + 1;
    add(std::move(node), 0);
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    bool text_tag = tag == "tag:yaml.org,2002:str";
    if (!text_tag) check_tag(tag, mark);
    Node node = Node::value(value, text_tag || tag == "!");
    node.line = mark.line + 1;
    add(std::move(node), anchor);
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(Node::Kind::kList, mark, tag, anchor);
  }
  void OnSequenceEnd() override { close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(Node::Kind::kMap, mark, tag, anchor);
  }
  void OnMapEnd() override { close(); }

 private:
  struct Open {
    Node node;
    YAML::anchor_t anchor = 0;
    std::set<std::string> keys;
    std::optional<std::string> key;  // read, its value not yet
    int key_line = 0;
  };

  void check_tag(const std::string& tag, const YAML::Mark& mark) const {
    if (!tag.empty() && tag != "?" && tag != "!")
      refuse(file_, mark.line + 1, "the tag " + quote(tag) + " has no meaning here",
             "leave it out");
  }

  void open(Node::Kind kind, const YAML::Mark& mark, const std::string& tag,
            YAML::anchor_t anchor) {
    check_tag(tag, mark);
    if (expects_key()) refuse(file_, mark.line + 1, "a key must be plain text");
    if (open_.size() >= kDepthLimit) refuse(file_, mark.line + 1, too_deep());
    Open level;
    level.node.kind = kind;
    level.node.line = mark.line + 1;
    level.anchor = anchor;
    open_.push_back(std::move(level));
  }

  void close() {
    Open level = std::move(open_.back());
    open_.pop_back();
    add(std::move(level.node), level.anchor);
  }

  bool expects_key() const {
    return !open_.empty() && open_.back().node.kind == Node::Kind::kMap && !open_.back().key;
  }

  void add(Node node, YAML::anchor_t anchor) {
    count(node, node.line);
    if (anchor) anchors_[anchor] = copy(node, 0, node.line);
    if (open_.empty()) {
      root_ = std::move(node);
      complete_ = true;
      return;
    }
    Open& parent = open_.back();
    if (parent.node.kind == Node::Kind::kMap) {
      if (!parent.key) {
        if (node.kind != Node::Kind::kText) refuse(file_, node.line, "a key must be plain text");
        if (!parent.keys.insert(node.text).second)
          refuse(file_, node.line, "the key " + quote(node.text) + " is there twice",
                 "keep one of the two");
        parent.key = std::move(node.text);
        parent.key_line = node.line;
        return;
      }
      node.key = *std::exchange(parent.key, std::nullopt);
      node.line = parent.key_line;
    }
    parent.node.items.push_back(std::move(node));
  }

  void count(const Node& node, int line) {
    bytes_ += node.text.size();
    if (++nodes_ > kNodeLimit)
      refuse(file_, line,
             "it has more than " + std::to_string(kNodeLimit) +
                 " values, aliases counted as often as they are used");
    if (bytes_ > kExpandedLimit)
      refuse(file_, line, "it is larger than 4 MiB with its aliases expanded");
  }

  // Counts what it copies, so that aliases of aliases cannot grow without bound.
  Node copy(const Node& node, std::size_t depth, int line) {
    if (depth > kDepthLimit) refuse(file_, line, too_deep());
    count(node, line);
    Node result;
    result.kind = node.kind;
    result.text = node.text;
    result.quoted = node.quoted;
    result.key = node.key;
    result.line = node.line;
    for (auto& item : node.items) result.items.push_back(copy(item, depth + 1, line));
    return result;
  }

  static std::string too_deep() {
    return "it is nested more than " + std::to_string(kDepthLimit) + " levels deep";
  }

  const std::string& file_;
  std::vector<Open> open_;
  std::map<YAML::anchor_t, Node> anchors_;
  Node root_;
  bool complete_ = false;
  std::size_t nodes_ = 0, bytes_ = 0;
};

// Reads the text where it lies.
struct ViewBuffer : std::streambuf {
  explicit ViewBuffer(std::string_view text) {
    char* begin = const_cast<char*>(text.data());
    setg(begin, begin, begin + text.size());
  }
};

Node of_json(const json& value, std::size_t depth) {
  if (depth > kDepthLimit)
    refuse("JSON", 0, "it is nested more than " + std::to_string(kDepthLimit) + " levels deep");
  switch (value.type()) {
    case json::value_t::object: {
      Node node = Node::map({});
      for (auto& [key, item] : value.items())
        node.items.push_back(of_json(item, depth + 1).named(key));
      return node;
    }
    case json::value_t::array: {
      Node node = Node::list({});
      for (auto& item : value) node.items.push_back(of_json(item, depth + 1));
      return node;
    }
    case json::value_t::string:
      return Node::value(value.get<std::string>());
    case json::value_t::null:
    case json::value_t::discarded:
      return {};
    default:
      return Node::value(value.dump(), false);
  }
}

bool looks_like_json(std::string_view text) {
  std::size_t begin = text.find_first_not_of(" \t\r\n");
  return begin != std::string_view::npos && text[begin] == '{';
}

// For JSON that yaml-cpp does not take, such as characters beyond the basic plane written as two \u
// escapes. Without lines.
std::optional<Node> parse_json(std::string_view text, const std::string& file) {
  std::vector<std::set<std::string>> keys;
  auto on_event = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > static_cast<int>(kDepthLimit))
      refuse(file, 0, "it is nested more than 32 levels deep");
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second)
      refuse(file, 0, "the key " + quote(value.get<std::string>()) + " is there twice",
             "keep one of the two");
    return true;
  };
  json document = json::parse(text, on_event, false);
  if (document.is_discarded()) return std::nullopt;
  return document_of(document);
}

Node parse_yaml(std::string_view text, const std::string& file) {
  ViewBuffer buffer(text);
  std::istream stream(&buffer);
  try {
    YAML::Parser parser(stream);
    Builder builder(file);
    if (!parser.HandleNextDocument(builder) || builder.empty()) refuse(file, 0, "it is empty");
    Builder second(file);
    if (parser.HandleNextDocument(second) && second.take().kind != Node::Kind::kNull)
      refuse(file, 0, "it holds more than one document", "keep each pod in a file of its own");
    return builder.take();
  } catch (const YAML::Exception& error) {
    if (looks_like_json(text))
      if (auto node = parse_json(text, file)) return *std::move(node);
    refuse(file, error.mark.is_null() ? 0 : error.mark.line + 1,
           "it is not well-formed YAML or JSON: " + error.msg,
           text.find("\n\t") == std::string_view::npos
               ? ""
               : "indent with spaces: YAML takes no tabs there");
  }
}

}  // namespace

std::string quote(std::string_view text) {
  constexpr std::size_t kShown = 100;
  std::size_t size = std::min(text.size(), kShown);
  while (size < text.size() && size && (static_cast<unsigned char>(text[size]) & 0xc0) == 0x80)
    --size;  // not within a character
  std::string result = "'";
  for (char c : text.substr(0, size))
    result += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
  return result + (size < text.size() ? "…'" : "'");
}

const Node* Node::find(std::string_view name) const {
  for (auto& item : items)
    if (item.key == name) return &item;
  return nullptr;
}

Node Node::map(std::vector<Node> items) {
  Node node;
  node.kind = Kind::kMap;
  node.items = std::move(items);
  return node;
}

Node Node::list(std::vector<std::string> texts) {
  Node node;
  node.kind = Kind::kList;
  for (auto& text : texts) node.items.push_back(value(std::move(text)));
  return node;
}

Node Node::value(std::string text, bool quoted) {
  Node node;
  node.kind = Kind::kText;
  node.text = std::move(text);
  node.quoted = quoted;
  return node;
}

Node Node::named(std::string name) && {
  key = std::move(name);
  return std::move(*this);
}

Node document_of(const json& value) { return of_json(value, 0); }

Node parse_document(std::string_view text, const std::string& file) {
  if (text.size() > kTextLimit) refuse(file, 0, "it is larger than 1 MiB");
  // yaml-cpp would replace bytes that are not UTF-8, and stop at a NUL.
  if (text.find('\0') != std::string_view::npos)
    refuse(file, 0, "it holds a NUL byte", "save it as UTF-8 text");
  try {
    json(std::string(text)).dump();
  } catch (const json::exception&) {
    refuse(file, 0, "it is not UTF-8 text", "save it as UTF-8");
  }
  return parse_yaml(text, file);
}

}  // namespace thaw::pods
