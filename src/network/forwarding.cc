#include "network/forwarding.h"

#include "util/error.h"
#include "util/file.h"
#include "util/log.h"

namespace thaw::network {
namespace {

constexpr const char* kForward4 = "/proc/sys/net/ipv4/ip_forward";
constexpr const char* kForward6 = "/proc/sys/net/ipv6/conf/all/forwarding";

// A forwarding host stops listening to router advertisements and would lose its own default route
// some minutes later. 2 means: listen all the same. Only interfaces that exist now and listen now;
// never the default, which replicas' interfaces would take.
void keep_listening_to_routers() {
  std::error_code ignored;
  for (const auto& entry :
       std::filesystem::directory_iterator("/proc/sys/net/ipv6/conf", ignored)) {
    const std::string name = entry.path().filename();
    if (name == "all" || name == "default" || name == "lo" || name.starts_with("thaw")) continue;
    const std::string path = entry.path().string() + "/accept_ra";
    try {
      if (trim(read_file(path)) != "1") continue;
      write_file(path, "2");
      log::info("set accept_ra=2, so that IPv6 forwarding does not cost the host its own route",
                {{"interface", name}});
    } catch (const Error& error) {
      // The interface may have gone meanwhile.
      log::warn("cannot keep an interface listening to router advertisements",
                {{"why", error.what()}});
    }
  }
}

void turn_on(const std::string& path, const std::string& what) {
  if (trim(read_file(path)) != "0") return;
  write_file(path, "1");
  log::info("turned on " + what + " forwarding, which replicas need to reach the outside",
            {{"file", path}});
}

}  // namespace

void enable_forwarding() {
  turn_on(kForward4, "IPv4");
  if (!exists(kForward6)) return;  // a host without IPv6
  if (trim(read_file(kForward6)) == "0") keep_listening_to_routers();
  turn_on(kForward6, "IPv6");
}

}  // namespace thaw::network
