// One request and the ways to answer it. Handlers see this, never the socket library.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "api/backend.h"
#include "api/tokens.h"
#include "util/error.h"

namespace thaw::api {

// A refusal whose status is HTTP's own business (405, 413, 415, 426 …), not a code of ours.
class HttpError : public Error {
 public:
  HttpError(int status, Code code, std::string action, std::string object, std::string cause,
            std::string remedy, std::map<std::string, std::string> headers = {})
      : Error(code, std::move(action), std::move(object), std::move(cause), std::move(remedy)),
        status_(status),
        headers_(std::move(headers)) {}
  int status() const { return status_; }
  const std::map<std::string, std::string>& headers() const { return headers_; }

 private:
  int status_;
  std::map<std::string, std::string> headers_;
};

struct Request {
  std::string method;
  std::string target;                        // as sent
  std::vector<std::string> segments;         // of the path: normalised, decoded
  std::map<std::string, std::string> query;  // decoded
  std::string content_type;                  // lower case, without parameters
  std::string body, upgrade, last_event_id;
  Scope scope = Scope::kAdmin;  // what the client may do
};

// Of a socket that left HTTP behind.
struct Upgraded {
  int fd = -1;           // non-blocking, owned by the server
  int stop_fd = -1;      // readable: the daemon stops
  std::string received;  // what came after the request already
};

class Exchange {
 public:
  Exchange(Request request, Backend& backend) : request_(std::move(request)), backend_(backend) {}
  virtual ~Exchange() = default;

  const Request& request() const { return request_; }
  Backend& backend() { return backend_; }
  std::map<std::string, std::string>& path() { return path_; }
  const std::string& path(const std::string& name) const { return path_.at(name); }

  // The query's values; `fallback` when absent. kInvalid names the key and what it takes.
  std::string query(const std::string& key, const std::string& fallback = {}) const;
  bool query_flag(const std::string& key) const;
  std::int64_t query_number(const std::string& key, std::int64_t fallback, std::int64_t low,
                            std::int64_t high) const;
  // The body as a JSON object with these keys only. An empty body is an empty object.
  nlohmann::json body_object(const std::vector<std::string_view>& keys) const;

  virtual void reply(int status, const nlohmann::json& body) = 0;
  // A stream: begin once, then write pieces. write is false when the client has gone or the daemon
  // stops.
  virtual void begin(int status, std::string_view content_type) = 0;
  virtual bool write(std::string_view data) = 0;
  virtual bool begun() const = 0;
  // Waits until `fd` (may be -1) is readable; returns early with false when the client has gone or
  // the daemon stops.
  virtual bool wait(int fd, int timeout_ms) = 0;
  virtual Upgraded upgrade(std::string_view protocol) = 0;

 private:
  Request request_;
  Backend& backend_;
  std::map<std::string, std::string> path_;
};

}  // namespace thaw::api
