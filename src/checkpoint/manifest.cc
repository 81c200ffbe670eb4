#include "checkpoint/manifest.h"

#include <dirent.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/hmac.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <set>

#include "checkpoint/rest.h"
#include "store/seekable.h"
#include "store/tree.h"
#include "util/error.h"
#include "util/fault.h"
#include "util/fd.h"
#include "util/file.h"
#include "util/parse_json.h"

namespace thaw::checkpoint {
namespace {

constexpr int kVersion = 1;

Manifest from_json(const nlohmann::json& json) {
  Manifest manifest;
  json.at("id").get_to(manifest.id);
  json.at("pod").get_to(manifest.pod);
  json.at("fingerprint").get_to(manifest.fingerprint);
  json.at("program").get_to(manifest.program);
  manifest.host = json.at("host");
  json.at("condition").get_to(manifest.condition);
  json.at("created_us").get_to(manifest.created_us);
  json.at("environment").get_to(manifest.environment);
  json.at("mounts").get_to(manifest.mounts);
  json.at("pipes").get_to(manifest.pipes);
  json.at("layers").get_to(manifest.layers);
  for (const auto& file : json.at("files"))
    manifest.files.push_back({file.at("path"), file.at("size"), file.at("sha256")});
  json.at("trees").get_to(manifest.trees);
  json.at("memory_bytes").get_to(manifest.memory_bytes);
  json.at("bytes").get_to(manifest.bytes);
  if (json.contains("left_out"))
    manifest.left_out = {json["left_out"].at("zero_bytes"), json["left_out"].at("file_bytes")};
  json.at("freeze_us").get_to(manifest.freeze_us);
  json.at("dump_us").get_to(manifest.dump_us);
  json.at("tasks").get_to(manifest.tasks);
  return manifest;
}

// As long as it is the same, nobody has written to the file (or put another in its place).
std::string identity(const struct stat& info) {
  return fmt::format("{} {} {} {}.{} {}.{}", info.st_dev, info.st_ino, info.st_size,
                     info.st_mtim.tv_sec, info.st_mtim.tv_nsec, info.st_ctim.tv_sec,
                     info.st_ctim.tv_nsec);
}

// The identities of images that had the right digest, for a daemon that has not seen them yet.
constexpr const char* kChecked = "checked";

void write_checked(const std::string& directory, const std::string& id, nlohmann::json identities,
                   const std::string& key) {
  write_signed(directory + "/" + kChecked, {{"checked", id}, {"identities", std::move(identities)}},
               key);
}

struct stat regular_file(const std::string& path) {
  struct stat info;
  if (::lstat(path.c_str(), &info) != 0)
    throw Error(Code::kCorrupt, "use checkpoint file", path, "it is missing");
  if (!S_ISREG(info.st_mode))
    throw Error(Code::kCorrupt, "use checkpoint file", path, "it is not a regular file");
  return info;
}

struct stat directory_at(const std::string& path) {
  struct stat info;
  if (::lstat(path.c_str(), &info) != 0 || !S_ISDIR(info.st_mode))
    throw Error(Code::kCorrupt, "use checkpoint folder", path, "it is missing");
  return info;
}

bool is_plain_name(std::string_view name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string_view::npos;
}

std::vector<std::string> names_in(const std::string& directory) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory))
    names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

// The folder holds what the manifest says, by names that lead nowhere else.
void check_names(const Manifest& manifest, const std::string& directory) {
  auto refuse = [&](const std::string& name, const std::string& why) {
    throw Error(Code::kCorrupt, "use checkpoint", directory, name + " " + why);
  };
  std::set<std::string> images;
  for (const FileRecord& file : manifest.files) {
    std::string name = file.path.rfind("images/", 0) == 0 ? file.path.substr(7) : "";
    if (!is_plain_name(name)) refuse(file.path, "is no name of an image");
    images.insert(name);
  }
  for (auto& [name, digest] : manifest.trees)
    if (!is_plain_name(name)) refuse(name, "is no name of a folder");
  for (const std::string& layer : manifest.layers)
    if (!manifest.trees.count(layer)) refuse(layer, "is a layer without a digest");
  directory_at(directory + "/images");
  for (const std::string& name : names_in(directory + "/images"))
    if (!images.count(name)) refuse("images/" + name, "was not there when it was sealed");
  // Used where they are there, so they may not come later.
  for (const char* name : {"shm", "dev", "thaw"}) {
    struct stat info;
    if (!manifest.trees.count(name) && ::lstat((directory + "/" + name).c_str(), &info) == 0)
      refuse(name, "was not there when it was sealed");
  }
}

}  // namespace

