// Variables that look like secrets. A guess, for warnings and for what is shown: it errs on the
// side of hiding.
#pragma once

#include <string>
#include <string_view>

namespace thaw::pods {

// By its name (DB_PASSWORD, API_KEY, GITHUB_TOKEN) or by what it holds: a private key, or an
// address with a password in it.
bool looks_secret(std::string_view name, std::string_view value);
// Of a variable written NAME=VALUE: its name when it looks like a secret, "" otherwise.
std::string secret_name(std::string_view entry);

}  // namespace thaw::pods
