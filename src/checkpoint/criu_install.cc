#include "checkpoint/criu_install.h"

#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/statfs.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include <linux/magic.h>

#include "util/error.h"
#include "util/file.h"
#include "util/log.h"
#include "util/private_tmpfs.h"
#include "util/process.h"

namespace thaw::checkpoint {
namespace {

constexpr const char* kDefaultHome = "/usr/local/lib/thaw/criu";
constexpr const char* kPreload = "/lib/thaw-prlimit.so";  // scripts/setup builds it
constexpr const char* kCache = "/run/criu.kdat";
constexpr const char* kCacheOwner = "/run/criu.kdat.thaw";
constexpr const char* kRemedy =
    "install CRIU 4.2 or newer: run scripts/setup, or give its folder with --criu";

bool has_capability(int number) { return ::prctl(PR_CAPBSET_READ, number, 0, 0, 0) == 1; }

std::string version_in(const std::string& text) {
  auto at = text.find("Version: ");
  if (at == std::string::npos) return {};
  return text.substr(at + 9, text.find_first_of("\n ", at + 9) - at - 9);
}

}  // namespace

CriuInstall find_criu(const std::string& given) {
  std::string home = given;
  if (home.empty() && std::getenv("THAW_CRIU_HOME")) home = std::getenv("THAW_CRIU_HOME");
  if (home.empty() && exists(std::string(kDefaultHome) + "/sbin/criu")) home = kDefaultHome;
  CriuInstall install;
  bool helped = !has_capability(CAP_SYS_RESOURCE);
  if (home.empty()) {
    std::string preload = std::string(kDefaultHome) + kPreload;
    if (helped && exists(preload))
      install.command = {"/usr/bin/env", "LD_PRELOAD=" + preload, "criu"};
    else
      install.command = {"criu"};
    RunResult result;
    try {
      result = run({"criu", "--version"}, Deadline::after_ms(10'000));
    } catch (const Error&) {
      throw Error(Code::kUnsupported, "find", "criu", "it is not installed", kRemedy);
    }
    install.version = version_in(result.out);
  } else {
    std::string binary = home + "/sbin/criu", loader = home + "/lib/ld-linux-x86-64.so.2";
    if (!exists(binary))
      throw Error(Code::kUnsupported, "find", binary, "there is no such file", kRemedy);
    if (exists(loader)) {
      install.command = {loader, "--library-path", home + "/lib"};
      std::string preload = home + kPreload;
      if (helped && exists(preload))
        install.command.insert(install.command.end(), {"--preload", preload});
    }
    install.command.push_back(binary);
    install.version = exists(home + "/VERSION") ? trim(read_file(home + "/VERSION")) : "";
  }
  int major = 0, minor = 0;
  if (std::sscanf(install.version.c_str(), "%d.%d", &major, &minor) != 2 || major < 4 ||
      (major == 4 && minor < 2))
    throw Error(Code::kUnsupported, "use", "criu " + install.version,
                "it is older than 4.2 and fails on current kernels", kRemedy);
  return install;
}

void prime_kernel_cache(const CriuInstall& criu) {
  struct statfs info;
  if (::statfs("/run", &info) == 0 && info.f_type == TMPFS_MAGIC)
    return;  // CRIU keeps it by itself
  struct utsname kernel;
  ::uname(&kernel);
  std::string owner = trim(read_file("/proc/sys/kernel/random/boot_id")) + " " + kernel.release +
                      " " + kernel.version + " " + criu.version;
  if (exists(kCache) && exists(kCacheOwner) && trim(read_file(kCacheOwner)) == trim(owner)) return;
  std::string cache;
  with_private_tmpfs("/run", [&] {
    std::vector<std::string> argv = criu.command;
    argv.push_back("check");
    RunResult result = run(argv, Deadline::after_ms(30'000));
    // `check` may fail for features that Thaw does not need; what counts is that the cache was
    // written.
    if (!exists(kCache))
      throw Error(Code::kUnsupported, "let CRIU examine the kernel", "criu check", result.why());
    cache = read_file(kCache);
  });
  write_file_atomic(kCache, cache);
  write_file_atomic(kCacheOwner, owner);
  log::info("CRIU's knowledge of the kernel was cached", {{"file", kCache}});
}

}  // namespace thaw::checkpoint