std::string mac_of(std::string_view text, const std::string& key) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned length = 0;
  ::HMAC(::EVP_sha256(), key.data(), static_cast<int>(key.size()),
         reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest, &length);
  std::string hex;
  for (unsigned i = 0; i < length; ++i) hex += fmt::format("{:02x}", digest[i]);
  return hex;
}

bool mac_fits(const std::string& mac, std::string_view bytes, const std::string& key) {
  std::string right = mac_of(bytes, key);
  return mac.size() == right.size() && ::CRYPTO_memcmp(mac.data(), right.data(), mac.size()) == 0;
}

nlohmann::json to_json(const Manifest& manifest) {
  nlohmann::json files = nlohmann::json::array();
  for (const auto& file : manifest.files)
    files.push_back({{"path", file.path}, {"size", file.size}, {"sha256", file.sha256}});
  return {{"version", kVersion},
          {"id", manifest.id},
          {"pod", manifest.pod},
          {"fingerprint", manifest.fingerprint},
          {"program", manifest.program},
          {"host", manifest.host},
          {"condition", manifest.condition},
          {"created_us", manifest.created_us},
          {"environment", manifest.environment},
          {"mounts", manifest.mounts},
          {"pipes", manifest.pipes},
          {"layers", manifest.layers},
          {"files", files},
          {"trees", manifest.trees},
          {"memory_bytes", manifest.memory_bytes},
          {"bytes", manifest.bytes},
          {"left_out",
           {{"zero_bytes", manifest.left_out.zero}, {"file_bytes", manifest.left_out.file}}},
          {"freeze_us", manifest.freeze_us},
          {"dump_us", manifest.dump_us},
          {"tasks", manifest.tasks}};
}

std::string load_mac_key(const std::string& data_dir) {
  std::string path = data_dir + "/mac.key";
  if (!exists(path)) {
    std::string key(32, '\0');
    check(::getrandom(key.data(), key.size(), 0), "read random bytes");
    write_file_atomic(path, key, 0600);
  }
  std::string key = read_file(path);
  if (key.size() != 32)
    throw Error(Code::kCorrupt, "read key", path, "it does not hold 32 bytes",
                "put the right file back, or remove it: then all checkpoints are lost");
  return key;
}

void seal(Manifest& manifest, const std::string& directory, const std::string& key) {
  manifest.files.clear();
  manifest.trees.clear();
  manifest.bytes = manifest.memory_bytes = 0;
  manifest.tasks = 0;
  nlohmann::json identities = nlohmann::json::object();
  for (const std::string& name : names_in(directory + "/images")) {
    std::string path = "images/" + name;
    struct stat info = regular_file(directory + "/" + path);
    Fd file = Fd::open(directory + "/" + path, O_RDONLY);
    check(::fdatasync(file.get()), "sync", path);
    identities[path] = identity(info);
    manifest.files.push_back({path, static_cast<std::uint64_t>(info.st_size),
                              store::digest_file(directory + "/" + path)});
    manifest.bytes += static_cast<std::uint64_t>(info.st_size);
    if (name.rfind("pages-", 0) == 0)
      manifest.memory_bytes += static_cast<std::uint64_t>(info.st_size);
    if (name.rfind("core-", 0) == 0) ++manifest.tasks;
  }
  for (const std::string& name : names_in(directory))
    if (name != "images" && name != "manifest.json" && name != kChecked)
      manifest.trees[name] = store::digest_tree(directory + "/" + name);
  fault_point("seal.hashed");
  write_checked(directory, manifest.id, std::move(identities), key);
  write_signed(directory + "/manifest.json", to_json(manifest), key);
}

void write_signed(const std::string& path, nlohmann::json json, const std::string& key) {
  json["mac"] = mac_of(json.dump(), key);
  write_file_atomic(path, json.dump(1));
}

