// An OCI image layout that skopeo wrote for us, read and checked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace thaw::image {

struct Layout {
  std::string id;                   // sha256 hex of the manifest
  std::vector<std::string> layers;  // their blobs, lowest first
  std::uint64_t layer_bytes = 0;    // compressed
  nlohmann::json config;            // the `config` object of the image configuration
};

// As Go and OCI name it: amd64.
std::string host_architecture();

// Reads a layout with one image in it. Digests of manifest and configuration are checked here;
// those of the layers were when they were copied. Throws kUnsupported for what is no container
// image of this host, kCorrupt for wrong digests, naming `reference`.
Layout read_layout(const std::string& directory, const std::string& reference);

}  // namespace thaw::image
