#include "state/database.h"

#include <fcntl.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ctime>
#include <thread>

#include "util/clock.h"
#include "util/error.h"
#include "util/fd.h"
#include "util/file.h"

namespace thaw::state {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

class DatabaseTest : public ::testing::Test {
 protected:
  DatabaseTest() { make_directories(folder, 0700); }
  ~DatabaseTest() override { remove_tree(folder); }

  // What another program, such as the sqlite3 shell, would do to the file.
  void raw(const char* sql) {
    sqlite3* db = nullptr;
    ASSERT_EQ(sqlite3_open(path.c_str(), &db), SQLITE_OK);
    char* message = nullptr;
    EXPECT_EQ(sqlite3_exec(db, sql, nullptr, nullptr, &message), SQLITE_OK) << message;
    sqlite3_free(message);
    sqlite3_close(db);
  }

  Error open_error() {
    try {
      Database database(path);
    } catch (const Error& error) {
      return error;
    }
    ADD_FAILURE() << "the database opened";
    return Error(Code::kInternal, "", "", "");
  }

  std::string folder = "/tmp/thaw-database-" + random_hex();
  std::string path = folder + "/thaw.db";
};

ReplicaRow a_replica(const std::string& id, const std::string& pod = "web",
                     std::int64_t created = 1) {
  ReplicaRow row;
  row.id = id;
  row.pod = pod;
  row.state = "ready";
  row.created_us = created;
  return row;
}

EventRow an_event(const std::string& type, const std::string& pod = "web",
                  const std::string& replica = {}) {
  EventRow row;
  row.type = type;
  row.pod = pod;
  row.replica = replica;
  return row;
}

std::vector<std::string> ids(const std::vector<ReplicaRow>& rows) {
  std::vector<std::string> result;
  for (auto& row : rows) result.push_back(row.id);
  return result;
}

TEST_F(DatabaseTest, EveryFieldOfARowComesBackAfterReopening) {
  PodRow pod{.name = "web",
             .version = 3,
             .spec = {{"name", "web"}},
             .program = "ab",
             .desired = 2,
             .stopped = true,
             .created_us = 5,
             .updated_us = 6};
  ReplicaRow replica{.id = "aaaaaaaaaaaa",
                     .pod = "web",
                     .version = 3,
                     .slot = "s1",
                     .state = "ready",
                     .started_from = "cold",
                     .intent = "stop",
                     .outcome = "Restored",
                     .reason = "it's \"fine\"",
                     .hostname = "web-1",
                     .address = "10.78.0.2",
                     .address6 = "fd00::2",
                     .pid = 4711,
                     .exit_code = -1,
                     .gate_open = true,
                     .proof = true,
                     .created_us = 7,
                     .ready_us = 8,
                     .ended_us = 9,
                     .requested_mono_us = 10,
                     .phases = {{"mount", 1, 2}, {"criu", 2, 0}}};
  CheckpointRow checkpoint{.id = "c1",
                           .pod = "web",
                           .fingerprint = "ff",
                           .status = "available",
                           .reason = "r",
                           .created_us = 1,
                           .updated_us = 2,
                           .bytes = 1ull << 40,
                           .memory_bytes = 3,
                           .freeze_us = 4,
                           .dump_us = 5,
                           .restores = 6,
                           .failures_in_a_row = 7,
                           .replica = "aaaaaaaaaaaa"};
  ImageRow image{
      .id = "i1", .reference = "oci:/x", .bytes = 9, .created_us = 1, .config = {{"Cmd", {"sh"}}}};
  {
    Database database(path);
    database.put_pod({.name = "web", .spec = json::object()});
    database.put_pod(pod);  // an upsert
    database.put_replica(a_replica("aaaaaaaaaaaa"));
    database.put_replica(replica);
    database.put_checkpoint({.id = "c1"});
    database.put_checkpoint(checkpoint);
    database.put_image({.id = "i1"});
    database.put_image(image);
    database.put_setting("key", "old");
    database.put_setting("key", "value");
  }
  Database database(path);
  auto p = database.pod("web").value();
  EXPECT_EQ(std::tie(p.name, p.version, p.spec, p.program, p.desired, p.stopped, p.created_us,
                     p.updated_us),
            std::tie(pod.name, pod.version, pod.spec, pod.program, pod.desired, pod.stopped,
                     pod.created_us, pod.updated_us));
  auto r = database.replica("aaaaaaaaaaaa").value();
  auto all_of = [](const ReplicaRow& x) {
    return std::tie(x.id, x.pod, x.version, x.slot, x.state, x.started_from, x.intent, x.outcome,
                    x.reason, x.hostname, x.address, x.address6, x.pid, x.exit_code, x.gate_open,
                    x.proof, x.created_us, x.ready_us, x.ended_us, x.requested_mono_us);
  };
  EXPECT_EQ(all_of(r), all_of(replica));
  ASSERT_EQ(r.phases.size(), 2u);
  EXPECT_EQ(r.phases[0].name, "mount");
  EXPECT_EQ(r.phases[0].end_us, 2);
  EXPECT_EQ(r.phases[1].start_us, 2);
  auto c = database.checkpoint("c1").value();
  auto all_of_checkpoint = [](const CheckpointRow& x) {
    return std::tie(x.id, x.pod, x.fingerprint, x.status, x.reason, x.created_us, x.updated_us,
                    x.bytes, x.memory_bytes, x.freeze_us, x.dump_us, x.restores,
                    x.failures_in_a_row, x.replica);
  };
  EXPECT_EQ(all_of_checkpoint(c), all_of_checkpoint(checkpoint));
  auto i = database.image("i1").value();
  EXPECT_EQ(std::tie(i.reference, i.bytes, i.created_us, i.config),
            std::tie(image.reference, image.bytes, image.created_us, image.config));
  EXPECT_EQ(database.setting("key"), "value");
  EXPECT_EQ(database.setting("other"), "");
}

TEST_F(DatabaseTest, AbsentRowsAreNoErrors) {
  Database database(path);
  EXPECT_FALSE(database.pod("x"));
  EXPECT_FALSE(database.replica("x"));
  EXPECT_FALSE(database.checkpoint("x"));
  EXPECT_FALSE(database.image("x"));
  EXPECT_FALSE(database.backoff("x"));
  EXPECT_THAT(database.pods(), IsEmpty());
  database.remove_pod("x");
  database.remove_replica("x");
  database.remove_image("x");
  database.clear_backoff("x");
  EXPECT_FALSE(database.lease_holds("x", 1));
  database.release_lease("x", 1);
}

TEST_F(DatabaseTest, FileIsPrivate) {
  { Fd file = Fd::open(path, O_CREAT | O_WRONLY, 0644); }
  Database database(path);
  database.put_setting("a", "b");
  for (const char* suffix : {"", "-wal", "-shm"}) {
    struct stat info;
    ASSERT_EQ(::stat((path + suffix).c_str(), &info), 0) << suffix;
    EXPECT_EQ(info.st_mode & 07777, 0600u) << suffix;
  }
}

TEST_F(DatabaseTest, RefusesAFileThatIsNoDatabase) {
  write_file(path, std::string(8192, 'x'));
  Error error = open_error();
  EXPECT_EQ(error.code(), Code::kCorrupt);
  EXPECT_THAT(error.what(), HasSubstr(path));
  EXPECT_EQ(read_file(path), std::string(8192, 'x'));
}

TEST_F(DatabaseTest, RefusesAnotherProgramsDatabaseAndLeavesItAsItIs) {
  raw("CREATE TABLE songs (title TEXT); INSERT INTO songs VALUES ('a');");
  std::string before = read_file(path);
  EXPECT_EQ(open_error().code(), Code::kCorrupt);
  EXPECT_EQ(read_file(path), before);
}

TEST_F(DatabaseTest, RefusesTheDatabaseOfANewerThaw) {
  { Database database(path); }
  raw("PRAGMA user_version = 999");
  Error error = open_error();
  EXPECT_EQ(error.code(), Code::kUnsupported);
  EXPECT_THAT(error.what(), HasSubstr("999"));
}

TEST_F(DatabaseTest, RefusesADamagedDatabase) {
  {
    Database database(path);
    for (int i = 0; i < 200; ++i)
      database.put_setting("key" + std::to_string(i), std::string(200, 'v'));
  }
  std::string bytes = read_file(path);
  ASSERT_GT(bytes.size(), 40960u);
  for (std::size_t i = 4096 * 2; i < bytes.size(); ++i) bytes[i] = static_cast<char>(0x5a);
  write_file(path, bytes);
  EXPECT_EQ(open_error().code(), Code::kCorrupt);
}

TEST_F(DatabaseTest, RefusesATruncatedDatabase) {
  {
    Database database(path);
    for (int i = 0; i < 200; ++i)
      database.put_setting("key" + std::to_string(i), std::string(200, 'v'));
  }
  ASSERT_EQ(::truncate(path.c_str(), 4096 * 3), 0);
  EXPECT_EQ(open_error().code(), Code::kCorrupt);
}

TEST_F(DatabaseTest, NamesTheFolderThatIsMissing) {
  path = folder + "/absent/thaw.db";
  Error error = open_error();
  EXPECT_EQ(error.code(), Code::kNotFound);
  EXPECT_THAT(error.what(), HasSubstr(path));
}

TEST_F(DatabaseTest, TransactionRollsBackWithItsEvents) {
  Database database(path);
  database.put_setting("a", "1");
  EXPECT_THROW(database.transaction([&] {
    database.put_setting("a", "2");
    database.append_event(an_event("x"));
    database.transaction([&] { database.put_setting("b", "2"); });  // joins
    throw std::runtime_error("no");
  }),
               std::runtime_error);
  EXPECT_EQ(database.setting("a"), "1");
  EXPECT_EQ(database.setting("b"), "");
  EXPECT_EQ(database.last_event_id(), 0);
  EXPECT_FALSE(database.wait_events(0, 0));
  database.transaction([&] {
    database.put_setting("a", "3");
    database.append_event(an_event("y"));
    EXPECT_FALSE(database.wait_events(0, 0));  // not before the commit
  });
  EXPECT_EQ(database.setting("a"), "3");
  EXPECT_TRUE(database.wait_events(0, 0));
}

TEST_F(DatabaseTest, CommittedRowsSurviveKillOfTheProcess) {
  auto [read_end, write_end] = Fd::pipe();
  pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    try {
      Database database(path);
      for (int i = 1;; ++i) {
        database.transaction([&] {
          database.put_setting("first", std::to_string(i));
          database.append_event(an_event("n"));
          database.put_setting("second", std::to_string(i));
        });
        std::uint32_t count = static_cast<std::uint32_t>(i);
        if (::write(write_end.get(), &count, sizeof count) < 0) break;
      }
    } catch (...) {
    }
    ::_exit(1);
  }
  write_end.reset();
  std::uint32_t count = 0;
  while (count < 50) ASSERT_EQ(::read(read_end.get(), &count, sizeof count), 4);
  ::kill(child, SIGKILL);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  while (::read(read_end.get(), &count, sizeof count) == 4) {
  }  // what it had committed before it died

