#include "state/database.h"

#include <fcntl.h>
#include <sys/stat.h>

#include "state/schema.h"
#include "state/sqlite.h"
#include "util/clock.h"
#include "util/error.h"
#include "util/fd.h"
#include "util/log.h"

namespace thaw::state {
namespace {

using nlohmann::json;

constexpr std::int64_t kEventsKept = 20'000;
// How many events are appended between two rounds of pruning, and how many are deleted while others
// wait.
constexpr std::int64_t kPruneEvery = 512;
constexpr std::int64_t kPruneAtOnce = 64;
constexpr int kCheckpointPages = 1000;

// Text from the outside, such as a program's output, need not be UTF-8; an event must not fail for
// that.
std::string dump(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

json parse(const std::string& text, const char* what, const std::string& of) {
  json value = json::parse(text, nullptr, false);
  if (value.is_discarded())
    throw Error(Code::kCorrupt, std::string("read the ") + what + " of", of,
                "the database holds no valid JSON there");
  return value;
}

PodRow pod_of(Query& query) {
  PodRow row;
  row.name = query.text();
  row.version = query.integer();
  row.spec = parse(query.text(), "spec", row.name);
  row.program = query.text();
  row.desired = query.integer();
  row.stopped = query.flag();
  row.created_us = query.integer();
  row.updated_us = query.integer();
  return row;
}

json phases_json(const std::vector<PhaseRow>& phases) {
  json list = json::array();
  for (auto& phase : phases)
    list.push_back(json::array({phase.name, phase.start_us, phase.end_us}));
  return list;
}

ReplicaRow replica_of(Query& query) {
  ReplicaRow row;
  row.id = query.text();
  row.pod = query.text();
  row.version = query.integer();
  row.slot = query.text();
  row.state = query.text();
  row.started_from = query.text();
  row.intent = query.text();
  row.outcome = query.text();
  row.reason = query.text();
  row.hostname = query.text();
  row.address = query.text();
  row.address6 = query.text();
  row.pid = query.integer();
  row.exit_code = query.optional_integer();
  row.gate_open = query.flag();
  row.proof = query.flag();
  row.created_us = query.integer();
  row.ready_us = query.integer();
  row.ended_us = query.integer();
  row.requested_mono_us = query.integer();
  try {
    for (auto& phase : parse(query.text(), "phases", row.id))
      row.phases.push_back({phase.at(0), phase.at(1), phase.at(2)});
  } catch (const json::exception& error) {
    throw Error(Code::kCorrupt, "read the phases of", row.id, error.what());
  }
  return row;
}

CheckpointRow checkpoint_of(Query& query) {
  CheckpointRow row;
  row.id = query.text();
  row.pod = query.text();
  row.fingerprint = query.text();
  row.status = query.text();
  row.reason = query.text();
  row.created_us = query.integer();
  row.updated_us = query.integer();
  row.bytes = static_cast<std::uint64_t>(query.integer());
  row.memory_bytes = static_cast<std::uint64_t>(query.integer());
  row.freeze_us = query.integer();
  row.dump_us = query.integer();
  row.restores = query.integer();
  row.failures_in_a_row = query.integer();
  row.replica = query.text();
  return row;
}

EventRow event_of(Query& query) {
  EventRow row;
  row.id = query.integer();
  row.time_us = query.integer();
  row.type = query.text();
  row.pod = query.text();
  row.replica = query.text();
  row.checkpoint = query.text();
  row.message = query.text();
  row.data = parse(query.text(), "data of event", std::to_string(row.id));
  return row;
}

std::string text_of(Query& query) { return query.text(); }

ImageRow image_of(Query& query) {
  ImageRow row;
  row.id = query.text();
  row.reference = query.text();
  row.bytes = static_cast<std::uint64_t>(query.integer());
  row.created_us = query.integer();
  row.config = parse(query.text(), "configuration of image", row.id);
  return row;
}

template <typename Row>
std::vector<Row> all(Query& query, Row (*row_of)(Query&)) {
  std::vector<Row> rows;
  while (query.step()) rows.push_back(row_of(query));
  return rows;
}

template <typename Row>
std::optional<Row> first(Query& query, Row (*row_of)(Query&)) {
  if (!query.step()) return std::nullopt;
  return row_of(query);
}

// Created here and not by SQLite, so that it is never readable by others; the log files beside it
// take over its mode.
std::string private_file(const std::string& path) {
  Fd file = Fd::open(path, O_RDWR | O_CREAT, 0600);
  struct stat info;
  check(::fstat(file.get(), &info), "stat", path);
  if (!S_ISREG(info.st_mode))
    throw Error(Code::kInvalid, "open the database", path, "it is not a regular file");
  return path;
}

}  // namespace

json to_json(const std::vector<PhaseRow>& phases) {
  json list = json::array();
  for (const auto& phase : phases)
    list.push_back({{"name", phase.name}, {"start_us", phase.start_us}, {"end_us", phase.end_us}});
  return list;
}

struct Database::Impl {
  explicit Impl(const std::string& file) : path(private_file(file)), db(path) {
    open_schema(db, path);
    published = newest_event();
    db.on_commit([this](int pages) {
      if (pages < log_pages) next_move = kCheckpointPages;  // it has begun again
      log_pages = pages;
      if (pages < next_move) return;
      // A reader may have kept some of it from being moved: not again for the next commit.
      next_move = pages + kCheckpointPages;
      wake_helper(log_is_long);
    });
    helper = std::jthread([this](std::stop_token stop) { help(stop); });
  }

