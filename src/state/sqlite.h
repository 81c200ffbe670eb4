// SQLite as we use it: one connection, statements prepared once and kept, every failure an Error
// with SQLite's own message. Not thread-safe: the owner guards it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

struct sqlite3;
struct sqlite3_stmt;

namespace thaw::state {

class Connection;

// One run of a prepared statement. Gives the statement back to its connection when it goes.
class Query {
 public:
  Query(const Query&) = delete;
  Query& operator=(const Query&) = delete;
  ~Query();

  // Binds the next parameter. Text is not copied: it must live until the query goes.
  Query& operator<<(std::int64_t value);
  Query& operator<<(std::string_view text);
  Query& operator<<(const std::optional<int>& value);

  bool step();  // true: a row is there
  int run();    // for statements without rows: how many rows they changed

  // Columns of the current row, from left to right.
  std::int64_t integer();
  std::string text();
  bool flag() { return integer() != 0; }
  std::optional<int> optional_integer();

 private:
  friend class Connection;
  // `busy` belongs to a kept statement; none: the statement is ours alone.
  Query(Connection& connection, sqlite3_stmt* statement, bool* busy)
      : connection_(connection), statement_(statement), busy_(busy) {}
  Query& bound(int result);

  Connection& connection_;
  sqlite3_stmt* statement_;
  bool* busy_;
  int parameter_ = 0, column_ = 0;
};

class Connection {
 public:
  // The file must exist. Waits up to 5 s for another process's lock.
  explicit Connection(const std::string& path);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // Takes literals only, since the text is the key under which the prepared statement is kept.
  template <std::size_t N>
  Query query(const char (&sql)[N]) {
    return prepare(std::string_view(sql, N - 1));
  }
  std::int64_t last_id() const;      // of the row inserted last
  void execute(const char* script);  // any number of statements
  // Calls `hook` after every commit with the number of pages in the write-ahead log, in place of
  // SQLite's own checkpointing.
  void on_commit(std::function<void(int pages)> hook);
  // Moves the write-ahead log into the database, as far as readers allow, without making writers
  // wait. Whether all of it was moved.
  bool checkpoint();
  [[noreturn]] void fail(int result) const;

 private:
  friend class Query;
  struct Close {
    void operator()(sqlite3* db) const;
  };
  struct Finalize {
    void operator()(sqlite3_stmt* statement) const;
  };
  struct Kept {
    std::unique_ptr<sqlite3_stmt, Finalize> statement;
    bool busy = false;
  };
  Query prepare(std::string_view sql);

  std::string path_;
  std::function<void(int)> hook_;
  std::unique_ptr<sqlite3, Close> db_;
  std::unordered_map<std::string_view, Kept> kept_;
};

}  // namespace thaw::state
