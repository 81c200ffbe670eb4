// What one container is made of, the same for a cold start and a restore: paths of its slot,
// mounts, OCI configuration. The mounts live in the shim's private mount namespace, so that they
// end with the shim and the container, however those end.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "state/spec.h"
#include "util/fd.h"

namespace thaw::runtime {

// Folders and files below a slot's directory.
struct SlotPaths {
  std::string dir;
  std::string rootfs() const { return dir + "/rootfs"; }  // the overlay, as the container sees it
  std::string upper() const { return dir + "/fs/upper"; }
  std::string work() const { return dir + "/fs/work"; }
  std::string dev() const { return dir + "/dev"; }          // a tmpfs with the standard devices
  std::string secrets() const { return dir + "/secrets"; }  // a tmpfs, only where there are any
  std::string shm() const { return dir + "/shm"; }          // a tmpfs
  std::string thaw() const { return dir + "/thaw"; }        // /run/thaw
  std::string etc() const { return dir + "/etc"; }          // hosts, hostname, resolv.conf
  std::string empty() const { return dir + "/empty"; }      // what masked directories show
  std::string bundle() const { return dir + "/bundle"; }
  std::string runc_root() const { return dir + "/runc"; }
  std::string stage() const { return dir + "/stage"; }  // a dump's images, in memory, for a moment
  std::string criu_work() const { return dir + "/criu"; }
  std::string socket() const { return dir + "/shim.sock"; }
  std::string touched() const { return dir + "/touched"; }  // ranges of memory, for the record
  std::string notify() const { return dir + "/notify"; }  // datagrams of NOTIFY_SOCKET, a line each
};

struct ContainerSpec {
  std::vector<std::string> argv;
  std::vector<std::string> env;  // KEY=VALUE
  std::string cwd = "/";
  std::uint32_t uid = 0, gid = 0;
  std::vector<std::uint32_t> groups;
  std::string hostname;
  std::string identity;             // JSON text of /run/thaw/identity.json; empty: it has none yet
  std::vector<std::string> lowers;  // overlay lower directories, topmost first
  std::vector<state::Mount> mounts;
  std::vector<state::Secret> secrets;
  std::string
      secrets_key;  // the file of the key that those with a name of their own are sealed with
  state::Resources resources;
  std::vector<std::pair<std::string, std::string>> hosts;  // address and name, for /etc/hosts
  bool cut_off = false;                                    // reaches nothing outside
};
nlohmann::json to_json(const ContainerSpec& spec);
ContainerSpec container_from_json(const nlohmann::json& json);

// A bind mount that is not part of a checkpoint but supplied anew at every restore. `key` names it
// in CRIU's images.
struct Bind {
  std::string key, source, target;
  bool readonly = false;
};
// Every bind of the container in mount order. `cgroup_mount` empty or the group's own directory on
// a v2-only host.
std::vector<Bind> binds(const ContainerSpec& spec, const SlotPaths& paths,
                        const std::string& cgroup_mount);

// Mounts and fills everything that does not depend on the pod: /dev, /dev/shm, empty folders. Once,
// when the slot is prepared.
void prepare_slot_mounts(const SlotPaths& paths);
// Mounts the overlay and writes hosts, hostname, resolv.conf and identity.json.
void prepare_rootfs(const ContainerSpec& spec, const SlotPaths& paths);
// Who the replica is: hostname and hosts, in place, where the container has them mounted, and,
// unless it is empty, identity.json.
void write_names(const ContainerSpec& spec, const SlotPaths& paths);
// A file of /run/thaw, whatever has its name now. Nothing that the container put there is followed.
void write_inside(const SlotPaths& paths, const std::string& name, std::string_view text);
// What a secret's file holds now; one that is kept (`secret` is its name) is sealed. kUnavailable
// without its key, kCorrupt when it was changed.
std::string secret_value(const state::Secret& secret, const std::string& key_file);
// The secrets as their files hold them now; the container sees each whole, the old one or the new.
void refresh_secrets(const ContainerSpec& spec, const SlotPaths& paths);

// The OCI runtime configuration for the cold start. Namespaces: pid and mount are new, network, uts
// and ipc are the caller's.
nlohmann::json oci_config(const ContainerSpec& spec, const SlotPaths& paths,
                          const std::vector<Bind>& binds, const std::string& cgroup_path);

// Hides the paths that podman hides by default. Works on a created, not yet started container, from
// outside: files show /dev/null, directories an empty read-only one. Bind mounts, not tmpfs as the
// runtime would make: CRIU need not save them.
void mask_paths(int init_pid, const SlotPaths& paths);

// A mount of the container that CRIU must be told of. Found by comparing the container's mounts
// with what we made.
struct ExternalMount {
  std::string target;  // as the container's mount table says it
  std::string key;     // of the Bind, or "mask-file", "mask-directory"
};
std::vector<ExternalMount> external_mounts(int init_pid, const SlotPaths& paths,
                                           const std::vector<Bind>& binds);
// The path that stands for `key` in this slot, with the flags that the mount had at the cold start.
// kNotFound when the container has no such bind (any more).
std::string external_source(const std::string& key, const SlotPaths& paths,
                            const std::vector<Bind>& binds);

// Capabilities of a container's process, bit mask by capability number: podman's default set.
std::uint64_t default_capabilities();

// What a container's process may use and how soon it is killed for memory: not what the daemon's
// unit has for itself.
struct ProcessLimits {
  std::uint64_t descriptors = 0, locked_bytes = 0;
  int oom_score_adj = 0;
};
ProcessLimits process_limits();

// A bind of `path` that is mounted nowhere yet, with MOUNT_ATTR_* set.
Fd detached_mount(const std::string& path, std::uint64_t attributes);

}  // namespace thaw::runtime