  ~Impl() {
    helper.request_stop();
    work_arrived.notify_all();
    helper.join();
  }

  std::int64_t newest_event() {
    Query query = db.query("SELECT coalesce(max(id), 0) FROM events");
    query.step();
    return query.integer();
  }

  // Waiters learn of an event only when it is committed.
  void publish() {
    if (!appended) return;
    {
      std::lock_guard lock(event_mutex);
      published = appended;
    }
    appended = 0;
    event_arrived.notify_all();
    if (published - pruned_at >= kPruneEvery) {
      pruned_at = published;
      wake_helper(events_are_many);
    }
  }

  void wake_helper(bool& what) {
    {
      std::lock_guard lock(helper_mutex);
      what = true;
    }
    work_arrived.notify_one();
  }

  // What would make a caller wait: moving the write-ahead log into the database, and deleting old
  // events.
  void help(std::stop_token stop) {
    std::unique_lock lock(helper_mutex);
    for (;;) {
      work_arrived.wait(lock, stop, [this] { return log_is_long || events_are_many; });
      if (stop.stop_requested()) return;
      bool checkpoint = std::exchange(log_is_long, false),
           prune = std::exchange(events_are_many, false);
      lock.unlock();
      try {
        if (prune) prune_events(stop);
        if (checkpoint) move_log();
      } catch (const std::exception& error) {
        log::warn("database upkeep failed; it is tried again later", {{"error", describe(error)}});
      }
      lock.lock();
    }
  }

  void prune_events(const std::stop_token& stop) {
    for (int deleted = 1; deleted && !stop.stop_requested();) {
      std::lock_guard lock(mutex);
      std::int64_t keep_from = newest_event() - kEventsKept + 1;
      deleted = (db.query("DELETE FROM events WHERE id IN (SELECT id FROM events WHERE id < ? "
                          "ORDER BY id LIMIT ?)")
                 << keep_from << kPruneAtOnce)
                    .run();
    }
  }

  void move_log() {
    // A connection of its own: callers go on meanwhile.
    Connection log(path);
    log.checkpoint();
    std::lock_guard lock(mutex);
    // The log begins again only when all of it was moved, also what they wrote meanwhile.
    if (!log.checkpoint()) return;
    // The first commit after that starts the log again, which syncs its header to the disk: better
    // here than in a restore.
    (db.query("INSERT INTO settings VALUES ('database.log_moved', ?) ON CONFLICT (key) DO UPDATE "
              "SET value = excluded.value")
     << format_wall(wall_us()))
        .run();
  }

  std::string path;
  Connection db;
  std::recursive_mutex mutex;  // guards db and what follows; recursive since work in a transaction
                               // calls us
  int log_pages = 0, next_move = kCheckpointPages;  // of the write-ahead log
  bool in_transaction = false;
  std::int64_t appended = 0;  // newest event not yet published
  std::int64_t pruned_at = 0;

