// Images in the store: imported by skopeo and umoci, unpacked once, read-only and shared by all
// replicas.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "image/layer_size.h"
#include "util/clock.h"

namespace thaw::image {

struct Image {
  std::string id;         // sha256 hex of the manifest
  std::string reference;  // as the user named it
  std::string rootfs;     // unpacked directory, to be used as an overlay's lower
  std::uint64_t bytes = 0;
  nlohmann::json config =
      nlohmann::json::object();  // Env (array), Entrypoint, Cmd (arrays), WorkingDir, User,
                                 // ExposedPorts: as in the OCI image config
};

using Progress = std::function<void(const std::string& line)>;

// Imports `reference` (docker://, oci:, oci-archive:, docker-archive:, dir: — any transport of
// skopeo's that reads; a plain `name:tag` is an Error that says which transports there are) into
// `store_dir`/images/<id>/{rootfs,config.json}. Atomic: whole or absent. Importing what is there
// already is quick. Checks the layers' names before unpacking (umoci does) and refuses what is not
// an OCI or docker v2 image. cancel_fd as in util/process.h. `architecture` of the host. What is
// larger than `limits`, packed or unpacked, is an Error kExhausted before anything is unpacked.
Image import_image(const std::string& store_dir, const std::string& reference, Deadline deadline,
                   int cancel_fd = -1, const Progress& progress = {},
                   const UnpackLimits& limits = {});
// Unpacked images found in the store; broken leftovers of a killed import are removed.
std::vector<Image> list_images(const std::string& store_dir);
// Removes one image. kNotFound when there is none. The caller checks that nothing uses it.
void remove_image(const std::string& store_dir, const std::string& id);

// Identity of a rootfs directory: sha256 over each entry's relative path, type, mode, owner, size,
// mtime and link target, in sorted order. Reads no contents. Does not cross mounts. 10,000 entries
// in well under 100 ms.
std::string directory_digest(const std::string& directory);

// Who a process runs as: "user[:group]" with names looked up in the rootfs's own /etc/passwd and
// /etc/group (read safely below the rootfs, no symlink leaves it).
struct Identity {
  std::uint32_t uid = 0, gid = 0;
  std::vector<std::uint32_t> groups;  // supplementary
  std::string home = "/";
};
// Empty text is root. kInvalid names the user that the image does not know.
Identity resolve_user(const std::string& rootfs, const std::string& user);

}  // namespace thaw::image
