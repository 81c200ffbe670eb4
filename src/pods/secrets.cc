#include "pods/secrets.h"

#include <string>

namespace thaw::pods {
namespace {

bool names_secret(std::string_view name) {
  std::string upper(name);
  for (char& c : upper) c = c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
  std::string_view text = upper;
  // The usual way to say where it lies instead.
  if (text.ends_with("_FILE") || text.ends_with("_PATH") || text.ends_with("_DIR")) return false;
  for (std::string_view word : {"SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "APIKEY",
                                "PRIVATE_KEY", "ACCESS_KEY", "CREDENTIAL"})
    if (text.find(word) != std::string_view::npos) return true;
  for (std::string_view end : {"TOKEN", "_KEY", "_PASS", "_PWD"})
    if (text.ends_with(end)) return true;
  return text == "KEY" || text.find("TOKEN_") != std::string_view::npos;
}

// scheme://user:password@host
bool holds_password(std::string_view value) {
  for (std::size_t at = 0; (at = value.find("://", at)) != std::string_view::npos;) {
    at += 3;
    std::string_view authority = value.substr(at, value.find_first_of("/?# ,", at) - at);
    std::size_t user_end = authority.rfind('@'), colon = authority.find(':');
    if (user_end != std::string_view::npos && colon < user_end && colon + 1 < user_end) return true;
  }
  return false;
}

}  // namespace

bool looks_secret(std::string_view name, std::string_view value) {
  return names_secret(name) || holds_password(value) ||
         (value.find("-----BEGIN ") != std::string_view::npos &&
          value.find("PRIVATE KEY-----") != std::string_view::npos);
}

std::string secret_name(std::string_view entry) {
  std::size_t end = entry.find('=');
  bool secret =
      end != std::string_view::npos && looks_secret(entry.substr(0, end), entry.substr(end + 1));
  return secret ? std::string(entry.substr(0, end)) : "";
}

}  // namespace thaw::pods
