// skopeo and umoci, and the references that they understand.
#pragma once

#include <string>
#include <vector>

#include "image/layer_size.h"
#include "image/staging.h"
#include "util/clock.h"
#include "util/process.h"

namespace thaw::image {

// transport:details, as skopeo names images. Paths on this machine are made absolute.
struct Reference {
  std::string transport, details;

  static Reference parse(
      const std::string& text);  // Error kInvalid, kNotFound for a path that does not exist
  std::string text() const { return transport + ":" + details; }
  // A registry's tag may move from one moment to the next; a digest cannot.
  bool can_be_pinned() const { return transport == "docker"; }
  Reference pinned(const std::string& raw_manifest) const;
  std::string archive() const;  // the file, when it is an archive of files
};

// The tools of one import. They work in the staging directory: layout/ is the OCI layout.
class Tools {
 public:
  // No file that they write may be larger than the limits say.
  Tools(std::string reference, const Staging& staging, Deadline deadline, int cancel_fd,
        const UnpackLimits& limits)
      : reference_(std::move(reference)),
        staging_(staging),
        deadline_(deadline),
        cancel_fd_(cancel_fd),
        limits_(limits) {}

  // The manifest (or list of them) as it is at its origin. Error when there is none, or it is not
  // an OCI or docker v2 one.
  std::string inspect(const Reference& reference) const;
  // Into layout/, for this host's platform.
  void copy(const Reference& reference) const;
  // All layers of layout/ into this directory, relative to the staging directory.
  void unpack(const std::string& directory) const;

 private:
  std::string run_tool(const std::vector<std::string>& argv, const std::string& remedy) const;
  std::vector<std::string> skopeo() const;
  std::string reference_;
  const Staging& staging_;
  Deadline deadline_;
  int cancel_fd_;
  UnpackLimits limits_;
};

}  // namespace thaw::image