  Database database(path);
  EXPECT_GE(std::stoul(database.setting("first")), count);
  EXPECT_EQ(database.setting("first"), database.setting("second"));
  EXPECT_EQ(database.last_event_id(), std::stol(database.setting("first")));
}

TEST_F(DatabaseTest, ReplicasComeOldestFirstAndByPod) {
  Database database(path);
  database.put_replica(a_replica("b", "web", 20));
  database.put_replica(a_replica("a", "web", 10));
  database.put_replica(a_replica("c", "api", 15));
  database.put_replica(a_replica("d", "web", 20));  // the same time: in the order of arrival
  database.put_replica(a_replica("b", "web", 20));
  EXPECT_THAT(ids(database.replicas()), ElementsAre("a", "c", "b", "d"));
  EXPECT_THAT(ids(database.replicas("web")), ElementsAre("a", "b", "d"));
  EXPECT_THAT(ids(database.replicas("none")), IsEmpty());
}

TEST_F(DatabaseTest, IntentIsNotUndoneByAnOlderCopyOfTheRow) {
  Database database(path);
  ReplicaRow row = a_replica("a");
  database.put_replica(row);
  database.set_intent("a", "stop");
  row.state = "draining";
  database.put_replica(row);
  EXPECT_EQ(database.replica("a")->intent, "stop");
  EXPECT_EQ(database.replica("a")->state, "draining");
  try {
    database.set_intent("nobody", "stop");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kNotFound);
  }
}

