#include "pods/secret_store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <map>

#include "util/error.h"
#include "util/fd.h"
#include "util/file.h"
#include "util/log.h"

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

SecretStore::SecretStore(std::string folder, std::string plain, std::string key_file)
    : folder_(std::move(folder)), plain_(std::move(plain)), key_file_(std::move(key_file)) {
  make_directories(folder_, 0700);
  check(::chmod(folder_.c_str(), 0700), "set mode of", folder_);
  for (const auto& entry : std::filesystem::directory_iterator(folder_))
    if (!is_name(entry.path().filename().string())) remove_tree(entry.path().string());
  seal_plain();
}

std::vector<std::string> SecretStore::names(const std::string& folder) const {
  std::vector<std::string> found;
  if (!exists(folder)) return found;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (std::string name = entry.path().filename().string(); is_name(name)) found.push_back(name);
  return found;
}

SealKey SecretStore::key() const {
  if (exists(key_file_)) return SealKey::read(key_file_);
  if (!names(folder_).empty())
    throw Error(Code::kUnavailable, "seal secrets", {},
                "the key that others are sealed with, " + key_file_ + ", is gone", kLostKey);
  return SealKey::make(key_file_);
}

void SecretStore::write(const SealKey& key, const std::string& name, std::string_view value) const {
  // A name that no secret has, until it is whole on disk.
  std::string file = folder_ + "/" + name, beside = folder_ + "/.new";
  write_file_atomic(beside, key.seal(name, value));
  check(::rename(beside.c_str(), file.c_str()), "rename", file);
  sync_directory(folder_);
}

// Times stay: a secret has not changed by being sealed.
void SecretStore::seal_plain() {
  for (const std::string& name : names(plain_)) {
    std::string file = folder_ + "/" + name, earlier = plain_ + "/" + name;
    try {
      struct stat old {
      }, sealed{};
      check(::stat(earlier.c_str(), &old), "look at", earlier);
      // Of a daemon that died in between; one that was set by an earlier version since then counts.
      bool done = ::stat(file.c_str(), &sealed) == 0 &&
                  std::pair(sealed.st_mtim.tv_sec, sealed.st_mtim.tv_nsec) >=
                      std::pair(old.st_mtim.tv_sec, old.st_mtim.tv_nsec);
      if (!done) {
        write(key(), name, read_file(earlier, kMostBytes));
        timespec times[2] = {old.st_atim, old.st_mtim};
        check(::utimensat(AT_FDCWD, file.c_str(), times, 0), "set times of", file);
      }
      check(::unlink(earlier.c_str()), "remove", earlier);
      log::info("a secret is sealed now", {{"name", name}});
    } catch (const std::exception& error) {
      log::warn("a secret could not be sealed, it is used as it is",
                {{"name", name}, {"error", error.what()}});
    }
  }
  ::rmdir(plain_.c_str());  // unless there is something left in it
}

bool SecretStore::put(const std::string& name, std::string_view value) {
  if (!is_name(name))
    throw Error(Code::kInvalid, "keep secret", name, "this is no name for it",
                "use up to 127 letters, digits, '-', '_' and '.', the first no '-' or '.'");
  if (value.empty() || value.size() > kMostBytes)
    throw Error(Code::kInvalid, "keep secret", name,
                value.empty() ? "it is empty" : "it is above 1 MiB", "give another value");
  std::scoped_lock lock(mutex_);
  std::string plain = plain_ + "/" + name;
  bool created = !exists(folder_ + "/" + name) && !exists(plain);
  write(key(), name, value);
  if (::unlink(plain.c_str()) != 0 && errno != ENOENT) throw_errno("remove", plain);
  return created;
}

std::vector<SecretRow> SecretStore::list() const {
  std::map<std::string, std::int64_t> rows;
  for (const std::string& folder : {plain_, folder_})
    for (const std::string& name : names(folder)) {
      struct stat info {};
      if (::stat((folder + "/" + name).c_str(), &info) != 0) continue;
      rows[name] = info.st_mtim.tv_sec * 1'000'000 + info.st_mtim.tv_nsec / 1000;
    }
  std::vector<SecretRow> list;
  for (auto& [name, updated_us] : rows) list.push_back({name, updated_us});
  return list;
}

void SecretStore::remove(const std::string& name) {
  bool found = false;
  for (const std::string& folder : {plain_, folder_}) {
    std::string file = folder + "/" + name;
    if (is_name(name) && ::unlink(file.c_str()) == 0)
      found = true;
    else if (is_name(name) && errno != ENOENT)
      throw_errno("remove", file);
  }
  if (!found)
    throw Error(Code::kNotFound, "remove secret", name, "there is none of this name",
                "see `thaw secret ls`");
}

}  // namespace thaw::pods
