#include "image/tools.h"

#include <cstdlib>

#include "image/layout.h"
#include "util/error.h"
#include "util/file.h"

namespace thaw::image {
namespace {

using nlohmann::json;

// What skopeo reads, and how the details name a file: not at all, whole, or up to a colon.
enum class Path { kNone, kWhole, kToColon };
const std::map<std::string, Path, std::less<>> kTransports = {{"docker", Path::kNone},
                                                              {"oci", Path::kToColon},
                                                              {"oci-archive", Path::kToColon},
                                                              {"docker-archive", Path::kToColon},
                                                              {"dir", Path::kWhole},
                                                              {"docker-daemon", Path::kNone},
                                                              {"containers-storage", Path::kNone},
                                                              {"ostree", Path::kNone},
                                                              {"sif", Path::kWhole},
                                                              {"tarball", Path::kNone}};

// skopeo logs as logfmt: time="..." level=fatal msg="..."; the message is a quoted Go string, near
// enough to JSON's. umoci's lines are plain.
std::string message_of(const RunResult& result) {
  std::string text = trim(result.err);
  auto newline = text.rfind('\n');
  std::string line = newline == std::string::npos ? text : text.substr(newline + 1);
  if (auto at = line.find(" msg=\""); at != std::string::npos) {
    json message = json::parse(line.substr(at + 5), nullptr, false);
    if (message.is_string()) return message;
  }
  return line.empty() || result.timed_out ? result.why() : line;
}

// The machine's own policy on signatures holds where its administrator has written one. Where there
// is none skopeo would refuse everything, so there we say what docker and podman do by default: any
// image is accepted, and every blob must have its digest.
bool has_policy() {
  const char* home = std::getenv("HOME");
  return (home && exists(std::string(home) + "/.config/containers/policy.json")) ||
         exists("/etc/containers/policy.json");
}

}  // namespace

Reference Reference::parse(const std::string& text) {
  auto colon = text.find(':');
  Reference reference{text.substr(0, colon),
                      colon == std::string::npos ? "" : text.substr(colon + 1)};
  auto known = kTransports.find(reference.transport);
  if (known == kTransports.end())
    throw Error(Code::kInvalid, "import image", text, "it does not say where from",
                "write docker://" + (text.empty() ? "NAME:TAG" : text) +
                    " for a registry, or oci:DIR:TAG, oci-archive:FILE, docker-archive:FILE, "
                    "dir:DIR, docker-daemon:NAME:TAG, "
                    "containers-storage:NAME:TAG");
  if (reference.details.empty())
    throw Error(Code::kInvalid, "import image", text, "the name is missing",
                "write it after the colon");
  if (known->second == Path::kNone) return reference;
  // skopeo runs in another directory than the one that the user means.
  std::string& details = reference.details;
  std::string path = known->second == Path::kWhole ? details : details.substr(0, details.find(':'));
  std::string absolute = std::filesystem::absolute(path).string();
  if (!exists(absolute))
    throw Error(Code::kNotFound, "import image", text, absolute + " does not exist",
                "check the path");
  details.replace(0, path.size(), absolute);
  return reference;
}

Reference Reference::pinned(const std::string& raw_manifest) const {
  if (!can_be_pinned() || details.find('@') != std::string::npos) return *this;
  // A colon before the last slash belongs to the registry's port.
  auto slash = details.rfind('/'), colon = details.rfind(':');
  bool tagged = colon != std::string::npos && (slash == std::string::npos || colon > slash);
  return {transport,
          (tagged ? details.substr(0, colon) : details) + "@sha256:" + sha256_hex(raw_manifest)};
}

std::string Reference::archive() const {
  if (transport != "oci-archive" && transport != "docker-archive") return {};
  std::string file = details.substr(0, details.find(':'));
  if (!std::filesystem::is_regular_file(file))
    throw Error(Code::kInvalid, "import image", text(), file + " is no file", "check the path");
  return file;
}

std::string Tools::run_tool(const std::vector<std::string>& argv, const std::string& remedy) const {
  ProcessOptions options;
  options.directory = staging_.path();
  options.descriptors = {{staging_.lock().get(), 3}};
  options.file_limit = limits_.bytes;
  RunResult result;
  try {
    result = run(argv, deadline_, options, {}, cancel_fd_);
  } catch (const Error& error) {
    if (error.code() == Code::kCancelled)
      throw Error(Code::kCancelled, "import image", reference_, "it was cancelled");
    if (error.code() == Code::kNotFound)
      throw Error(Code::kUnsupported, "import image", reference_, argv[0] + " is not installed",
                  "install skopeo and umoci, for instance with apt-get install skopeo umoci");
    throw;
  }
  if (result.ok()) return std::move(result.out);
  throw Error(result.timed_out ? Code::kTimeout : Code::kUnavailable, "import image", reference_,
              argv[0] + ": " + message_of(result), remedy);
}

std::vector<std::string> Tools::skopeo() const {
  std::vector<std::string> argv{"skopeo", "--tmpdir",        staging_.path(),    "--override-os",
                                "linux",  "--override-arch", host_architecture()};
  if (!has_policy()) argv.push_back("--insecure-policy");
  return argv;
}

std::string Tools::inspect(const Reference& reference) const {
  std::vector<std::string> argv = skopeo();
  argv.insert(argv.end(), {"inspect", "--raw", reference.text()});
  std::string raw =
      run_tool(argv, "check the name, and for a registry the network and the login (skopeo login)");
  json manifest = json::parse(raw, nullptr, false);
  if (!manifest.is_object() || manifest.value("schemaVersion", json()) != 2)
    throw Error(Code::kUnsupported, "import image", reference_,
                "it is neither an OCI nor a docker v2 image",
                "build or push it again with a current tool");
  return raw;
}

void Tools::copy(const Reference& reference) const {
  std::vector<std::string> argv = skopeo();
  argv.insert(argv.end(),
              {"copy", "--quiet", "--retry-times", "2", reference.text(), "oci:layout:image"});
  run_tool(argv, "check the image, the network and the free space of the data directory");
}

void Tools::unpack(const std::string& directory) const {
  run_tool({"umoci", "raw", "unpack", "--image", "layout:image", directory},
           "check the image's layers and the free space of the data directory");
}

}  // namespace thaw::image
