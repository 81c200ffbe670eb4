#include "state/schema.h"

#include <sys/stat.h>

#include <iterator>

#include "state/sqlite.h"
#include "util/error.h"

namespace thaw::state {
namespace {

constexpr std::int64_t kApplicationId = 0x54686177;  // "Thaw", shown by file(1)

// Step N brings user_version N to N+1. A step is never changed once released.
//
// No table refers to another by key: replicas, checkpoints and events outlive their pod, so that
// what happened can still be read. Events take ids by themselves; since the newest is never
// deleted, no id comes twice.
constexpr const char* kSteps[] = {R"sql(
CREATE TABLE pods (
  name TEXT PRIMARY KEY NOT NULL, version INTEGER NOT NULL, spec TEXT NOT NULL, program TEXT NOT NULL,
  desired INTEGER NOT NULL, stopped INTEGER NOT NULL, created_us INTEGER NOT NULL, updated_us INTEGER NOT NULL
) STRICT;
CREATE TABLE replicas (
  number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, pod TEXT NOT NULL, version INTEGER NOT NULL, slot TEXT NOT NULL,
  state TEXT NOT NULL, started_from TEXT NOT NULL, intent TEXT NOT NULL, outcome TEXT NOT NULL, reason TEXT NOT NULL,
  hostname TEXT NOT NULL, address TEXT NOT NULL, address6 TEXT NOT NULL, pid INTEGER NOT NULL, exit_code INTEGER,
  gate_open INTEGER NOT NULL, proof INTEGER NOT NULL, created_us INTEGER NOT NULL, ready_us INTEGER NOT NULL,
  ended_us INTEGER NOT NULL, requested_mono_us INTEGER NOT NULL,
  phases TEXT NOT NULL  -- [[name, start_us, end_us], ...]
) STRICT;
CREATE TABLE checkpoints (
  number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, pod TEXT NOT NULL, fingerprint TEXT NOT NULL, status TEXT NOT NULL,
  reason TEXT NOT NULL, created_us INTEGER NOT NULL, updated_us INTEGER NOT NULL, bytes INTEGER NOT NULL,
  memory_bytes INTEGER NOT NULL, freeze_us INTEGER NOT NULL, dump_us INTEGER NOT NULL, restores INTEGER NOT NULL,
  failures_in_a_row INTEGER NOT NULL, replica TEXT NOT NULL
) STRICT;
CREATE TABLE leases (
  name TEXT PRIMARY KEY NOT NULL, holder TEXT NOT NULL, token INTEGER NOT NULL, expires_us INTEGER NOT NULL
) STRICT;
CREATE TABLE backoffs (
  fingerprint TEXT PRIMARY KEY NOT NULL, failures INTEGER NOT NULL, until_us INTEGER NOT NULL, reason TEXT NOT NULL
) STRICT;
CREATE TABLE images (
  number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, reference TEXT NOT NULL, bytes INTEGER NOT NULL,
  created_us INTEGER NOT NULL, config TEXT NOT NULL
) STRICT;
CREATE TABLE events (
  id INTEGER PRIMARY KEY, time_us INTEGER NOT NULL, type TEXT NOT NULL, pod TEXT NOT NULL, replica TEXT NOT NULL,
  checkpoint TEXT NOT NULL, message TEXT NOT NULL, data TEXT NOT NULL
) STRICT;
CREATE TABLE settings (key TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL) STRICT;
)sql"};

std::int64_t integer(Query query) {
  query.step();
  return query.integer();
}

}  // namespace

void open_schema(Connection& db, const std::string& path) {
  std::int64_t id = integer(db.query("PRAGMA application_id"));
  if (id != kApplicationId &&
      (id != 0 || integer(db.query("SELECT count(*) FROM sqlite_schema")) != 0))
    throw Error(Code::kCorrupt, "open the database", path, "it is another program's",
                "name another data folder, or move the file away");

  const std::int64_t newest = std::size(kSteps);
  std::int64_t version = integer(db.query("PRAGMA user_version"));
  if (version > newest)
    throw Error(Code::kUnsupported, "open the database", path,
                "a newer Thaw made it (schema " + std::to_string(version) + ", this one knows " +
                    std::to_string(newest) + ")",
                "use that newer version");

  // Only now is it changed. The mode first, since the log files beside it take it over. WAL:
  // readers never wait for writers. NORMAL: nothing is lost by killing the daemon, and a commit
  // needs no fsync; a power cut can lose the last few commits, never the file.
  check(::chmod(path.c_str(), 0600), "chmod", path);
  db.execute(
      "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON; PRAGMA "
      "temp_store = MEMORY; PRAGMA cache_size = -16384;");
  if (version < newest) {
    db.execute("BEGIN IMMEDIATE");
    try {
      // Another process may have been quicker.
      for (auto step = integer(db.query("PRAGMA user_version")); step < newest; ++step)
        db.execute(kSteps[step]);
      db.execute(("PRAGMA application_id = " + std::to_string(kApplicationId)).c_str());
      db.execute(("PRAGMA user_version = " + std::to_string(newest)).c_str());
      db.execute("COMMIT");
    } catch (...) {
      try {
        db.execute("ROLLBACK");
      } catch (const Error&) {
        // The first error is the one to tell.
      }
      throw;
    }
  }

  Query health = db.query("PRAGMA quick_check(1)");
  std::string found = health.step() ? health.text() : "no answer";
  if (found != "ok")
    throw Error(Code::kCorrupt, "open the database", path, "it is damaged: " + found,
                "move the file away, or put a copy of it back");
}

}  // namespace thaw::state
