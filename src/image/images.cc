#include "image/images.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "image/layout.h"
#include "image/staging.h"
#include "image/tools.h"
#include "image/tree_walk.h"
#include "util/error.h"
#include "util/file.h"
#include "util/log.h"

namespace thaw::image {
namespace {

using nlohmann::json;

// Of one image: how many different manifests of origin are remembered as being it.
constexpr std::size_t kMostSources = 32;

// images/<id>/config.json.
struct Record {
  std::string reference;
  std::vector<std::string> sources;  // see source_key()
  std::uint64_t bytes = 0;
  json config;

  std::string dump() const {
    return json{
               {"reference", reference}, {"sources", sources}, {"bytes", bytes}, {"config", config}}
               .dump(2) +
           "\n";
  }
};

std::string images_dir(const std::string& store_dir) { return store_dir + "/images"; }
std::string image_dir(const std::string& store_dir, const std::string& id) {
  return images_dir(store_dir) + "/" + id;
}

bool is_id(std::string_view name) {
  return name.size() == 64 && name.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

Record read_record(const std::string& dir) {
  std::string file = dir + "/config.json";
  json data = json::parse(read_file(file), nullptr, false);
  try {
    return {data.at("reference"), data.at("sources"), data.at("bytes"), data.at("config")};
  } catch (const json::exception& error) {
    throw Error(Code::kCorrupt, "read image", file, error.what(),
                "remove the image and import it again");
  }
}

Image to_image(const std::string& store_dir, const std::string& id, Record record) {
  return {id, std::move(record.reference), image_dir(store_dir, id) + "/rootfs", record.bytes,
          std::move(record.config)};
}

// Ids of what lies in the store.
std::vector<std::string> ids(const std::string& store_dir) {
  std::vector<std::string> found;
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator(images_dir(store_dir), none))
    if (std::string name = entry.path().filename().string(); is_id(name)) found.push_back(name);
  std::sort(found.begin(), found.end());
  return found;
}

// What tells, before anything is copied, that a reference names what was imported before: the
// manifest as it is at its origin, and for whom it was resolved.
std::string source_key(const std::string& raw_manifest) {
  return host_architecture() + ":" + sha256_hex(raw_manifest);
}

std::optional<std::string> find_by_source(const std::string& store_dir, const std::string& source) {
  for (const std::string& id : ids(store_dir)) {
    try {
      Record record = read_record(image_dir(store_dir, id));
      if (std::find(record.sources.begin(), record.sources.end(), source) != record.sources.end())
        return id;
    } catch (const Error& error) {
      log::warn("an image cannot be read", {{"id", id}, {"why", error.what()}});
    }
  }
  return std::nullopt;
}

// The image is there; from now on it is also known by this reference and source.
Image known_also_as(const std::string& store_dir, const std::string& id,
                    const std::string& reference, const std::optional<std::string>& source) {
  Record record = read_record(image_dir(store_dir, id));
  bool changed = record.reference != reference;
  record.reference = reference;
  if (source &&
      std::find(record.sources.begin(), record.sources.end(), *source) == record.sources.end()) {
    if (record.sources.size() >= kMostSources) record.sources.erase(record.sources.begin());
    record.sources.push_back(*source);
    changed = true;
  }
  if (changed) write_file_atomic(image_dir(store_dir, id) + "/config.json", record.dump());
  return to_image(store_dir, id, std::move(record));
}

std::uint64_t bytes_of(const std::string& directory) {
  std::uint64_t bytes = 0;
  std::set<std::uint64_t> linked;
  walk_tree(directory, [&](const TreeEntry& entry) {
    if (entry.info.stx_nlink > 1 && S_ISREG(entry.info.stx_mode) &&
        !linked.insert(entry.info.stx_ino).second)
      return;
    bytes += entry.info.stx_blocks * 512;
  });
  return bytes;
}

}  // namespace

Image import_image(const std::string& store_dir, const std::string& reference, Deadline deadline,
                   int cancel_fd, const Progress& progress, const UnpackLimits& limits) {
  auto say = [&](const std::string& line) {
    if (progress) progress(line);
  };
  Reference parsed = Reference::parse(reference);
  Staging staging(store_dir);
  Tools tools(reference, staging, deadline, cancel_fd, limits);
  auto between = [&] {
    if (deadline.passed())
      throw Error(Code::kTimeout, "import image", reference, "measuring it takes too long");
    if (cancel_fd >= 0 && wait_readable(cancel_fd, Deadline::after_ms(0)))
      throw Error(Code::kCancelled, "import image", reference, "it was cancelled");
  };

  say("looking up " + reference);
  // skopeo unpacks an archive, which may be compressed, before it says anything of it.
  if (std::string archive = parsed.archive(); !archive.empty()) {
    TarSize size(limits, reference);
    measure_layer(archive, size, between);
  }
  std::string manifest = tools.inspect(parsed);
  std::optional<std::string> source = source_key(manifest);
  if (auto id = find_by_source(store_dir, *source)) {
    say("the image is in the store already");
    return known_also_as(store_dir, *id, reference, source);
  }

  say("copying " + reference);
  tools.copy(parsed.pinned(manifest));
  // What is not pinned may have become another image while it was copied; then its manifest must
  // not stand for this one.
  if (!parsed.can_be_pinned() && tools.inspect(parsed) != manifest) source.reset();
  Layout layout = read_layout(staging.path() + "/layout", reference);
  std::string target = image_dir(store_dir, layout.id);
  if (exists(target)) return known_also_as(store_dir, layout.id, reference, source);

  TarSize size(limits, reference);
  for (const std::string& layer : layout.layers) measure_layer(layer, size, between);
  say(fmt::format("unpacking {} layers, {}", layout.layers.size(), format_bytes(size.bytes())));
  std::string finished = staging.path() + "/image";
  make_directories(finished, 0700);
  tools.unpack("image/rootfs");
  Record record{reference, {}, bytes_of(finished + "/rootfs"), std::move(layout.config)};
  if (source) record.sources.push_back(*source);
  write_file(finished + "/config.json", record.dump());
  // The name must not reach the disk before the files do.
  check(::syncfs(staging.lock().get()), "sync", finished);
  make_directories(images_dir(store_dir), 0700);
  if (::rename(finished.c_str(), target.c_str()) != 0) {
    if (errno != EEXIST && errno != ENOTEMPTY) throw_errno("rename to", target);
    return known_also_as(store_dir, layout.id, reference,
                         source);  // another import of the same image was quicker
  }
  sync_directory(images_dir(store_dir));
  say(fmt::format("imported {}, {}", layout.id.substr(0, 12), format_bytes(record.bytes)));
  return to_image(store_dir, layout.id, std::move(record));
}

std::vector<Image> list_images(const std::string& store_dir) {
  Staging::remove_abandoned(store_dir);
  std::vector<Image> images;
  for (const std::string& id : ids(store_dir)) {
    try {
      images.push_back(to_image(store_dir, id, read_record(image_dir(store_dir, id))));
    } catch (const Error& error) {
      // Not removed: a replica may be running on it.
      log::warn("an image cannot be read", {{"id", id}, {"why", error.what()}});
    }
  }
  return images;
}

void remove_image(const std::string& store_dir, const std::string& id) {
  Error absent(Code::kNotFound, "remove image", id, "there is none with this id",
               "see the images in the store");
  if (!is_id(id)) throw Error(absent);
  Staging staging(store_dir);
  // Out of sight at once; what takes long, or is cut short, happens there.
  if (::rename(image_dir(store_dir, id).c_str(), (staging.path() + "/removed").c_str()) != 0) {
    if (errno == ENOENT) throw Error(absent);
    throw_errno("remove image", id);
  }
}

}  // namespace thaw::image
