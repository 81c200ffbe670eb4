#include "image/layout.h"

#include <sys/utsname.h>

#include "util/error.h"
#include "util/file.h"
#include "util/parse_json.h"

namespace thaw::image {
namespace {

using nlohmann::json;

constexpr std::size_t kBlobLimit = 16 << 20;
constexpr std::string_view kManifestType = "application/vnd.oci.image.manifest.v1+json";
constexpr std::string_view kConfigType = "application/vnd.oci.image.config.v1+json";

std::string hex_of(const std::string& digest, const std::string& reference) {
  constexpr std::string_view algorithm = "sha256:";
  if (digest.starts_with(algorithm)) {
    std::string hex = digest.substr(algorithm.size());
    if (hex.size() == 64 && hex.find_first_not_of("0123456789abcdef") == std::string::npos)
      return hex;
  }
  throw Error(Code::kUnsupported, "import image", reference,
              "its digest " + digest + " is not a sha256");
}

json read_blob(const std::string& directory, const json& descriptor, const std::string& reference) {
  std::string hex = hex_of(descriptor.at("digest"), reference);
  std::string data = read_file(directory + "/blobs/sha256/" + hex, kBlobLimit);
  if (sha256_hex(data) != hex)
    throw Error(Code::kCorrupt, "import image", reference,
                "blob sha256:" + hex + " has other contents than its name says", "import it again");
  return parse_json(data, "blob sha256:" + hex);
}

[[noreturn]] void refuse(const std::string& reference, const std::string& cause,
                         const std::string& remedy) {
  throw Error(Code::kUnsupported, "import image", reference, cause, remedy);
}

void check_platform(const json& image, const std::string& reference) {
  std::string os = image.value("os", ""), architecture = image.value("architecture", "");
  if ((os.empty() || os == "linux") &&
      (architecture.empty() || architecture == host_architecture()))
    return;
  refuse(
      reference,
      fmt::format("it is for {}/{}, this host is linux/{}", os, architecture, host_architecture()),
      "import an image for this host's platform");
}

// What is used of it must be what the image specification says, since it comes from anywhere.
void check_config(const json& config, const std::string& reference) {
  auto wrong = [&](const char* key, const char* what) {
    throw Error(Code::kCorrupt, "import image", reference,
                fmt::format("{} in its configuration is no {}", key, what),
                "build it with another tool");
  };
  for (const char* key : {"Env", "Entrypoint", "Cmd"})
    if (auto found = config.find(key); found != config.end())
      if (!found->is_array() || !std::all_of(found->begin(), found->end(),
                                             [](const json& item) { return item.is_string(); }))
        wrong(key, "list of texts");
  for (const char* key : {"User", "WorkingDir"})
    if (auto found = config.find(key); found != config.end() && !found->is_string())
      wrong(key, "text");
}

}  // namespace

std::string host_architecture() {
  utsname host{};
  check(::uname(&host), "uname");
  static const std::map<std::string, std::string> names = {
      {"x86_64", "amd64"}, {"aarch64", "arm64"}, {"armv7l", "arm"}, {"i686", "386"}};
  auto found = names.find(host.machine);
  return found == names.end() ? host.machine : found->second;
}

Layout read_layout(const std::string& directory, const std::string& reference) {
  try {
    std::string path = directory + "/index.json";
    json index = parse_json(read_file(path, kBlobLimit), path);
    if (index.at("manifests").size() != 1)
      refuse(reference, "it is not one image", "name one image of it");
    const json& descriptor = index["manifests"][0];
    if (descriptor.value("mediaType", kManifestType) != kManifestType)
      refuse(reference,
             "it is a " + descriptor["mediaType"].get<std::string>() + ", not a container image",
             "name a container image");
    json manifest = read_blob(directory, descriptor, reference);
    std::string type = manifest.at("config").value("mediaType", "");
    if (type != kConfigType)
      refuse(reference, "it is an artifact (" + type + "), not a container image",
             "name a container image");
    json image = read_blob(directory, manifest["config"], reference);
    check_platform(image, reference);

    Layout layout;
    layout.id = hex_of(descriptor.at("digest"), reference);
    for (const json& layer : manifest.at("layers")) {
      layout.layers.push_back(directory + "/blobs/sha256/" + hex_of(layer.at("digest"), reference));
      if (auto size = layer.find("size"); size != layer.end() && size->is_number_unsigned())
        layout.layer_bytes += size->get<std::uint64_t>();
    }
    layout.config = json::object();
    // Builders write null for what is not set.
    if (auto config = image.find("config"); config != image.end() && config->is_object())
      for (const auto& [key, value] : config->items())
        if (!value.is_null()) layout.config[key] = value;
    check_config(layout.config, reference);
    return layout;
  } catch (const json::exception& error) {
    throw Error(Code::kCorrupt, "import image", reference,
                std::string("its metadata cannot be read: ") + error.what(), "import it again");
  }
}

}  // namespace thaw::image
