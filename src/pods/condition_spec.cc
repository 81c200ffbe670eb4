#include "pods/condition_spec.h"

#include "pods/spec.h"
#include "util/units.h"

namespace thaw::pods {
namespace {

using nlohmann::json;
using state::Condition;

constexpr int kDepthLimit = 8;
constexpr std::int64_t kDay = 86'400'000'000;
constexpr char kPythonPattern[] =
    "[A-Za-z_][A-Za-z0-9_]*(\\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*(\\.[A-Za-z_][A-Za-"
    "z0-9_]*)*";
constexpr char kForms[] =
    "write http:/health, http:8000/health, tcp, tcp:8000, file:/path, log:REGEX, "
    "python:MODULE:FUNCTION, exec:COMMAND, notify, "
    "workers:N, after:5s, or the long form as JSON, such as {\"http\": {\"port\": 8000}}";

const std::vector<Field<Condition>>& http_fields() {
  static const std::vector<Field<Condition>> fields = {
      field("port", &Condition::port, Integer<std::uint16_t>{1, 65535},
            "Port in the container; the first of `ports` when absent."),
      field("path", &Condition::path,
            Text{"/[^\\s\\x00-\\x1f]*", "a path that starts with / and has no spaces"},
            "Path, with a query if need be; / when absent."),
      field("status", &Condition::status, Integer<int>{100, 599},
            "The status that the answer must have."),
  };
  return fields;
}

const std::vector<Field<Condition>>& tcp_fields() {
  static const std::vector<Field<Condition>> fields = {http_fields()[0]};
  return fields;
}

void take_default_port(const Place& at, Condition& condition) {
  if (condition.port) return;
  condition.port = at.reading.default_port;
  if (!condition.port)
    at.refuse("it names no port, and the pod has no ports", "add a port, or give the pod ports");
}

struct Http {
  void read(const Place& at, Condition& condition) const {
    condition.path = "/";
    Object<Condition>{http_fields}.read_into(at, condition);
    take_default_port(at, condition);
  }
  json write(const Condition& condition) const {
    return Object<Condition>{http_fields}.write(condition);
  }
  json schema() const {
    json result = Object<Condition>{http_fields}.schema();
    result["properties"]["port"].erase("default");
    result["properties"]["path"]["default"] = "/";
    return result;
  }
};

struct Tcp {  // {port: 8000} or 8000
  void read(const Place& at, Condition& condition) const {
    if (at.node.kind == Node::Kind::kText) {
      condition.port = Integer<std::uint16_t>{1, 65535}.read(at);
    } else {
      Object<Condition>{tcp_fields}.read_into(at, condition);
      take_default_port(at, condition);
    }
  }
  json write(const Condition& condition) const {
    return Object<Condition>{tcp_fields}.write(condition);
  }
  json schema() const {
    json object = Object<Condition>{tcp_fields}.schema();
    object["properties"]["port"].erase("default");
    return {{"anyOf", {object, Integer<std::uint16_t>{1, 65535}.schema()}}};
  }
};

struct Notify {
  void read(const Place& at, Condition&) const {
    if (!Flag{}.read(at)) at.refuse("false would never hold", "write notify: true");
  }
  json write(const Condition&) const { return true; }
  json schema() const { return {{"const", true}}; }
};

// One form: its key, its kind, and how its value is read and written.
struct Form {
  std::string key;
  Condition::Kind kind;
  std::string about;
  std::function<void(const Place&, Condition&)> read;
  std::function<json(const Condition&)> write;
  std::function<json()> schema;
};

template <typename Type>
Form form(std::string key, Condition::Kind kind, Type type, std::string about) {
  return {std::move(key),
          kind,
          std::move(about),
          [=](const Place& at, Condition& condition) { type.read(at, condition); },
          [=](const Condition& condition) { return type.write(condition); },
          [=] { return type.schema(); }};
}

template <typename V, typename Type>
Form form(std::string key, Condition::Kind kind, V Condition::*member, Type type,
          std::string about) {
  Field<Condition> same = field(std::move(key), member, std::move(type), std::move(about));
  return {same.key, kind, same.about, same.read, same.write, same.schema};
}

const std::vector<Form>& forms() {
  using Kind = Condition::Kind;
  static const std::vector<Form> table = {
      form("http", Kind::kHttp, Http{}, "A GET answers with this status."),
      form("tcp", Kind::kTcp, Tcp{}, "The port accepts connections."),
      form("exec", Kind::kExec, &Condition::argv, ListOf<Text>{{.empty_allowed = true}, 1},
           "This command, run in the container, ends with exit code 0."),
      form("file", Kind::kFile, &Condition::path, InnerPath{},
           "This file exists in the container."),
      form("log", Kind::kLog, &Condition::pattern, RegularExpression{},
           "A line of the output matches this regular expression (RE2)."),
      form("python", Kind::kPython, &Condition::callable,
           Text{kPythonPattern, "of the form module:function, such as app.health:ready"},
           "This function, called in the container, returns true."),
      form("notify", Kind::kNotify, Notify{},
           "The program sends READY=1 to $NOTIFY_SOCKET (sd_notify)."),
      form("workers", Kind::kWorkers, &Condition::workers, Integer<int>{1, 10'000},
           "So many workers have said that they are ready."),
      form("after", Kind::kAfter, &Condition::after_us, Duration{0, kDay},
           "So much time has passed since the start."),
      form("all", Kind::kAll, &Condition::children, ListOf<ConditionType>{{}, 1, 100},
           "All of these conditions hold."),
      form("any", Kind::kAny, &Condition::children, ListOf<ConditionType>{{}, 1, 100},
           "At least one of these conditions holds."),
  };
  return table;
}

const Form& form_of(Condition::Kind kind) {
  for (auto& form : forms())
    if (form.kind == kind) return form;
  throw Error(Code::kInternal, "write a condition", "", "its kind has no name");
}

struct Deeper {
  explicit Deeper(int& depth) : depth(depth) { ++depth; }
  ~Deeper() { --depth; }
  int& depth;
};

std::vector<std::string> words(const std::string& text) {
  std::vector<std::string> result;
  for (std::size_t begin = 0; (begin = text.find_first_not_of(' ', begin)) != std::string::npos;) {
    std::size_t end = std::min(text.find(' ', begin), text.size());
    result.push_back(text.substr(begin, end - begin));
    begin = end;
  }
  return result;
}

// The long form of a short one.
std::optional<Node> expand(const std::string& name, const std::optional<std::string>& rest) {
  auto only = [&](Node value) {
    std::vector<Node> items;
    items.push_back(std::move(value).named(name));
    return Node::map(std::move(items));
  };
  if (name == "http") {
    std::vector<Node> parts;
    std::string text = rest.value_or("");
    std::size_t slash = std::min(text.find('/'), text.size());
    if (slash) parts.push_back(Node::value(text.substr(0, slash), false).named("port"));
    if (slash < text.size()) parts.push_back(Node::value(text.substr(slash)).named("path"));
    return only(Node::map(std::move(parts)));
  }
  if (name == "tcp") return only(rest ? Node::value(*rest, false) : Node::map({}));
  if (name == "notify" && !rest) return only(Node::value("true", false));
  if (!rest) return std::nullopt;
  if (name == "exec") return only(Node::list(words(*rest)));
  if (name == "workers") return only(Node::value(*rest, false));
  if (name == "file" || name == "log" || name == "python" || name == "after")
    return only(Node::value(*rest));
  return std::nullopt;
}

}  // namespace

Condition ConditionType::read(const Place& at) const {
  at.expect(Node::Kind::kMap, "a condition, such as {http: {path: /health}} or {tcp: 8000}");
  Deeper deeper(at.reading.condition_depth);
  if (at.reading.condition_depth > kDepthLimit)
    at.refuse("conditions are nested more than " + std::to_string(kDepthLimit) + " levels deep");
  if (at.node.items.size() != 1)
    at.refuse(at.node.items.empty() ? "it names no condition"
                                    : "it has " + std::to_string(at.node.items.size()) +
                                          " keys, and a condition has exactly one",
              "to combine conditions, write all: [...] or any: [...]");
  const Node& item = at.node.items[0];
  Place below = at.child(item, item.key);
  std::vector<std::string> known;
  for (auto& form : forms()) {
    if (form.key == item.key) {
      Condition condition;
      condition.kind = form.kind;
      form.read(below, condition);
      return condition;
    }
    known.push_back(form.key);
  }
  refuse_key(below, item.key, known);
}

json ConditionType::write(const Condition& condition) const {
  const Form& form = form_of(condition.kind);
  return {{form.key, form.write(condition)}};
}

json ConditionType::definition() {
  json properties = json::object();
  for (auto& form : forms()) {
    properties[form.key] = form.schema();
    properties[form.key]["description"] = form.about;
  }
  return {{"type", "object"},
          {"minProperties", 1},
          {"maxProperties", 1},
          {"additionalProperties", false},
          {"properties", properties}};
}

json condition_json(const Condition& condition) { return ConditionType{}.write(condition); }

Condition parse_condition_flag(const std::string& text, const std::vector<state::Port>& ports) {
  Reading reading;
  if (!ports.empty()) reading.default_port = ports[0].container;
  try {
    if (text.starts_with('{')) {
      Node document = parse_document(text, "JSON");
      return ConditionType{}.read({reading, document, ""});
    }
    std::size_t colon = text.find(':');
    std::string name = text.substr(0, colon);
    std::optional<std::string> rest;
    if (colon != std::string::npos) rest = text.substr(colon + 1);
    auto node = expand(name, rest);
    if (!node) throw Error(Code::kInvalid, "", "", "it is not a condition");
    return ConditionType{}.read({reading, *node, ""});
  } catch (const Error& error) {
    if (error.code() != Code::kInvalid) throw;
    std::string cause = error.cause();
    if (!error.remedy().empty()) cause += " (" + error.remedy() + ")";
    throw Error(Code::kInvalid, "read the condition", text, cause, kForms);
  }
}

std::string describe(const Condition& condition) {
  auto joined = [&](const char* word) {
    std::string result;
    for (auto& child : condition.children)
      result += (result.empty() ? "(" : std::string(" ") + word + " ") + describe(child);
    return result + ")";
  };
  switch (condition.kind) {
    case Condition::Kind::kHttp:
      return "http :" + std::to_string(condition.port) + condition.path + " is " +
             std::to_string(condition.status);
    case Condition::Kind::kTcp:
      return "tcp :" + std::to_string(condition.port) + " accepts connections";
    case Condition::Kind::kExec: {
      std::string result = "exec";
      for (auto& word : condition.argv) result += " " + word;
      return result + " succeeds";
    }
    case Condition::Kind::kFile:
      return "file " + condition.path + " exists";
    case Condition::Kind::kLog:
      return "log matches /" + condition.pattern + "/";
    case Condition::Kind::kPython:
      return "python " + condition.callable + " returns true";
    case Condition::Kind::kNotify:
      return "notify READY=1 received";
    case Condition::Kind::kWorkers:
      return std::to_string(condition.workers) +
             (condition.workers == 1 ? " worker is ready" : " workers are ready");
    case Condition::Kind::kAfter:
      return "after " + format_duration(condition.after_us);
    case Condition::Kind::kAll:
      return joined("and");
    case Condition::Kind::kAny:
      return joined("or");
  }
  return {};
}

}  // namespace thaw::pods
