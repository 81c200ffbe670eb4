// Desired and observed state in one SQLite file (WAL). Survives kill -9 of the daemon at any
// moment. One connection guarded by a mutex: every function may be called from any thread. All
// throw Error.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace thaw::state {

// One deployed version of a pod.
struct PodRow {
  std::string name;
  std::int64_t version = 1;  // rises with each deploy that changes the spec
  nlohmann::json spec;       // what pods/spec.h writes
  std::string program;       // program part of the fingerprint, sha256 hex
  std::int64_t desired = 0;  // replicas wanted
  bool stopped = false;      // `thaw stop`: wanted 0 until started or scaled again
  std::int64_t created_us = 0, updated_us = 0;  // wall clock
};

struct PhaseRow {
  std::string name;
  std::int64_t start_us = 0,
               end_us = 0;  // since the replica was asked for (monotonic); end 0: not ended yet
};

// As the API and events show them: [{name, start_us, end_us}].
nlohmann::json to_json(const std::vector<PhaseRow>& phases);

struct ReplicaRow {
  std::string id;  // 12 hex digits
  std::string pod;
  std::int64_t version = 0;
  std::string slot;          // name of the slot it lives in; empty when it has none any more
  std::string state;         // a name of lifecycle/table.h
  std::string started_from;  // "cold" or the checkpoint's id
  std::string intent;        // "" or "stop", written before any signal is sent
  std::string outcome;       // how a restore ended, of DESIGN.md's table; "" before
  std::string reason;        // one sentence for people
  std::string hostname, address, address6;
  std::int64_t pid = 0;          // of the container's init, host's number
  std::optional<int> exit_code;  // as a shell reports it
  bool gate_open = false;
  bool proof = false;  // a replica that only proves a checkpoint
  std::int64_t created_us = 0, ready_us = 0, ended_us = 0;  // wall clock, 0: not yet
  std::int64_t requested_mono_us = 0;                       // phases count from here
  std::vector<PhaseRow> phases;
};

struct CheckpointRow {
  std::string id;           // 12 hex digits
  std::string pod;          // that made it
  std::string fingerprint;  // sha256 hex
  std::string status;  // creating, sealed, verifying, available, failed, restore_failed, deleted
  std::string reason;  // for failed and restore_failed
  std::int64_t created_us = 0, updated_us = 0;
  std::uint64_t bytes = 0, memory_bytes = 0;
  std::int64_t freeze_us = 0, dump_us = 0;
  std::int64_t restores = 0, failures_in_a_row = 0;
  std::string replica;  // dumped from
  // Of its files, not of the database: lifecycle::Checkpoints::look() tells.
  std::uint64_t stored_bytes = 0;  // as they lie on the disk
  bool compressed = false;         // its memory is at rest
};

struct EventRow {
  std::int64_t id = 0;  // rises by one, never reused
  std::int64_t time_us = 0;
  std::string type;  // e.g. replica.state, checkpoint.available, replica.fallback, pod.deployed
  std::string pod, replica, checkpoint;
  std::string message;
  nlohmann::json data = nlohmann::json::object();
};

struct ImageRow {
  std::string id;         // manifest digest, sha256 hex, or of a directory
  std::string reference;  // as the user named it
  std::uint64_t bytes = 0;
  std::int64_t created_us = 0;
  nlohmann::json config =
      nlohmann::json::object();  // of the OCI image: Env, Entrypoint, Cmd, WorkingDir, User
};

class Database {
 public:
  // Creates or migrates the file. kCorrupt when it is not ours or is damaged, kUnsupported when it
  // is of a newer Thaw.
  explicit Database(const std::string& path);
  ~Database();
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;

  // Runs `work` in one transaction (nested calls join it); rolls back when it throws. Other
  // threads' calls wait meanwhile; its events are seen after the commit. Two writes in one
  // transaction cost about as much as one alone.
  void transaction(const std::function<void()>& work);

  void put_pod(const PodRow& pod);
  std::optional<PodRow> pod(const std::string& name);
  std::vector<PodRow> pods();
  void remove_pod(const std::string& name);

  // Whole row, phases too; but an empty intent does not take back one that was set.
  void put_replica(const ReplicaRow& replica);
  std::optional<ReplicaRow> replica(const std::string& id);
  std::vector<ReplicaRow> replicas(const std::string& pod = {});  // oldest first
  // The pod of the living replica that has this unique address; "": there is none.
  std::string pod_at(const std::string& address);
  void remove_replica(const std::string& id);
  // Keeps the newest `keep` ended replicas of each pod, and as many of all pods that are gone; the
  // ids of those that it has removed.
  std::vector<std::string> prune_replicas(int keep);
  // kNotFound when there is no such replica.
  void set_intent(const std::string& id, const std::string& intent);

  void put_checkpoint(const CheckpointRow& checkpoint);
  std::optional<CheckpointRow> checkpoint(const std::string& id);
  std::vector<CheckpointRow> checkpoints(const std::string& pod = {},
                                         const std::string& fingerprint = {});  // newest first

  // And how long it is not tried.
  void remove_checkpoint(const std::string& id);

  // The dump lease of a fingerprint: at most one holder; the token rises with every acquisition and
  // fences late holders. nullopt when somebody else holds it and it has not expired (wall clock).
  std::optional<std::int64_t> acquire_lease(const std::string& name, const std::string& holder,
                                            std::int64_t ttl_us);
  // Not released, and nobody else has taken it since. Time alone takes it from nobody.
  bool lease_holds(const std::string& name, std::int64_t token);
  void release_lease(const std::string& name, std::int64_t token);

  // For a daemon that starts: no lease's holder is alive. Back-offs of what is gone go, too.
  void forget_the_dead();

  // Back-off of failed dumps, by fingerprint.
  struct BackoffRow {
    int failures = 0;
    std::int64_t until_us = 0;
    std::string reason;
  };
  std::optional<BackoffRow> backoff(const std::string& fingerprint);
  void put_backoff(const std::string& fingerprint, const BackoffRow& row);
  void clear_backoff(const std::string& fingerprint);

  void put_image(const ImageRow& image);
  std::vector<ImageRow> images();
  std::optional<ImageRow> image(const std::string& id_or_reference);
  void remove_image(const std::string& id);

  // Appends, sets the row's id and time, wakes the waiters of this process. The newest 20,000 are
  // kept.
  EventRow append_event(EventRow event);
  // Events with id > after, oldest first, at most `limit`; filters when not empty.
  std::vector<EventRow> events(std::int64_t after, int limit, const std::string& pod = {},
                               const std::string& replica = {});
  std::int64_t last_event_id();
  // Waits until an event newer than `after` exists or the time is up or close_waiters() was called.
  // True when one exists.
  bool wait_events(std::int64_t after, std::int64_t timeout_us);
  void close_waiters();

  std::string setting(const std::string& key);  // "" when absent
  void put_setting(const std::string& key, const std::string& value);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace thaw::state
