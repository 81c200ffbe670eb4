// Pod specifications, YAML and JSON. What is accepted must be written and read back the same.
#include "pods/spec.h"
#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return fuzz::run([&] {
    thaw::state::PodSpec spec =
        thaw::pods::parse_spec({reinterpret_cast<const char*>(data), size}, "pod.yaml", "/srv");
    nlohmann::json json = thaw::pods::to_json(spec);
    if (!(thaw::pods::from_json(json) == spec)) abort();
  });
}