nlohmann::json read_signed(const std::string& path, const std::string& key) {
  struct stat info;
  if (::lstat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) return nullptr;
  nlohmann::json json;
  try {
    json = parse_json(read_file(path, 16u << 20), path, Fractions::kRefused);
  } catch (const Error& error) {
    if (error.code() != Code::kCorrupt) throw;
  }
  if (!json.is_object() || !json.contains("mac") || !json["mac"].is_string()) return nullptr;
  std::string mac = json["mac"];
  json.erase("mac");
  if (!mac_fits(mac, json.dump(), key)) return nullptr;
  return json;
}

std::int64_t checked_us(const std::string& directory) {
  struct stat info;
  if (::lstat((directory + "/" + kChecked).c_str(), &info) != 0) return 0;
  return info.st_mtim.tv_sec * 1'000'000 + info.st_mtim.tv_nsec / 1000;
}

Manifest read_manifest(const std::string& directory, const std::string& key) {
  std::string path = directory + "/manifest.json";
  if (!exists(path))
    throw Error(Code::kNotFound, "use checkpoint", directory, "it has no manifest");
  try {
    nlohmann::json json = read_signed(path, key);
    if (json.is_null())
      throw Error(Code::kCorrupt, "use checkpoint", directory,
                  "its manifest was not written by this host (the MAC does not fit)");
    if (json.at("version") != kVersion)
      throw Error(Code::kUnsupported, "use checkpoint", directory,
                  "it was written by another version of Thaw");
    return from_json(json);
  } catch (const nlohmann::json::exception& error) {
    throw Error(Code::kCorrupt, "read manifest", path, error.what());
  }
}

Manifest Verifier::verify(const std::string& directory, bool anew,
                          const std::function<void()>& between) {
  Manifest manifest = read_manifest(directory, key_);
  check_names(manifest, directory);
  std::scoped_lock lock(mutex_);
  if (seen_.insert(directory).second) {
    nlohmann::json checked = read_signed(directory + "/" + kChecked, key_);
    if (checked.is_object() && checked.value("checked", "") == manifest.id)
      for (auto& [path, value] : checked["identities"].items())
        if (value.is_string()) known_[directory + "/" + path] = value;
  }
  bool hashed = false;
  nlohmann::json identities = nlohmann::json::object();
  for (const FileRecord& file : manifest.files) {
    std::string at_rest = rests(directory, file.path) ? rest_name(file.path) : "";
    std::string name = at_rest.empty() ? file.path : at_rest, full = directory + "/" + name;
    struct stat info = regular_file(full);
    std::optional<store::SeekableFile> compressed;
    if (!at_rest.empty()) compressed.emplace(full);
    std::uint64_t size = compressed ? compressed->size() : static_cast<std::uint64_t>(info.st_size);
    // A truncated page image makes CRIU spin for ever: sizes first.
    if (size != file.size)
      throw Error(Code::kCorrupt, "use checkpoint file", full,
                  fmt::format("it has {} bytes instead of {}", size, file.size));
    std::string now = identity(info);
    identities[name] = now;
    auto known = known_.find(full);
    if (!anew && known != known_.end() && known->second == now) continue;
    hashed = true;
    std::string digest = compressed ? store::digest_seekable(*compressed, between)
                                    : store::digest_file(full, between);
    if (digest != file.sha256)
      throw Error(Code::kCorrupt, "use checkpoint file", full,
                  "its contents have changed (sha256)");
    known_[full] = now;
  }
  for (auto& [folder, digest] : manifest.trees) {
    // Layers are hashed once a daemon; a whole walk at each restore would cost more than the
    // restore.
    std::string full = directory + "/" + folder;
    std::string now = identity(directory_at(full));
    auto known = known_.find(full);
    if (!anew && known != known_.end() && known->second == now) continue;
    if (store::digest_tree(full) != digest)
      throw Error(Code::kCorrupt, "use checkpoint layer", full,
                  "its contents have changed (sha256)");
    known_[full] = now;
  }
  try {
    if (hashed) write_checked(directory, manifest.id, std::move(identities), key_);
  } catch (const Error&) {
    // The next daemon hashes them, then.
  }
  return manifest;
}

}  // namespace thaw::checkpoint
