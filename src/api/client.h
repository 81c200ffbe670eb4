// Talks to the daemon. One connection a call; one thread at a time.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "api/address.h"
#include "util/fd.h"

namespace thaw::api {

// Percent-encodes one path segment or query value.
std::string encode(std::string_view text);
// "/v1/replicas?all=true&pod=web"; empty values are left out.
std::string with_query(std::string path, const std::map<std::string, std::string>& query);

struct ExecRequest {
  std::string replica;  // id, prefix, or a pod's name
  std::vector<std::string> argv;
  bool terminal = false;
  int rows = 24, columns = 80;
};

// After the upgrade: frames of api/frames.h.
struct ExecConnection {
  Fd socket;             // blocking
  std::string received;  // bytes of the first frames, read with the answer
};

class Client {
 public:
  explicit Client(Address address) : address_(std::move(address)) {}
  const Address& address() const { return address_; }

  // Each throws Unreachable without a daemon, and the daemon's own Error when it refuses.
  nlohmann::json get(const std::string& path);
  nlohmann::json post(const std::string& path, const nlohmann::json& body = nullptr);
  nlohmann::json put(const std::string& path, const std::string& bytes);
  nlohmann::json remove(const std::string& path);

  // Hands over the answer line by line as it comes: of NDJSON each line, of server-sent events each
  // line without its end. Ends with the stream, when `on_line` returns false, or when cancel_fd
  // (may be -1) is readable.
  void stream(std::string_view method, const std::string& path, const nlohmann::json& body,
              const std::function<bool(std::string_view line)>& on_line, int cancel_fd = -1);
  // The data of each server-sent event. `event: error` becomes the Error it carries.
  void events(const std::string& path, const std::function<bool(const nlohmann::json&)>& on_event,
              int cancel_fd = -1);

  ExecConnection exec(const ExecRequest& request);

 private:
  Address address_;
};

}  // namespace thaw::api
