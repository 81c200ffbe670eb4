// The pod specification as plain data. Parsed and checked by pods/spec.h, stored as JSON, read by
// everything above.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace thaw::state {

struct Mount {
  std::string source;  // absolute path on the host
  std::string target;  // absolute path in the container
  bool readonly = false;
  bool operator==(const Mount&) const = default;
};

// What a replica reads at /run/thaw/secrets/NAME: a file of the host, or a secret that the daemon
// keeps (pods/secret_store.h). It lies in memory, in no checkpoint, and is read anew at every
// start.
struct Secret {
  std::string name, file;  // file: absolute path on the host
  std::string secret;      // or the name of one that is kept
  bool operator==(const Secret&) const = default;
};

struct Port {
  std::uint16_t container = 0;
  std::uint16_t host = 0;             // 0: chosen by Thaw at deploy, shown by `thaw ls`
  std::string address = "127.0.0.1";  // where it is published
  enum class Protocol { kTcp, kHttp } protocol = Protocol::kTcp;
  // What the replica sees of its client: the gateway's address, the client's own, or the gateway's
  // and the client's own in a PROXY protocol header.
  enum class ClientAddress { kGateway, kKeep, kProxy } client_address = ClientAddress::kGateway;
  // After which a connection that moves no byte is ended; 0: never. Absent: the daemon's.
  std::optional<std::int64_t> idle_timeout_us;
  bool operator==(const Port&) const = default;
};

// Requests of the shared HTTP port that come to this pod.
struct Route {
  std::string host;        // lower case; "*.example.com" for what is below; empty: any
  std::string path = "/";  // and what is below
  std::uint16_t port = 0;  // of the container
  bool operator==(const Route&) const = default;
};

struct Resources {
  double cpu = 0;            // cores; 0: no limit
  std::uint64_t memory = 0;  // bytes; 0: no limit
  std::uint64_t pids = 1024;
  int gpu = 0;
  bool operator==(const Resources&) const = default;
};

struct Condition {
  enum class Kind {
    kHttp,
    kTcp,
    kExec,
    kFile,
    kLog,
    kPython,
    kNotify,
    kWorkers,
    kAfter,
    kAll,
    kAny
  };
  Kind kind = Kind::kAfter;
  std::uint16_t port = 0;           // http, tcp
  std::string path;                 // http: path; file: absolute path in the container
  int status = 200;                 // http
  std::vector<std::string> argv;    // exec
  std::string pattern;              // log: RE2 syntax
  std::string callable;             // python: "module:function"
  int workers = 0;                  // workers
  std::int64_t after_us = 0;        // after
  std::vector<Condition> children;  // all, any
  bool operator==(const Condition&) const = default;
};

struct CheckpointSpec {
  bool enabled = false;
  std::optional<Condition> when;
  std::int64_t timeout_us = 600'000'000;
  enum class OnTimeout { kServe, kFail } on_timeout = OnTimeout::kServe;
  // Programs to run in the container: before a dump, and in a restored replica before its gate
  // opens. Empty: none.
  std::vector<std::string> before_checkpoint, after_restore;
  bool verify = true;  // prove a new checkpoint before it is offered
  enum class Memory { kLazy, kBackground, kEager } memory = Memory::kLazy;
  bool operator==(const CheckpointSpec&) const = default;
};

// A program that hangs is killed, and another replica takes its place.
struct Alive {
  Condition probe;
  std::int64_t every_us = 10'000'000, timeout_us = 2'000'000;
  int failures = 3;  // in a row
  bool operator==(const Alive&) const = default;
};

// Pods of workspace W are named W--NAME (api/workspace.h).
inline constexpr std::string_view kWorkspaceMark = "--";

struct PodSpec {
  std::string name;
  std::string image;   // a reference; or
  std::string rootfs;  // an absolute directory
  std::vector<std::string> command, args;
  std::map<std::string, std::string> env;
  std::string workdir;  // empty: the image's
  std::string user;     // "uid[:gid]" or names of the image's /etc/passwd; empty: the image's
  std::vector<Mount> mounts;
  std::vector<Secret> secrets;
  std::vector<Port> ports;
  std::vector<Route> routes;
  enum class Network { kNat, kNone } network = Network::kNat;
  std::vector<std::string> links;  // pods that it reaches by name
  Resources resources;
  int min_replicas = 1;
  int max_replicas = 1;
  int standby = 0;           // restored ahead of time, frozen
  bool standby_warm = true;  // answered its probe before it was frozen; else stopped before its
                             // first instruction
  int concurrency = 100;     // connections for each replica before another is started
  bool hard = false;         // no replica gets more than that: the rest wait
  std::int64_t keep_warm_us = 60'000'000;  // without traffic, before the last one goes
  std::int64_t drain_us = 3'600'000'000;   // for the connections of one that scaling or a new
                                           // version takes away
  std::int64_t scale_down_delay_us = 30'000'000;  // with less traffic, before some go
  CheckpointSpec checkpoint;
  // What must hold before a replica gets traffic; where nothing says so: that one of its ports
  // listens (lifecycle/plan.h).
  std::optional<Condition> ready;
  std::optional<Alive> alive;
  // What becomes of a replica that only connections called for, when there are none: it is stopped,
  // frozen where it is, or dumped and ended, to go on where it was.
  enum class Idle { kStop, kFreeze, kCheckpoint } idle = Idle::kStop;
  std::int64_t stop_grace_us = 10'000'000;  // SIGTERM to SIGKILL
  bool operator==(const PodSpec&) const = default;
};

}  // namespace thaw::state
