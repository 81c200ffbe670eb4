#include "state/sqlite.h"

#include <sqlite3.h>

#include <utility>

#include "util/error.h"

namespace thaw::state {
namespace {

constexpr int kBusyTimeoutMs = 5000;

Code code_of(int result) {
  switch (result & 0xff) {  // the low byte is the primary code
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
    case SQLITE_FORMAT:
      return Code::kCorrupt;
    case SQLITE_FULL:
    case SQLITE_NOMEM:
    case SQLITE_TOOBIG:
      return Code::kExhausted;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return Code::kUnavailable;
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_AUTH:
      return Code::kDenied;
    case SQLITE_CONSTRAINT:
      return Code::kConflict;
    case SQLITE_IOERR:
    case SQLITE_CANTOPEN:
    case SQLITE_PROTOCOL:
      return Code::kSystem;
    default:
      return Code::kInternal;
  }
}

std::string remedy_for(Code code) {
  switch (code) {
    case Code::kCorrupt:
      return "move the file away, or put a copy of it back; Thaw makes a new one when there is "
             "none";
    case Code::kExhausted:
      return "free some disk space";
    case Code::kUnavailable:
      return "another process holds the database; end it or try again";
    case Code::kDenied:
      return "give Thaw's user write permission on the file and its folder";
    default:
      return {};
  }
}

}  // namespace

Query::~Query() {
  if (!busy_) {
    sqlite3_finalize(statement_);
    return;
  }
  sqlite3_reset(statement_);
  sqlite3_clear_bindings(statement_);  // they point at the caller's text
  *busy_ = false;
}

Query& Query::bound(int result) {
  if (result != SQLITE_OK) connection_.fail(result);
  return *this;
}

Query& Query::operator<<(std::int64_t value) {
  return bound(sqlite3_bind_int64(statement_, ++parameter_, value));
}

Query& Query::operator<<(std::string_view text) {
  // A null pointer would bind NULL, and the columns are NOT NULL.
  const char* data = text.data() ? text.data() : "";
  return bound(
      sqlite3_bind_text64(statement_, ++parameter_, data, text.size(), SQLITE_STATIC, SQLITE_UTF8));
}

Query& Query::operator<<(const std::optional<int>& value) {
  if (value) return *this << std::int64_t{*value};
  return bound(sqlite3_bind_null(statement_, ++parameter_));
}

bool Query::step() {
  column_ = 0;
  int result = sqlite3_step(statement_);
  if (result == SQLITE_ROW) return true;
  if (result != SQLITE_DONE) connection_.fail(result);
  return false;
}

int Query::run() {
  while (step()) {
  }
  return sqlite3_changes(connection_.db_.get());
}

std::int64_t Query::integer() { return sqlite3_column_int64(statement_, column_++); }

std::string Query::text() {
  auto* data = reinterpret_cast<const char*>(sqlite3_column_text(statement_, column_));
  auto size = static_cast<std::size_t>(sqlite3_column_bytes(statement_, column_));
  ++column_;
  return data ? std::string(data, size) : std::string();
}

std::optional<int> Query::optional_integer() {
  if (sqlite3_column_type(statement_, column_) == SQLITE_NULL) {
    ++column_;
    return std::nullopt;
  }
  return static_cast<int>(integer());
}

void Connection::Close::operator()(sqlite3* db) const { sqlite3_close(db); }
void Connection::Finalize::operator()(sqlite3_stmt* statement) const {
  sqlite3_finalize(statement);
}

Connection::Connection(const std::string& path) : path_(path) {
  sqlite3* db = nullptr;
  int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE;
  int result = sqlite3_open_v2(path.c_str(), &db, flags, nullptr);
  db_.reset(db);
  if (result != SQLITE_OK) fail(result);
  sqlite3_busy_timeout(db, kBusyTimeoutMs);
  // The files beside it stay when the last connection closes: the next daemon may come to a full
  // disk, on which they could not be made.
  int stay = 1;
  sqlite3_file_control(db, nullptr, SQLITE_FCNTL_PERSIST_WAL, &stay);
  // With a limit, whatever it is, the log is emptied then: what was in it is in the database.
  sqlite3_exec(db, "PRAGMA journal_size_limit = 67108864", nullptr, nullptr, nullptr);
}

Connection::~Connection() = default;

Query Connection::prepare(std::string_view sql) {
  Kept& kept = kept_[sql];
  if (kept.statement && !kept.busy) {
    kept.busy = true;
    return Query(*this, kept.statement.get(), &kept.busy);
  }
  sqlite3_stmt* statement = nullptr;
  int result = sqlite3_prepare_v3(db_.get(), sql.data(), static_cast<int>(sql.size()),
                                  SQLITE_PREPARE_PERSISTENT, &statement, nullptr);
  if (result != SQLITE_OK) fail(result);
  // Asked for while its first run is still going on: that one gets a statement of its own.
  if (kept.busy) return Query(*this, statement, nullptr);
  kept.statement.reset(statement);
  kept.busy = true;
  return Query(*this, statement, &kept.busy);
}

std::int64_t Connection::last_id() const { return sqlite3_last_insert_rowid(db_.get()); }

void Connection::execute(const char* script) {
  int result = sqlite3_exec(db_.get(), script, nullptr, nullptr, nullptr);
  if (result != SQLITE_OK) fail(result);
}

void Connection::on_commit(std::function<void(int pages)> hook) {
  hook_ = std::move(hook);
  sqlite3_wal_hook(
      db_.get(),
      [](void* self, sqlite3*, const char*, int pages) {
        static_cast<Connection*>(self)->hook_(pages);
        return SQLITE_OK;
      },
      this);
}

bool Connection::checkpoint() {
  // A connection that has read nothing does not know of the log, and moves nothing.
  execute("SELECT count(*) FROM sqlite_schema");
  int pages = 0, moved = 0;
  int result =
      sqlite3_wal_checkpoint_v2(db_.get(), nullptr, SQLITE_CHECKPOINT_PASSIVE, &pages, &moved);
  if ((result & 0xff) == SQLITE_BUSY) return false;  // another one is at it
  if (result != SQLITE_OK) fail(result);
  return pages >= 0 && moved == pages;
}

void Connection::fail(int result) const {
  Code code = code_of(result);
  std::string cause = db_ ? sqlite3_errmsg(db_.get()) : sqlite3_errstr(result);
  throw Error(code, "use the database", path_, cause, remedy_for(code));
}

}  // namespace thaw::state
