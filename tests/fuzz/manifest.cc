// A checkpoint's manifest: as somebody who has the key would write it, and as somebody who has not.
#include "checkpoint/manifest.h"
#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::string key(32, 'k');
  std::string text(reinterpret_cast<const char*>(data), size);
  std::string path = fuzz::folder() + "/manifest.json";
  thaw::write_file(path, text);
  fuzz::run([] {
    thaw::checkpoint::Verifier(key).verify(fuzz::folder());
    abort();  // a MAC was guessed
  });
  nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object()) return 0;
  json.erase("mac");
  try {
    // Bytes that are no UTF-8 cannot be written as JSON.
    thaw::checkpoint::write_signed(path, json, key);
  } catch (const nlohmann::json::exception&) {
    return 0;
  }
  return fuzz::run([] { thaw::checkpoint::Verifier(key).verify(fuzz::folder()); });
}
