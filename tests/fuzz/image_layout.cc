// An OCI image layout: index, manifest and configuration, under the names that their digests give.
#include <unistd.h>

#include "fuzz.h"
#include "image/layout.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  auto parts = fuzz::parts(data, size, 3);
  std::string blobs = fuzz::folder() + "/blobs/sha256/";
  thaw::make_directories(blobs);
  auto blob = [&](const std::string& text) {
    std::string digest = thaw::sha256_hex(text);
    thaw::write_file(blobs + digest, text);
    return digest;
  };
  // Where a digest is to be, the right one is put, or no input would come further.
  auto with_digest = [](const std::string& text, const std::string& digest) {
    std::string result = text;
    if (auto at = result.find("DIGEST"); at != std::string::npos)
      result.replace(at, 6, "sha256:" + digest);
    return result;
  };
  std::string config = blob(parts[2]), text = with_digest(parts[1], config);
  std::string manifest = blob(text);
  thaw::write_file(fuzz::folder() + "/index.json", with_digest(parts[0], manifest));
  fuzz::run([] { thaw::image::read_layout(fuzz::folder(), "fuzz"); });
  for (const std::string& name : {config, manifest}) ::unlink((blobs + name).c_str());
  return 0;
}
