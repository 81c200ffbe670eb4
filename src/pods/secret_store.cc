#include "pods/secret_store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "util/error.h"
#include "util/fd.h"
#include "util/file.h"

namespace thaw::pods {
namespace {

constexpr std::size_t kMostBytes = 1 << 20;
constexpr std::string_view kLetters =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.";

bool is_name(std::string_view text) {  // kSecretName
  return !text.empty() && text.size() <= 127 && text.front() != '-' && text.front() != '.' &&
         text.find_first_not_of(kLetters) == std::string_view::npos;
}

}  // namespace

SecretStore::SecretStore(std::string folder) : folder_(std::move(folder)) {
  make_directories(folder_, 0700);
  check(::chmod(folder_.c_str(), 0700), "set mode of", folder_);
  for (const auto& entry : std::filesystem::directory_iterator(folder_))
    if (!is_name(entry.path().filename().string())) remove_tree(entry.path().string());
}

bool SecretStore::put(const std::string& name, std::string_view value) {
  if (!is_name(name))
    throw Error(Code::kInvalid, "keep secret", name, "this is no name for it",
                "use up to 127 letters, digits, '-', '_' and '.', the first no '-' or '.'");
  if (value.empty() || value.size() > kMostBytes)
    throw Error(Code::kInvalid, "keep secret", name,
                value.empty() ? "it is empty" : "it is above 1 MiB", "give another value");
  std::scoped_lock lock(mutex_);
  // A name that no secret has, until it is whole on disk.
  std::string file = folder_ + "/" + name, beside = folder_ + "/.new";
  bool created = !exists(file);
  write_file_atomic(beside, value);
  check(::rename(beside.c_str(), file.c_str()), "rename", file);
  Fd folder = Fd::open(folder_, O_RDONLY | O_DIRECTORY);
  check(::fsync(folder.get()), "sync", folder_);
  return created;
}

std::vector<SecretRow> SecretStore::list() const {
  std::vector<SecretRow> rows;
  for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
    std::string name = entry.path().filename().string();
    struct stat info {};
    if (!is_name(name) || ::stat(entry.path().c_str(), &info) != 0) continue;
    rows.push_back({name, info.st_mtim.tv_sec * 1'000'000 + info.st_mtim.tv_nsec / 1000});
  }
  std::sort(rows.begin(), rows.end(), [](auto& a, auto& b) { return a.name < b.name; });
  return rows;
}

void SecretStore::remove(const std::string& name) {
  std::string file = folder_ + "/" + name;
  if (is_name(name) && ::unlink(file.c_str()) == 0) return;
  if (is_name(name) && errno != ENOENT) throw_errno("remove", file);
  throw Error(Code::kNotFound, "remove secret", name, "there is none of this name",
              "see `thaw secret ls`");
}

}  // namespace thaw::pods
