#include "util/error.h"

#include <cerrno>
#include <cstring>

namespace thaw {
namespace {

std::string compose(const std::string& action, const std::string& object, const std::string& cause,
                    const std::string& remedy) {
  std::string text = "cannot " + action;
  if (!object.empty()) text += " '" + object + "'";
  if (!cause.empty()) text += ": " + cause;
  if (!remedy.empty()) text += "; " + remedy;
  return text;
}

Code code_of(int error_number) {
  switch (error_number) {
    case ENOSPC:
    case EDQUOT:
    case EMFILE:
    case ENFILE:
    case ENOMEM:
      return Code::kExhausted;
    case ENOENT:
      return Code::kNotFound;
    case EACCES:
    case EPERM:
      return Code::kDenied;
    case ETIMEDOUT:
      return Code::kTimeout;
    default:
      return Code::kSystem;
  }
}

}  // namespace

std::string_view code_name(Code code) {
  switch (code) {
    case Code::kInvalid:
      return "invalid";
    case Code::kNotFound:
      return "not_found";
    case Code::kConflict:
      return "conflict";
    case Code::kUnavailable:
      return "unavailable";
    case Code::kTimeout:
      return "timeout";
    case Code::kCancelled:
      return "cancelled";
    case Code::kUnsupported:
      return "unsupported";
    case Code::kCorrupt:
      return "corrupt";
    case Code::kExhausted:
      return "exhausted";
    case Code::kDenied:
      return "denied";
    case Code::kSystem:
      return "system";
    case Code::kInternal:
      return "internal";
  }
  return "internal";
}

Error::Error(Code code, std::string action, std::string object, std::string cause,
             std::string remedy)
    : std::runtime_error(compose(action, object, cause, remedy)),
      code_(code),
      action_(std::move(action)),
      object_(std::move(object)),
      cause_(std::move(cause)),
      remedy_(std::move(remedy)) {}

void throw_errno(std::string_view call, std::string_view object, int error_number) {
  if (error_number == 0) error_number = errno;
  throw Error(code_of(error_number), std::string(call), std::string(object),
              std::strerror(error_number));
}

std::string describe(const std::exception& error) { return error.what(); }

}  // namespace thaw
