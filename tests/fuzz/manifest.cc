// A checkpoint's manifest: as somebody who has the key would write it, and as somebody who has not.
// Beside files that are right, so that inputs come to the checks of names, sizes and digests.
#include "checkpoint/manifest.h"
#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::string key(32, 'k');
  std::string text(reinterpret_cast<const char*>(data), size);
  std::string path = fuzz::folder() + "/manifest.json";
  static const nlohmann::json right = [] {
    for (const char* name : {"/images", "/fs.0", "/thaw"})
      thaw::make_directories(fuzz::folder() + name);
    for (const char* name : {"/images/core-1.img", "/images/pages-1.img", "/fs.0/a", "/thaw/b"})
      thaw::write_file(fuzz::folder() + name, name);
    thaw::checkpoint::Manifest manifest;
    manifest.layers = {"fs.0"};
    thaw::checkpoint::seal(manifest, fuzz::folder(), key);
    return thaw::checkpoint::to_json(manifest);
  }();
  thaw::write_file(path, text);
  fuzz::run([] {
    thaw::checkpoint::Verifier(key).verify(fuzz::folder());
    abort();  // a MAC was guessed
  });
  nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object()) return 0;
  json.erase("mac");
  nlohmann::json changed = right;
  changed.merge_patch(json);
  for (const nlohmann::json& one : {json, changed}) {
    try {
      // Bytes that are no UTF-8 cannot be written as JSON.
      thaw::checkpoint::write_signed(path, one, key);
    } catch (const nlohmann::json::exception&) {
      continue;
    }
    fuzz::run([] { thaw::checkpoint::Verifier(key).verify(fuzz::folder()); });
  }
  return 0;
}