TEST_F(DatabaseTest, PruningKeepsTheNewestEndedReplicasOfEachPod) {
  Database database(path);
  for (int i = 1; i <= 5; ++i) {
    for (const char* pod : {"web", "api"}) {
      ReplicaRow row = a_replica(pod + std::to_string(i), pod, i);
      if (i != 1) row.ended_us = 100 + i;
      database.put_replica(row);
    }
  }
  for (const char* pod : {"web", "api"}) database.put_pod({.name = pod});
  EXPECT_THAT(database.prune_replicas(2), UnorderedElementsAre("web2", "web3", "api2", "api3"));
  EXPECT_THAT(ids(database.replicas("web")), ElementsAre("web1", "web4", "web5"));
  EXPECT_THAT(ids(database.replicas("api")), ElementsAre("api1", "api4", "api5"));
  // Of pods that are gone, as many of all together.
  database.remove_pod("web");
  database.remove_pod("api");
  EXPECT_EQ(database.prune_replicas(2).size(), 2u);
  EXPECT_THAT(database.prune_replicas(2), IsEmpty());
  database.prune_replicas(0);
  EXPECT_THAT(ids(database.replicas("web")), ElementsAre("web1"));
}

TEST_F(DatabaseTest, CheckpointsComeNewestFirstByPodAndFingerprint) {
  Database database(path);
  database.put_checkpoint({.id = "1", .pod = "web", .fingerprint = "f", .created_us = 1});
  database.put_checkpoint({.id = "2", .pod = "web", .fingerprint = "g", .created_us = 2});
  database.put_checkpoint({.id = "3", .pod = "api", .fingerprint = "f", .created_us = 3});
  auto list = [&](const std::string& pod, const std::string& fingerprint) {
    std::string result;
    for (auto& row : database.checkpoints(pod, fingerprint)) result += row.id;
    return result;
  };
  EXPECT_EQ(list("", ""), "321");
  EXPECT_EQ(list("web", ""), "21");
  EXPECT_EQ(list("", "f"), "31");
  EXPECT_EQ(list("web", "f"), "1");
}

