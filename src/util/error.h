// The one exception type of the project. A failure that ends an operation is an Error; an outcome
// that the caller is expected to handle is a value. A message reads: what we were doing, to what,
// why it failed, what to do.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace thaw {

enum class Code {
  kInvalid,      // the request or the input is wrong (HTTP 400)
  kNotFound,     // the named object does not exist (404)
  kConflict,     // the object exists already or is in another state (409)
  kUnavailable,  // something needed is missing or does not answer; later may work (503)
  kTimeout,      // a deadline of ours passed (504)
  kCancelled,    // the user asked for it to stop
  kUnsupported,  // this host or build cannot do it (501)
  kCorrupt,      // data on disk is not what it should be (500)
  kExhausted,    // a limit was reached: disk, memory, descriptors, addresses (507)
  kDenied,       // no permission (403)
  kSystem,       // a system call failed (500)
  kInternal,     // our own mistake (500)
};

std::string_view code_name(Code code);

class Error : public std::runtime_error {
 public:
  // `action` is what we were doing ("mount overlay"), `object` to what, `cause` why it failed,
  // `remedy` what the user can do (may be empty). All four without a full stop.
  Error(Code code, std::string action, std::string object, std::string cause,
        std::string remedy = {});

  Code code() const { return code_; }
  const std::string& action() const { return action_; }
  const std::string& object() const { return object_; }
  const std::string& cause() const { return cause_; }
  const std::string& remedy() const { return remedy_; }

 private:
  Code code_;
  std::string action_, object_, cause_, remedy_;
};

// Throws an Error made from errno: "cannot <call> <object>: <strerror>". ENOSPC, EDQUOT, EMFILE,
// ENFILE and ENOMEM become kExhausted, ENOENT kNotFound, EACCES and EPERM kDenied, ETIMEDOUT
// kTimeout, everything else kSystem.
[[noreturn]] void throw_errno(std::string_view call, std::string_view object, int error_number = 0);

// One-line system calls: `int n = check(::read(...), "read", path);` throws when the result is
// negative.
template <typename T>
T check(T result, std::string_view call, std::string_view object = {}) {
  if (result < 0) throw_errno(call, object);
  return result;
}

// The message of the exception in flight or of any std::exception, for logs and events.
std::string describe(const std::exception& error);

}  // namespace thaw
