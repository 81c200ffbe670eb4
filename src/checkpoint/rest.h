// Memory at rest: a page image of a checkpoint that nobody uses lies compressed at
// rest/NAME.zst (store/seekable.h) instead of at images/NAME. Each image is at rest by itself;
// where both files are there, the plain one counts. The manifest stays as it was sealed: its
// digests are of the contents, and judge whatever is made of a compressed file.
//
// Whoever dies at any point leaves each image whole in one of its two places: a file gets its name
// when all of it is on the disk, and the other one goes after that.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/manifest.h"

namespace thaw::checkpoint {

// images/NAME -> rest/NAME.zst
std::string rest_name(const std::string& path);
// Whether the image (images/NAME) is there compressed only.
bool rests(const std::string& directory, const std::string& path);
// Whether anything of the checkpoint is at rest.
bool at_rest(const std::string& directory);

// Bytes of the page images as they lie on the disk, those at rest as long as they are compressed.
// nullopt: nothing of it is at rest.
std::optional<std::uint64_t> resting_memory(const std::string& directory);

// What compress_memory() has made, to be put in the place of the plain files.
struct Compressed {
  std::vector<std::pair<std::string, std::string>>
      files;                            // path of the image, its new file's state
  std::uint64_t plain = 0, stored = 0;  // bytes
};

// Compresses the page images beside themselves, reads what was written from the disk and compares
// it with the manifest. Images that would hardly become smaller are left as they are. Error
// kCorrupt when the contents are not what was sealed. `between`: called now and then; it may throw.
Compressed compress_memory(const Manifest& manifest, const std::string& directory,
                           const std::function<void()>& between);
// Takes the plain images away; tidy_rest() removes them. Nobody may be using them, or begin to.
// False, and nothing is done, when what has been made is not there any more.
bool settle_memory(const Compressed& made, const std::string& directory);
// Removes what compress_memory() or inflate_memory() left half done, or is not needed any more.
void tidy_rest(const std::string& directory);

// What must be on the disk more for inflate_memory(): for good, and for as long as it takes.
std::pair<std::uint64_t, std::uint64_t> inflated_bytes(const Manifest& manifest,
                                                       const std::string& directory);
// Puts the plain images in the place of those at rest, frames in parallel. What is wrong with their
// contents is for the Verifier to find; here they have the right size. Error kCorrupt when a frame
// is broken; all is as it was then.
void inflate_memory(const Manifest& manifest, const std::string& directory);

}  // namespace thaw::checkpoint