TEST_F(DatabaseTest, LeaseHasOneHolderAndItsTokenRises) {
  Database database(path);
  auto first = database.acquire_lease("f", "a", 3'600'000'000);
  ASSERT_TRUE(first);
  EXPECT_TRUE(database.lease_holds("f", *first));
  EXPECT_FALSE(database.acquire_lease("f", "b", 3'600'000'000));
  EXPECT_TRUE(database.acquire_lease("g", "b", 3'600'000'000));
  auto renewed = database.acquire_lease("f", "a", 3'600'000'000);
  ASSERT_TRUE(renewed);
  EXPECT_GT(*renewed, *first);
  EXPECT_FALSE(database.lease_holds("f", *first));
  database.release_lease("f", *first);  // a late holder: fenced off
  EXPECT_TRUE(database.lease_holds("f", *renewed));
  database.release_lease("f", *renewed);
  EXPECT_FALSE(database.lease_holds("f", *renewed));
  auto third = database.acquire_lease("f", "b", 0);  // expires at once
  ASSERT_TRUE(third);
  EXPECT_GT(*third, *renewed);
  EXPECT_TRUE(database.lease_holds("f", *third));  // until somebody else wants it
  auto fourth = database.acquire_lease("f", "c", 3'600'000'000);
  ASSERT_TRUE(fourth);
  EXPECT_GT(*fourth, *third);
  EXPECT_FALSE(database.lease_holds("f", *third));
}

TEST_F(DatabaseTest, ADaemonThatStartsForgetsTheDead) {
  Database database(path);
  ASSERT_TRUE(database.acquire_lease("f", "a", 3'600'000'000));
  CheckpointRow row;
  row.id = "1";
  row.fingerprint = "f";
  row.status = "failed";
  database.put_checkpoint(row);
  for (const char* key : {"f", "g", "restore-1", "restore-2"})
    database.put_backoff(key, {.failures = 1, .until_us = 5, .reason = "a"});
  database.forget_the_dead();
  EXPECT_TRUE(database.acquire_lease("f", "b", 3'600'000'000));
  EXPECT_TRUE(database.backoff("f"));
  EXPECT_TRUE(database.backoff("restore-1"));
  EXPECT_FALSE(database.backoff("g"));
  EXPECT_FALSE(database.backoff("restore-2"));
  database.remove_checkpoint("1");
  EXPECT_FALSE(database.checkpoint("1"));
  EXPECT_FALSE(database.backoff("restore-1"));
}

TEST_F(DatabaseTest, LeaseIsWonByExactlyOneOfManyThreads) {
  Database database(path);
  std::atomic<int> winners = 0;
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < 8; ++i)
      threads.emplace_back([&, i] {
        winners += database.acquire_lease("f", std::to_string(i), 3'600'000'000).has_value();
      });
  }
  EXPECT_EQ(winners, 1);
}

TEST_F(DatabaseTest, BackoffIsKeptAndCleared) {
  Database database(path);
  database.put_backoff("f", {.failures = 1, .until_us = 5, .reason = "a"});
  database.put_backoff("f", {.failures = 2, .until_us = 6, .reason = "b"});
  auto row = database.backoff("f").value();
  EXPECT_EQ(row.failures, 2);
  EXPECT_EQ(row.until_us, 6);
  EXPECT_EQ(row.reason, "b");
  database.clear_backoff("f");
  EXPECT_FALSE(database.backoff("f"));
}

TEST_F(DatabaseTest, ImageIsFoundByIdAndByItsNewestReference) {
  Database database(path);
  database.put_image({.id = "1", .reference = "oci:/a", .created_us = 1});
  database.put_image({.id = "2", .reference = "oci:/a", .created_us = 2});
  EXPECT_EQ(database.image("1")->id, "1");
  EXPECT_EQ(database.image("oci:/a")->id, "2");
  EXPECT_EQ(database.images().size(), 2u);
  database.remove_image("2");
  EXPECT_EQ(database.image("oci:/a")->id, "1");
}

TEST_F(DatabaseTest, EventsRiseByOneAndAreFiltered) {
  Database database(path);
  std::int64_t before = wall_us();
  EventRow event = an_event("a", "web", "r1");
  event.id = 99;
  event.data = {{"bytes", std::string("not utf-8: \xff")}};
  EventRow appended = database.append_event(event);
  EXPECT_EQ(appended.id, 1);
  EXPECT_GE(appended.time_us, before);
  EXPECT_EQ(database.append_event(an_event("b", "api", "r2")).id, 2);
  EXPECT_EQ(database.append_event(an_event("c", "web", "r3")).id, 3);
  auto types = [](const std::vector<EventRow>& rows) {
    std::string result;
    for (auto& row : rows) result += row.type;
    return result;
  };
  EXPECT_EQ(types(database.events(0, 10)), "abc");
  EXPECT_EQ(types(database.events(1, 10)), "bc");
  EXPECT_EQ(types(database.events(0, 2)), "ab");
  EXPECT_EQ(types(database.events(0, 10, "web")), "ac");
  EXPECT_EQ(types(database.events(0, 10, "web", "r3")), "c");
  EXPECT_EQ(database.last_event_id(), 3);
  EXPECT_EQ(database.events(0, 1).at(0).data["bytes"], "not utf-8: \xEF\xBF\xBD");
}

TEST_F(DatabaseTest, OldEventsArePrunedAndIdsNeverComeTwice) {
  constexpr int kCount = 21'000;
  {
    Database database(path);
    database.transaction([&] {
      for (int i = 0; i < kCount; ++i) database.append_event(an_event("x"));
    });
    // The helper thread prunes; wait for it by asking.
    Deadline deadline = Deadline::after_ms(20'000);
    while (database.events(0, 1).at(0).id != kCount - 20'000 + 1 && !deadline.passed())
      std::this_thread::yield();
    EXPECT_EQ(database.events(0, 1).at(0).id, kCount - 20'000 + 1);
    EXPECT_EQ(database.events(0, 30'000).size(), 20'000u);
  }
  Database database(path);
  EXPECT_EQ(database.append_event(an_event("x")).id, kCount + 1);
}

TEST_F(DatabaseTest, TheLogBesideTheFileStaysShort) {
  Database database(path);
  auto size_of = [](const std::string& file) {
    struct stat info {};
    EXPECT_EQ(::stat(file.c_str(), &info), 0);
    return info.st_size;
  };
  // With a moment between bursts: a writer that never stops leaves upkeep no turn.
  auto write = [&](int from) {
    for (int i = from; i < from + 20'000; ++i) {
      database.put_setting("key", fmt::format("{}{:2000}", i, ""));
      if (i % 1000 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  };
  write(0);
  EXPECT_LT(size_of(path + "-wal"), 32 << 20);  // 80 MiB were written
  EXPECT_GT(size_of(path), 16 << 10);
  // The upkeep is over when there is nothing to keep up.
  auto settled = [&] {
    std::clock_t before = std::clock();
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    return std::clock() - before < CLOCKS_PER_SEC / 20;
  };
  EXPECT_TRUE(settled() || settled());
  write(20'000);
  EXPECT_LT(size_of(path + "-wal"), 32 << 20);
}

TEST_F(DatabaseTest, WaitersWakeOnAnEventAndOnClose) {
  Database database(path);
  EXPECT_FALSE(database.wait_events(0, 1000));
  {
    std::atomic<bool> woken = false;
    std::jthread waiter([&] { woken = database.wait_events(0, 60'000'000); });
    database.append_event(an_event("x"));
    waiter.join();
    EXPECT_TRUE(woken);
  }
  EXPECT_TRUE(database.wait_events(0, 60'000'000));
  std::atomic<bool> woken = true;
  std::jthread waiter([&] { woken = database.wait_events(1, 60'000'000); });
  database.close_waiters();
  waiter.join();
  EXPECT_FALSE(woken);
}

TEST_F(DatabaseTest, ManyThreadsAtOnce) {
  Database database(path);
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 6; ++t)
      threads.emplace_back([&, t] {
        for (int i = 0; i < 200; ++i) {
          std::string id = std::to_string(t) + "-" + std::to_string(i % 10);
          database.transaction([&] {
            database.put_replica(a_replica(id));
            database.append_event(an_event("x", "web", id));
          });
          database.replicas("web");
        }
      });
  }
  EXPECT_EQ(database.replicas().size(), 60u);
  EXPECT_EQ(database.last_event_id(), 1200);
}

TEST_F(DatabaseTest, TwoProcessesMayWriteAtOnce) {
  Database ours(path);
  Database theirs(path);  // another connection, as another process has it
  std::jthread other([&] {
    for (int i = 0; i < 100; ++i) theirs.transaction([&] { theirs.append_event(an_event("x")); });
  });
  for (int i = 0; i < 100; ++i) ours.transaction([&] { ours.append_event(an_event("x")); });
  other.join();
  EXPECT_EQ(ours.last_event_id(), 200);
}

}  // namespace
}  // namespace thaw::state