  std::mutex event_mutex;  // guards published (written also under `mutex`) and closed
  std::condition_variable event_arrived;
  std::int64_t published = 0;
  bool closed = false;

  std::mutex helper_mutex;  // guards the two flags
  std::condition_variable_any work_arrived;
  bool log_is_long = false, events_are_many = false;
  std::jthread helper;
};

Database::Database(const std::string& path) : impl_(std::make_unique<Impl>(path)) {}

Database::~Database() { close_waiters(); }

void Database::transaction(const std::function<void()>& work) {
  std::lock_guard lock(impl_->mutex);
  if (impl_->in_transaction) {
    work();
    return;
  }
  impl_->db.query("BEGIN IMMEDIATE").run();
  impl_->in_transaction = true;
  try {
    work();
    impl_->db.query("COMMIT").run();
  } catch (...) {
    impl_->in_transaction = false;
    impl_->appended = 0;
    try {
      impl_->db.query("ROLLBACK").run();
    } catch (const Error&) {
      // Some errors, such as a full disk, have rolled it back already; the first error is the one
      // to tell.
    }
    throw;
  }
  impl_->in_transaction = false;
  impl_->publish();
}

// --- pods
// -----------------------------------------------------------------------------------------------------------

void Database::put_pod(const PodRow& pod) {
  std::string spec = dump(pod.spec);
  std::lock_guard lock(impl_->mutex);
  (impl_->db.query(
       "INSERT INTO pods (name, version, spec, program, desired, stopped, created_us, updated_us)"
       " VALUES (?,?,?,?,?,?,?,?) ON CONFLICT (name) DO UPDATE SET version = excluded.version, "
       "spec = excluded.spec,"
       " program = excluded.program, desired = excluded.desired, stopped = excluded.stopped,"
       " created_us = excluded.created_us, updated_us = excluded.updated_us")
   << pod.name << pod.version << spec << pod.program << pod.desired << std::int64_t{pod.stopped}
   << pod.created_us << pod.updated_us)
      .run();
}

#define THAW_POD_COLUMNS "name, version, spec, program, desired, stopped, created_us, updated_us"

std::optional<PodRow> Database::pod(const std::string& name) {
  std::lock_guard lock(impl_->mutex);
  return first(impl_->db.query("SELECT " THAW_POD_COLUMNS " FROM pods WHERE name = ?") << name,
               pod_of);
}

std::vector<PodRow> Database::pods() {
  std::lock_guard lock(impl_->mutex);
  Query query = impl_->db.query("SELECT " THAW_POD_COLUMNS " FROM pods ORDER BY name");
  return all(query, pod_of);
}

void Database::remove_pod(const std::string& name) {
  std::lock_guard lock(impl_->mutex);
  (impl_->db.query("DELETE FROM pods WHERE name = ?") << name).run();
}

// --- replicas
// -------------------------------------------------------------------------------------------------------

#define THAW_REPLICA_COLUMNS                                                                  \
  "id, pod, version, slot, state, started_from, intent, outcome, reason, hostname, address, " \
  "address6, pid, exit_code, "                                                                \
  "gate_open, proof, created_us, ready_us, ended_us, requested_mono_us, phases"

void Database::put_replica(const ReplicaRow& row) {
  std::string phases = dump(phases_json(row.phases));
  std::lock_guard lock(impl_->mutex);
  // An intent is never taken back: whoever writes a row read before the intent was set must not
  // undo it.
  (impl_->db.query(
       "INSERT INTO replicas (" THAW_REPLICA_COLUMNS
       ") VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
       " ON CONFLICT (id) DO UPDATE SET pod = excluded.pod, version = excluded.version, slot = "
       "excluded.slot,"
       " state = excluded.state, started_from = excluded.started_from,"
       " intent = CASE excluded.intent WHEN '' THEN intent ELSE excluded.intent END, outcome = "
       "excluded.outcome,"
       " reason = excluded.reason, hostname = excluded.hostname, address = excluded.address,"
       " address6 = excluded.address6, pid = excluded.pid, exit_code = excluded.exit_code,"
       " gate_open = excluded.gate_open, proof = excluded.proof, created_us = excluded.created_us,"
       " ready_us = excluded.ready_us, ended_us = excluded.ended_us,"
       " requested_mono_us = excluded.requested_mono_us, phases = excluded.phases")
   << row.id << row.pod << row.version << row.slot << row.state << row.started_from << row.intent
   << row.outcome << row.reason << row.hostname << row.address << row.address6 << row.pid
   << row.exit_code << std::int64_t{row.gate_open} << std::int64_t{row.proof} << row.created_us
   << row.ready_us << row.ended_us << row.requested_mono_us << phases)
      .run();
}

std::optional<ReplicaRow> Database::replica(const std::string& id) {
  std::lock_guard lock(impl_->mutex);
  return first(impl_->db.query("SELECT " THAW_REPLICA_COLUMNS " FROM replicas WHERE id = ?") << id,
               replica_of);
}

std::vector<ReplicaRow> Database::replicas(const std::string& pod) {
  std::lock_guard lock(impl_->mutex);
  return all(impl_->db.query("SELECT " THAW_REPLICA_COLUMNS
                             " FROM replicas WHERE ?1 = '' OR pod = ?1 ORDER BY created_us, number")
                 << pod,
             replica_of);
}

std::string Database::pod_at(const std::string& address) {
  std::lock_guard lock(impl_->mutex);
  return first(impl_->db.query("SELECT pod FROM replicas WHERE ended_us = 0 AND address = ?")
                   << address,
               text_of)
      .value_or("");
}

void Database::remove_replica(const std::string& id) {
  std::lock_guard lock(impl_->mutex);
  (impl_->db.query("DELETE FROM replicas WHERE id = ?") << id).run();
}

std::vector<std::string> Database::prune_replicas(int keep) {
  std::lock_guard lock(impl_->mutex);
  return all(
      impl_->db.query(
          "DELETE FROM replicas WHERE number IN (SELECT number FROM (SELECT number, row_number() "
          "OVER (PARTITION BY CASE WHEN pod IN (SELECT name FROM pods) THEN pod ELSE '' END ORDER "
          "BY ended_us DESC, number DESC) AS age FROM replicas WHERE ended_us != 0)"
          " WHERE age > ?) RETURNING id")
          << std::int64_t{keep},
      text_of);
}

void Database::set_intent(const std::string& id, const std::string& intent) {
  std::lock_guard lock(impl_->mutex);
  int changed =
      (impl_->db.query("UPDATE replicas SET intent = ? WHERE id = ?") << intent << id).run();
  if (!changed)
    throw Error(Code::kNotFound, "write down the intent for replica", id,
                "there is no such replica");
}

// --- checkpoints
// ----------------------------------------------------------------------------------------------------

#define THAW_CHECKPOINT_COLUMNS                                                                    \
  "id, pod, fingerprint, status, reason, created_us, updated_us, bytes, memory_bytes, freeze_us, " \
  "dump_us, restores, "                                                                            \
  "failures_in_a_row, replica"

void Database::put_checkpoint(const CheckpointRow& row) {
  std::lock_guard lock(impl_->mutex);
  (impl_->db.query(
       "INSERT INTO checkpoints (" THAW_CHECKPOINT_COLUMNS
       ") VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT (id) DO UPDATE SET pod = excluded.pod,"
       " fingerprint = excluded.fingerprint, status = excluded.status, reason = excluded.reason,"
       " created_us = excluded.created_us, updated_us = excluded.updated_us, bytes = "
       "excluded.bytes,"
       " memory_bytes = excluded.memory_bytes, freeze_us = excluded.freeze_us, dump_us = "
       "excluded.dump_us,"
       " restores = excluded.restores, failures_in_a_row = excluded.failures_in_a_row, replica = "
       "excluded.replica")
   << row.id << row.pod << row.fingerprint << row.status << row.reason << row.created_us
   << row.updated_us << static_cast<std::int64_t>(row.bytes)
   << static_cast<std::int64_t>(row.memory_bytes) << row.freeze_us << row.dump_us << row.restores
   << row.failures_in_a_row << row.replica)
      .run();
}

std::optional<CheckpointRow> Database::checkpoint(const std::string& id) {
  std::lock_guard lock(impl_->mutex);
  return first(impl_->db.query("SELECT " THAW_CHECKPOINT_COLUMNS " FROM checkpoints WHERE id = ?")
                   << id,
               checkpoint_of);
}

std::vector<CheckpointRow> Database::checkpoints(const std::string& pod,
                                                 const std::string& fingerprint) {
  std::lock_guard lock(impl_->mutex);
  return all(impl_->db.query(
                 "SELECT " THAW_CHECKPOINT_COLUMNS " FROM checkpoints WHERE (?1 = '' OR pod = ?1)"
                 " AND (?2 = '' OR fingerprint = ?2) ORDER BY created_us DESC, number DESC")
                 << pod << fingerprint,
             checkpoint_of);
}

void Database::remove_checkpoint(const std::string& id) {
  transaction([&] {
    (impl_->db.query("DELETE FROM checkpoints WHERE id = ?") << id).run();
    clear_backoff("restore-" + id);
  });
}

// --- leases and back-off
// --------------------------------------------------------------------------------------------

std::optional<std::int64_t> Database::acquire_lease(const std::string& name,
                                                    const std::string& holder,
                                                    std::int64_t ttl_us) {
  std::int64_t now = wall_us();
  std::lock_guard lock(impl_->mutex);
  // The row stays after a release, since its token must go on rising.
  Query query = impl_->db.query(
      "INSERT INTO leases (name, holder, token, expires_us) VALUES (?1, ?2, 1, ?3) ON CONFLICT "
      "(name) DO UPDATE SET"
      " holder = excluded.holder, token = token + 1, expires_us = excluded.expires_us"
      " WHERE expires_us <= ?4 OR holder = excluded.holder RETURNING token");
  query << name << holder << now + ttl_us << now;
  if (!query.step()) return std::nullopt;
  std::int64_t token = query.integer();
  while (query.step()) {
  }  // the statement is committed by its last step
  return token;
}

bool Database::lease_holds(const std::string& name, std::int64_t token) {
  std::lock_guard lock(impl_->mutex);
  return (impl_->db.query("SELECT 1 FROM leases WHERE name = ? AND token = ? AND expires_us != 0")
          << name << token)
      .step();
}

void Database::release_lease(const std::string& name, std::int64_t token) {
  std::lock_guard lock(impl_->mutex);
  (impl_->db.query("UPDATE leases SET expires_us = 0 WHERE name = ? AND token = ?")
   << name << token)
      .run();
}

void Database::forget_the_dead() {
  transaction([&] {
    impl_->db.query("DELETE FROM leases").run();
    impl_->db
        .query(
            "DELETE FROM backoffs WHERE fingerprint NOT IN (SELECT fingerprint FROM checkpoints "
            "UNION SELECT 'restore-' || id FROM checkpoints)")
        .run();
  });
}

std::optional<Database::BackoffRow> Database::backoff(const std::string& fingerprint) {
  std::lock_guard lock(impl_->mutex);
  Query query =
      impl_->db.query("SELECT failures, until_us, reason FROM backoffs WHERE fingerprint = ?");
  if (!(query << fingerprint).step()) return std::nullopt;
  BackoffRow row;
  row.failures = static_cast<int>(query.integer());
  row.until_us = query.integer();
  row.reason = query.text();
  return row;
}

void Database::put_backoff(const std::string& fingerprint, const BackoffRow& row) {
  std::lock_guard lock(impl_->mutex);
  (impl_->db.query("INSERT INTO backoffs (fingerprint, failures, until_us, reason) VALUES "
                   "(?,?,?,?) ON CONFLICT (fingerprint)"
                   " DO UPDATE SET failures = excluded.failures, until_us = excluded.until_us, "
                   "reason = excluded.reason")
   << fingerprint << std::int64_t{row.failures} << row.until_us << row.reason)
      .run();
}

void Database::clear_backoff(const std::string& fingerprint) {
  std::lock_guard lock(impl_->mutex);
  (impl_->db.query("DELETE FROM backoffs WHERE fingerprint = ?") << fingerprint).run();
}

// --- images
// ---------------------------------------------------------------------------------------------------------

void Database::put_image(const ImageRow& image) {
  std::string config = dump(image.config);
  std::lock_guard lock(impl_->mutex);
  (impl_->db.query("INSERT INTO images (id, reference, bytes, created_us, config) VALUES "
                   "(?,?,?,?,?) ON CONFLICT (id) DO UPDATE SET"
                   " reference = excluded.reference, bytes = excluded.bytes, created_us = "
                   "excluded.created_us, config = excluded.config")
   << image.id << image.reference << static_cast<std::int64_t>(image.bytes) << image.created_us
   << config)
      .run();
}

std::vector<ImageRow> Database::images() {
  std::lock_guard lock(impl_->mutex);
  Query query = impl_->db.query(
      "SELECT id, reference, bytes, created_us, config FROM images ORDER BY created_us DESC, "
      "number DESC");
  return all(query, image_of);
}

std::optional<ImageRow> Database::image(const std::string& id_or_reference) {
  std::lock_guard lock(impl_->mutex);
  // A reference may have moved to another image since: the newest counts.
  return first(impl_->db.query("SELECT id, reference, bytes, created_us, config FROM images WHERE "
                               "id = ?1 OR reference = ?1"
                               " ORDER BY id = ?1 DESC, created_us DESC, number DESC LIMIT 1")
                   << id_or_reference,
               image_of);
}

void Database::remove_image(const std::string& id) {
  std::lock_guard lock(impl_->mutex);
  (impl_->db.query("DELETE FROM images WHERE id = ?") << id).run();
}

// --- events
// ---------------------------------------------------------------------------------------------------------

EventRow Database::append_event(EventRow event) {
  // Whose request made it happen, where one did.
  if (std::string request = log::Context::value("request");
      !request.empty() && (event.data.is_null() || event.data.is_object()))
    event.data["request"] = request;
  std::string data = dump(event.data);
  event.time_us = wall_us();
  std::lock_guard lock(impl_->mutex);
  (impl_->db.query("INSERT INTO events (time_us, type, pod, replica, checkpoint, message, data) "
                   "VALUES (?,?,?,?,?,?,?)")
   << event.time_us << event.type << event.pod << event.replica << event.checkpoint << event.message
   << data)
      .run();
  event.id = impl_->db.last_id();  // RETURNING would cost a temporary table
  impl_->appended = event.id;
  if (!impl_->in_transaction) impl_->publish();
  return event;
}

std::vector<EventRow> Database::events(std::int64_t after, int limit, const std::string& pod,
                                       const std::string& replica) {
  std::lock_guard lock(impl_->mutex);
  // Not indexed by pod and replica: an index would cost every append more than these few thousand
  // rows cost a reader.
  return all(impl_->db.query(
                 "SELECT id, time_us, type, pod, replica, checkpoint, message, data FROM events "
                 "WHERE id > ?1"
                 " AND (?3 = '' OR pod = ?3) AND (?4 = '' OR replica = ?4) ORDER BY id LIMIT ?2")
                 << after << std::int64_t{limit} << pod << replica,
             event_of);
}

std::int64_t Database::last_event_id() {
  std::lock_guard lock(impl_->mutex);
  return impl_->newest_event();
}

bool Database::wait_events(std::int64_t after, std::int64_t timeout_us) {
  std::unique_lock lock(impl_->event_mutex);
  auto newer = [&] { return impl_->published > after; };
  impl_->event_arrived.wait_for(lock, std::chrono::microseconds(timeout_us),
                                [&] { return impl_->closed || newer(); });
  return newer();
}

void Database::close_waiters() {
  {
    std::lock_guard lock(impl_->event_mutex);
    impl_->closed = true;
  }
  impl_->event_arrived.notify_all();
}

// --- settings
// -------------------------------------------------------------------------------------------------------

std::string Database::setting(const std::string& key) {
  std::lock_guard lock(impl_->mutex);
  Query query = impl_->db.query("SELECT value FROM settings WHERE key = ?");
  return (query << key).step() ? query.text() : std::string();
}

void Database::put_setting(const std::string& key, const std::string& value) {
  std::lock_guard lock(impl_->mutex);
  (impl_->db.query("INSERT INTO settings (key, value) VALUES (?,?) ON CONFLICT (key) DO UPDATE SET "
                   "value = excluded.value")
   << key << value)
      .run();
}

}  // namespace thaw::state
