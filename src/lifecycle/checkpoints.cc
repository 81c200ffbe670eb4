#include "lifecycle/checkpoints.h"

#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <sstream>

#include "checkpoint/rest.h"
#include "lifecycle/condition_kinds.h"
#include "lifecycle/restore.h"
#include "util/error.h"
#include "util/fault.h"
#include "util/file.h"
#include "util/finally.h"
#include "util/log.h"

namespace thaw::lifecycle {
namespace {

constexpr std::int64_t kLeaseUs = 15 * 60'000'000LL;
constexpr std::int64_t kFirstBackoffUs = 60'000'000, kLongestBackoffUs = 6 * 3'600'000'000LL;
constexpr int kKeptFailures = 20;  // of each pod, for `thaw checkpoint ls`
constexpr std::int64_t kForEver = INT64_MAX / 2;
constexpr std::string_view kOwnMark = "replica-";
constexpr auto kRewritePause = std::chrono::seconds(1);
constexpr std::int64_t kUnavailableBackoffUs = 30'000'000;
Deadline collect_deadline() { return Deadline::after_ms(10 * 60'000); }
// Left on the disk for the database, logs and what the replicas write themselves.
constexpr std::uint64_t kReserve = 256u << 20;

std::int64_t unavailable_pause_us(int failures) {
  return kUnavailableBackoffUs << std::clamp(failures - 1, 0, 8);
}

// A pause that seems longer than it was made is one from before the clock was set back.
bool waits(const state::Database::BackoffRow& pause, std::int64_t length_us) {
  std::int64_t left = pause.until_us - wall_us();
  return pause.until_us == kForEver || (left > 0 && left <= length_us);
}

constexpr std::initializer_list<const char*> kUnsettled = {"creating", "sealed", "verifying"};

bool one_of(const std::string& status, std::initializer_list<const char*> list) {
  return std::any_of(list.begin(), list.end(), [&](const char* name) { return status == name; });
}

}  // namespace

PodPlan own_plan(PodPlan plan, const std::string& replica) {
  plan.fingerprint = std::string(kOwnMark) + replica;
  plan.program.clear();
  // A second one that runs, if only to prove it, would be the replica twice.
  plan.spec.checkpoint.verify = false;
  return plan;
}

bool is_own(const std::string& fingerprint) { return fingerprint.starts_with(kOwnMark); }

Checkpoints::Checkpoints(const Settings& settings, state::Database& database, Slots& slots,
                         Turns& turns, nlohmann::json host, std::function<void()> changed)
    : settings_(settings),
      database_(database),
      slots_(slots),
      turns_(turns),
      host_(std::move(host)),
      on_change_(std::move(changed)),
      key_(checkpoint::load_mac_key(settings.data_dir)),
      verifier_(key_),
      closing_event_(Fd::event()) {
  // In the manifest, to tell which feature is missing elsewhere; not in the fingerprint.
  host_["features"] = cpu_features();
  make_directories(settings_.data_dir + "/checkpoints", 0700);
  sealer_ = std::thread([this] { work_loop(jobs_, &Checkpoints::finish); });
  prover_ = std::thread([this] { work_loop(proofs_, &Checkpoints::prove); });
  if (settings_.verify_every_us)
    scrubber_ = std::thread([this] { background_loop(&Checkpoints::scrub); });
}

Checkpoints::~Checkpoints() { close(); }

void Checkpoints::close() {
  {
    std::scoped_lock lock(mutex_);
    closing_ = true;
    signal_event(closing_event_);
    changed_.notify_all();
  }
  if (sealer_.joinable()) sealer_.join();
  if (prover_.joinable()) prover_.join();
  if (scrubber_.joinable()) scrubber_.join();
  if (rester_.joinable()) rester_.join();
}

void Checkpoints::set_status(const std::string& id, const std::string& status,
                             const std::string& reason, nlohmann::json data) {
  database_.transaction([&] {
    auto row = database_.checkpoint(id);
    if (!row || row->status == "deleted") return;
    row->status = status;
    row->reason = reason;
    row->updated_us = wall_us();
    database_.put_checkpoint(*row);
    bool available = status == "available";
    if (available) data["available_us"] = row->updated_us - row->created_us;
    // Nobody but the replica that waits in it can start from it.
    database_.append_event(
        {.type = available && is_own(row->fingerprint) ? "checkpoint.own" : "checkpoint." + status,
         .pod = row->pod,
         .replica = row->replica,
         .checkpoint = id,
         .message = reason.empty() ? "checkpoint " + id + " is " + status : reason,
         .data = data});
  });
  log::info("checkpoint moved", {{"checkpoint", id}, {"to", status}, {"why", reason}});
  on_change_();
  if (!one_of(status, kUnsettled)) tell_settled(id);
  std::scoped_lock lock(mutex_);
  changed_.notify_all();
}

void Checkpoints::tell_settled(const std::string& id) {
  std::scoped_lock lock(mutex_);
  for (auto [at, end] = settlers_.equal_range(id); at != end; at = settlers_.erase(at))
    signal_event(at->second);
}

Fd Checkpoints::settled(const std::string& id) {
  Fd event = Fd::event();
  {
    std::scoped_lock lock(mutex_);
    settlers_.emplace(id, event.duplicate());
  }
  // It may have happened before.
  auto row = database_.checkpoint(id);
  if (!row || !one_of(row->status, kUnsettled)) tell_settled(id);
  return event;
}

UsableCheckpoint Checkpoints::own_state(const std::string& id) {
  std::shared_ptr<void> pinned = pin(id);
  auto row = database_.checkpoint(id);
  if (!row || row->status != "available")
    throw Error(
        Code::kNotFound, "use checkpoint", id,
        row ? fmt::format("it is {}: {}", row->status, row->reason) : "it is not there any more");
  UsableCheckpoint usable = load(*row);
  if (usable.manifest.host != host_)
    throw Error(Code::kUnsupported, "use checkpoint", id, "it was made for another host");
  usable.served = true;  // nobody will start from it again: there is nothing to learn
  usable.pin = std::move(pinned);
  return usable;
}

void Checkpoints::forget_replica(const std::string& replica, const std::string& keep) noexcept {
  try_to("what a replica was paused with could not be removed", "", [&] {
    for (const auto& row : database_.checkpoints({}, std::string(kOwnMark) + replica))
      if (row.id != keep && row.status == "available") retire(row.id, "", nlohmann::json::object());
  });
}

void Checkpoints::done_with(const std::string& id) {
  {
    std::scoped_lock lock(mutex_);
    in_work_.erase(id);
    reserved_.erase(id);
  }
  replica_ended();
}

void Checkpoints::discard_files(const std::string& id) {
  try {
    remove_tree(settings_.checkpoint_dir(id));
  } catch (const Error& error) {
    log::warn("files of a checkpoint could not be removed",
              {{"checkpoint", id}, {"error", error.what()}});
  }
}

bool Checkpoints::exists_for(const std::string& fingerprint) {
  for (const auto& row : database_.checkpoints({}, fingerprint))
    if (one_of(row.status, kUnsettled) || (row.status == "available" && !not_here(row.id)))
      return true;
  return false;
}

std::string Checkpoints::offered(const std::string& fingerprint) {
  for (const auto& row : database_.checkpoints({}, fingerprint))
    if (row.status == "available" && !not_here(row.id)) return row.id;
  return {};
}

bool Checkpoints::not_here(const std::string& id) {
  auto pause = database_.backoff("restore-" + id);
  return pause && pause->until_us == kForEver;
}

std::shared_ptr<void> Checkpoints::pin(const std::string& id) {
  std::scoped_lock lock(mutex_);
  pinned_.insert(id);
  return {nullptr, [this, id](void*) {
            std::scoped_lock again(mutex_);
            pinned_.erase(pinned_.find(id));
          }};
}

std::set<std::string> Checkpoints::used() {
  std::set<std::string> ids;
  for (const auto& replica : database_.replicas())
    if (replica.ended_us == 0) ids.insert(replica.started_from);
  std::scoped_lock lock(mutex_);
  ids.insert(in_work_.begin(), in_work_.end());
  ids.insert(pinned_.begin(), pinned_.end());
  return ids;
}

UsableCheckpoint Checkpoints::load(const state::CheckpointRow& row) {
  UsableCheckpoint usable;
  usable.row = row;
  usable.directory = settings_.checkpoint_dir(row.id);
  inflate(usable);
  usable.manifest = verifier_.verify(usable.directory);
  // A good checkpoint in another's place is another pod's memory.
  if (usable.manifest.id != row.id || usable.manifest.fingerprint != row.fingerprint)
    throw Error(Code::kCorrupt, "use checkpoint", usable.directory,
                "it is another one, " + usable.manifest.id);
  for (const std::string& layer : usable.manifest.layers)
    usable.layers.push_back(usable.directory + "/" + layer);
  auto record = checkpoint::read_record(usable.directory, row.id, key_);
  if (record) {
    usable.served = record->served;
  } else {
    // The shim takes it as it is.
    remove_tree(usable.directory + "/record");
  }
  return usable;
}

void Checkpoints::learn(const std::string& id, const std::vector<checkpoint::TouchedRange>& touched,
                        bool serving) {
  std::string directory = settings_.checkpoint_dir(id);
  std::scoped_lock lock(record_mutex_);
  try {
    checkpoint::TouchRecord record =
        checkpoint::read_record(directory, id, key_).value_or(checkpoint::TouchRecord{});
    std::vector<checkpoint::TouchedRange>& part = serving ? record.serving : record.start;
    std::uint64_t bytes = 0;
    for (const auto& range : part) bytes += range.length;
    for (const auto& range : touched) {
      if (serving && bytes >= checkpoint::kMostServing) break;
      part.push_back(range);
      bytes += range.length;
    }
    part = checkpoint::merge_ranges(std::move(part));
    record.served |= serving;
    if (exists(directory + "/manifest.json")) checkpoint::write_record(directory, id, record, key_);
  } catch (const std::exception& error) {
    log::warn("what a start touched could not be written down",
              {{"checkpoint", id}, {"error", error.what()}});
  }
}

std::optional<UsableCheckpoint> Checkpoints::find(const std::string& fingerprint,
                                                  const Note& note) {
  for (auto& row : database_.checkpoints({}, fingerprint)) {
    if (row.status != "available") continue;
    // Only what is pinned and still offered then is sure to keep its files.
    std::shared_ptr<void> pinned = pin(row.id);
    if (auto now = database_.checkpoint(row.id); !now || now->status != "available") continue;
    if (auto pause = database_.backoff("restore-" + row.id);
        pause && waits(*pause, unavailable_pause_us(pause->failures))) {
      if (note && pause->until_us == kForEver)
        note(fmt::format("checkpoint {} does not fit this host: {}", row.id, pause->reason),
             Outcome::kHostIncompatible);
      else if (note)
        note(fmt::format("checkpoint {} is not tried for {} s more: {}", row.id,
                         (pause->until_us - wall_us()) / 1'000'000, pause->reason),
             std::nullopt);
      continue;
    }
    try {
      UsableCheckpoint usable = load(row);
      usable.pin = std::move(pinned);
      return usable;
    } catch (const Error& error) {
      // A missing file of ours is as broken as a changed one: it will not come back. What the host
      // had no descriptors, memory or time for is no fault of the checkpoint.
      Outcome outcome = Outcome::kUnavailable;
      if (error.code() == Code::kUnsupported) outcome = Outcome::kHostIncompatible;
      if (error.code() == Code::kCorrupt || error.code() == Code::kNotFound)
        outcome = Outcome::kCorrupt;
      if (note) note(error.what(), outcome);
      restore_ended(row.id, outcome, error.what());
    }
  }
  return std::nullopt;
}

std::optional<DumpTicket> Checkpoints::begin(const PodPlan& plan, const std::string& replica,
                                             bool forced, std::string* why,
                                             const std::function<std::uint64_t()>& size) {
  auto refuse = [&](const std::string& reason) {
    if (why) *why = reason;
    return std::nullopt;
  };
  if (!forced && exists_for(plan.fingerprint))
    return refuse("a checkpoint of this version exists or is being made");
  if (auto pause = database_.backoff(plan.fingerprint);
      !forced && pause &&
      waits(*pause, back_off_us(kFirstBackoffUs, kLongestBackoffUs, pause->failures)))
    return refuse(
        fmt::format("{} dumps of this version failed in a row, the next is tried in {} s: {}",
                    pause->failures, (pause->until_us - wall_us()) / 1'000'000, pause->reason));
  std::uint64_t bytes = size();
  // Room is looked for and taken by one at a time, so that two dumps do not count on the same.
  std::unique_lock one_at_a_time(begin_mutex_);
  if (std::string full; !make_room(bytes, "", &full)) return refuse(full);
  auto token = database_.acquire_lease("dump-" + plan.fingerprint, replica,
                                       kLeaseUs + static_cast<std::int64_t>(bytes / 10));
  if (!token) return refuse("another replica of this version is being dumped");
  DumpTicket ticket;
  ticket.id = random_hex(12);
  ticket.directory = settings_.checkpoint_dir(ticket.id);
  ticket.token = *token;
  ticket.plan = plan;
  ticket.replica = replica;
  {
    std::scoped_lock lock(mutex_);
    in_work_.insert(ticket.id);
    for (auto& [id, size] : reserved_) ticket.others += size;
    reserved_[ticket.id] = bytes;
  }
  one_at_a_time.unlock();
  try {
    make_directories(ticket.directory, 0700);
    state::CheckpointRow row;
    row.id = ticket.id;
    row.pod = plan.spec.name;
    row.fingerprint = plan.fingerprint;
    row.status = "creating";
    row.created_us = row.updated_us = wall_us();
    row.replica = replica;
    database_.transaction([&] {
      database_.put_checkpoint(row);
      database_.append_event({.type = "checkpoint.creating",
                              .pod = row.pod,
                              .replica = replica,
                              .checkpoint = row.id,
                              .message = "checkpoint " + row.id + " is being made"});
    });
  } catch (const std::exception&) {
    try_to("a dump that could not begin keeps its lease", ticket.id,
           [&] { database_.release_lease("dump-" + plan.fingerprint, ticket.token); });
    discard_files(ticket.id);
    std::scoped_lock lock(mutex_);
    in_work_.erase(ticket.id);
    reserved_.erase(ticket.id);
    throw;
  }
  fault_point("dump.leased");
  return ticket;
}

void Checkpoints::dumped(DumpTicket ticket, const nlohmann::json& result,
                         std::shared_ptr<ShimClient> shim) {
  std::scoped_lock lock(mutex_);
  to_collect_.insert(ticket.id);
  jobs_.push_back({std::move(ticket), result, std::move(shim)});
  changed_.notify_all();
}

bool Checkpoints::wait_collected(const std::string& id, Deadline deadline) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, std::chrono::microseconds(deadline.left_us()),
                           [&] { return closing_ || !to_collect_.contains(id); });
}

void Checkpoints::back_off(const std::string& fingerprint, const std::string& reason) {
  auto row = database_.backoff(fingerprint).value_or(state::Database::BackoffRow{});
  ++row.failures;
  row.reason = reason;
  row.until_us = wall_us() + back_off_us(kFirstBackoffUs, kLongestBackoffUs, row.failures);
  database_.put_backoff(fingerprint, row);
}

void Checkpoints::fail(const DumpTicket& ticket, const std::string& reason, bool count) {
  // Together: who sees that it has failed sees when the next is tried, and a daemon that dies here
  // has written all of it or nothing.
  database_.transaction([&] {
    set_status(ticket.id, "failed", reason);
    if (count) back_off(ticket.plan.fingerprint, reason);
    database_.release_lease("dump-" + ticket.plan.fingerprint, ticket.token);
  });
}

void Checkpoints::dump_failed(const DumpTicket& ticket, const std::string& reason,
                              bool count) noexcept {
  try {
    fail(ticket, reason, count);
    done_with(ticket.id);
  } catch (const std::exception& error) {
    log::error("a checkpoint's failure could not be written down; it is tried again",
               {{"checkpoint", ticket.id}, {"error", error.what()}});
    std::scoped_lock lock(mutex_);
    jobs_.push_back({.ticket = ticket, .failure = reason, .count = count});
    changed_.notify_all();
  }
}

void Checkpoints::try_to(const char* what, const std::string& id,
                         const std::function<void()>& work) noexcept {
  try {
    work();
  } catch (const std::exception& error) {
    log::error(what, {{"checkpoint", id}, {"error", error.what()}});
  }
}

void Checkpoints::restore_ended(const std::string& id, Outcome outcome,
                                const std::string& reason) noexcept {
  try_to("how a restore ended could not be written down", id, [&] {
    // Together: a daemon that dies here has written all of it or nothing.
    database_.transaction([&] {
      auto row = database_.checkpoint(id);
      if (!row) return;
      // Failures are forgotten when it has lived for a while, see lived().
      if (outcome == Outcome::kRestored) ++row->restores;
      if (outcome == Outcome::kRefused || outcome == Outcome::kAppFailed) ++row->failures_in_a_row;
      row->updated_us = wall_us();  // when it was last used: what make_room goes by
      database_.put_checkpoint(*row);
      std::string pause = "restore-" + id;
      if (outcome == Outcome::kRestored) return database_.clear_backoff(pause);
      switch (verdict(outcome, static_cast<int>(row->failures_in_a_row))) {
        case Verdict::kStays:
          break;
        case Verdict::kRetryLater: {
          auto earlier = database_.backoff(pause).value_or(state::Database::BackoffRow{});
          ++earlier.failures;
          earlier.reason = reason;
          earlier.until_us = wall_us() + unavailable_pause_us(earlier.failures);
          database_.put_backoff(pause, earlier);
          break;
        }
        case Verdict::kNotHereAgain:
          database_.put_backoff(pause, {1, kForEver, reason});
          break;
        case Verdict::kRestoreFailed:
          if (row->status == "available" || row->status == "verifying")
            set_status(id, "restore_failed", reason);
          // A file that was damaged says nothing about the program; the next may be whole.
          if (outcome != Outcome::kCorrupt)
            back_off(row->fingerprint, "a restored replica failed: " + reason);
          break;
      }
    });
  });
}

void Checkpoints::lived(const std::string& id) noexcept {
  try_to("that a replica lives on could not be written down", id, [&] {
    auto row = database_.checkpoint(id);
    if (!row || (row->failures_in_a_row == 0 && !database_.backoff(row->fingerprint))) return;
    database_.transaction([&] {
      row = database_.checkpoint(id);
      if (!row) return;
      row->failures_in_a_row = 0;
      database_.put_checkpoint(*row);
      database_.clear_backoff(row->fingerprint);
    });
  });
}

void Checkpoints::forget_pod(const std::string& pod) {
  for (const auto& row : database_.checkpoints(pod)) {
    database_.clear_backoff(row.fingerprint);
    if (row.status != "deleted") set_status(row.id, "deleted", "");
  }
}

void Checkpoints::remove(const std::string& id) { retire(id, "", nlohmann::json::object()); }

void Checkpoints::retire(const std::string& id, const std::string& reason, nlohmann::json data) {
  set_status(id, "deleted", reason, std::move(data));
  fault_point("checkpoint.deleted");
  replica_ended();
}

void Checkpoints::verify(const std::string& id) {
  std::shared_ptr<void> pinned = pin(id);
  auto row = database_.checkpoint(id);
  if (!row || row->status != "available")
    throw Error(Code::kConflict, "verify checkpoint", id,
                row ? "it is " + row->status : "there is none with this id",
                "see `thaw checkpoint ls`");
  auto moves = [&] {
    std::scoped_lock lock(rest_mutex_);
    return rest_moves_;
  };
  // Of its own: restores ask the other one meanwhile.
  auto read = [&] {
    return checkpoint::Verifier(key_).verify_anew(settings_.checkpoint_dir(id), [&] {
      if (wait_readable(closing_event_.get(), Deadline::after_us(0)))
        throw Error(Code::kCancelled, "verify checkpoint", id, "the daemon ends");
    });
  };
  try {
    checkpoint::Manifest manifest;
    for (bool again = true; again;) {
      again = false;
      std::uint64_t before = moves();
      try {
        manifest = read();
      } catch (const Error&) {
        // A file that went to rest or came back between two looks is not missing.
        std::scoped_lock settled(inflate_mutex_);
        again = moves() != before;
        if (!again) throw;
      }
    }
    if (manifest.id != id || manifest.fingerprint != row->fingerprint)
      throw Error(Code::kCorrupt, "verify checkpoint", id, "it is another one, " + manifest.id);
  } catch (const Error& error) {
    if (error.code() != Code::kCorrupt && error.code() != Code::kNotFound) throw;
    restore_ended(id, Outcome::kCorrupt, error.what());
    pinned.reset();
    replica_ended();
    throw;
  }
}

void Checkpoints::background_loop(std::int64_t (Checkpoints::*look)()) {
  // Of this thread alone.
  ::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), 19);
  constexpr int kIdle = 3 << 13;
  ::syscall(SYS_ioprio_set, 1, 0, kIdle);
  for (;;) {
    std::int64_t next_us = (this->*look)();
    std::unique_lock lock(mutex_);
    // What is made or used meanwhile is not due before the next look.
    changed_.wait_for(lock, std::chrono::microseconds(next_us), [&] { return closing_; });
    if (closing_) return;
  }
}

// A disk may lose bits of a file that nobody has written to, which no restore would notice.
std::int64_t Checkpoints::scrub() {
  std::int64_t next_us = settings_.verify_every_us;
  try {
    for (const auto& row : database_.checkpoints()) {
      if (row.status != "available") continue;
      {
        std::scoped_lock lock(mutex_);
        if (closing_) return 0;
      }
      // A time that is to come is from before the clock was set back.
      std::int64_t age = wall_us() - checkpoint::checked_us(settings_.checkpoint_dir(row.id));
      std::int64_t left = age < 0 ? 0 : settings_.verify_every_us - age;
      if (left > 0)
        next_us = std::min(next_us, left);
      else
        try_to("a checkpoint is broken, or could not be read", row.id, [&] { verify(row.id); });
    }
  } catch (const std::exception& error) {
    log::warn("checkpoints could not be verified", {{"error", error.what()}});
  }
  return next_us;
}

StoreSize Checkpoints::store_size() {
  StoreSize size;
  size.quota = settings_.checkpoint_quota;
  for (auto& row : database_.checkpoints()) {
    look(row);
    size.used += row.stored_bytes;
  }
  struct statvfs info {};
  if (::statvfs((settings_.data_dir + "/checkpoints").c_str(), &info) == 0)
    size.free = static_cast<std::uint64_t>(info.f_bavail) * info.f_frsize;
  return size;
}

bool Checkpoints::make_room(std::uint64_t bytes, const std::string& keep, std::string* why,
                            std::uint64_t passing) {
  {
    std::scoped_lock lock(mutex_);
    passing += inflating_;
    for (const auto& [id, more] : reserved_) bytes += more;
  }
  for (;;) {
    StoreSize size = store_size();
    std::uint64_t over_quota =
        size.quota && size.used + bytes > size.quota ? size.used + bytes - size.quota : 0;
    std::uint64_t needed = bytes + passing + kReserve;
    std::uint64_t over_disk = needed > size.free ? needed - size.free : 0;
    if (!over_quota && !over_disk) return true;
    std::set<std::string> busy = used();
    busy.insert(keep);
    std::optional<state::CheckpointRow> oldest;
    for (const auto& row : database_.checkpoints()) {
      if (row.status != "available" || busy.count(row.id)) continue;
      if (!oldest || row.updated_us < oldest->updated_us) oldest = row;
    }
    if (!oldest) {
      *why = over_quota
                 ? fmt::format(
                       "{} more would not fit into the quota of {}, of which {} are in use; "
                       "raise --checkpoint-quota, or remove checkpoints",
                       format_bytes(bytes), format_bytes(size.quota), format_bytes(size.used))
                 : fmt::format(
                       "{} more would not fit on the disk, which has {} left; make room, "
                       "or remove checkpoints",
                       format_bytes(bytes + passing), format_bytes(size.free));
      return false;
    }
    retire(oldest->id,
           fmt::format("it made room for another: of those that nothing runs from it "
                       "was used longest ago ({})",
                       format_wall(oldest->updated_us)),
           {{"evicted", true}});
    if (exists(settings_.checkpoint_dir(oldest->id))) {
      *why = "the files of checkpoint " + oldest->id + " could not be removed";
      return false;
    }
  }
}

std::optional<std::string> Checkpoints::of_another_host(const PodPlan& plan) {
  for (const auto& row : database_.checkpoints(plan.spec.name)) {
    if (row.status != "available" || row.fingerprint == plan.fingerprint || is_own(row.fingerprint))
      continue;
    nlohmann::json manifest =
        checkpoint::read_signed(settings_.checkpoint_dir(row.id) + "/manifest.json", key_);
    if (!manifest.is_object() || manifest.value("program", "") != plan.program) continue;
    const nlohmann::json& theirs = manifest["host"];
    std::string reasons;
    auto add = [&](const std::string& text) { reasons += (reasons.empty() ? "" : "; ") + text; };
    auto compare = [&](const char* key, const char* what) {
      std::string there = theirs.value(key, ""), here = host_.value(key, "");
      if (there != here) add(fmt::format("{} is {} here and was {}", what, here, there));
    };
    compare("arch", "the architecture");
    std::istringstream needed(theirs.value("features", "")), present(host_.value("features", ""));
    std::set<std::string> features{std::istream_iterator<std::string>(present), {}};
    std::string missing;
    for (std::string word; needed >> word;)
      if (!features.count(word)) missing += " " + word;
    if (!missing.empty()) add("this processor lacks" + missing);
    compare("cpu", "the processor");
    compare("kernel", "the kernel");
    compare("criu", "CRIU");
    if (reasons.empty()) add("the host's class has changed");
    return fmt::format("checkpoint {} was made for another host: {}; a new one is made here",
                       row.id, reasons);
  }
  return std::nullopt;
}

void Checkpoints::replica_ended() noexcept {
  try_to("files of checkpoints could not be removed", "", [this] {
    std::scoped_lock one_at_a_time(discard_mutex_);
    std::set<std::string> busy = used();
    std::map<std::string, int> kept;  // by pod
    for (const auto& row : database_.checkpoints()) {
      if (!one_of(row.status, {"deleted", "failed", "restore_failed"}) || busy.count(row.id))
        continue;
      if (exists(settings_.checkpoint_dir(row.id))) discard_files(row.id);
      // Rows of the newest that failed stay, for their reasons.
      bool stays = row.status != "deleted" && ++kept[row.pod] <= kKeptFailures;
      if (!stays && !exists(settings_.checkpoint_dir(row.id))) database_.remove_checkpoint(row.id);
    }
  });
}

bool Checkpoints::wait_settled(const std::string& id, Deadline deadline) {
  std::unique_lock lock(mutex_);
  for (;;) {
    lock.unlock();
    auto row = database_.checkpoint(id);
    lock.lock();
    if (!row || !one_of(row->status, kUnsettled)) return true;
    if (deadline.passed() || closing_) return false;
    changed_.wait_for(
        lock, std::chrono::microseconds(std::min<std::int64_t>(deadline.left_us(), 1'000'000)));
  }
}

void Checkpoints::recover(
    const std::function<std::optional<PodPlan>(const std::string&)>& plan_of) {
  fault_point("recover.begun");
  for (auto& row : database_.checkpoints()) {
    {
      std::scoped_lock lock(mutex_);
      if (in_work_.contains(row.id)) continue;  // ours, when this is not the first try
    }
    if (row.status == "creating") {
      discard_files(row.id);
      set_status(row.id, "failed", "the daemon ended while it was being made");
    } else if (is_own(row.fingerprint) && row.status == "available") {
      auto replica = database_.replica(row.replica);
      if (!replica || replica->ended_us || replica->started_from != row.id)
        set_status(row.id, "deleted", "");
    } else if (row.status == "sealed" || row.status == "verifying") {
      auto plan = plan_of(row.pod);
      if (!plan || plan->fingerprint != row.fingerprint) {
        discard_files(row.id);
        set_status(row.id, "failed", "the pod has changed before it was proven");
        continue;
      }
      std::scoped_lock lock(mutex_);
      in_work_.insert(row.id);
      proofs_.push_back(
          {.ticket = {row.id, settings_.checkpoint_dir(row.id), 0, *plan, row.replica}});
      changed_.notify_all();
    }
  }
  database_.forget_the_dead();
  // Folders that no row knows: of a database that was removed or put back from a backup.
  for (const auto& entry : std::filesystem::directory_iterator(settings_.data_dir + "/checkpoints"))
    if (!database_.checkpoint(entry.path().filename())) discard_files(entry.path().filename());
  // One that is being compressed already, by hand, cleans up by itself.
  if (std::unique_lock quiet(compress_mutex_, std::try_to_lock); quiet) {
    std::scoped_lock lock(inflate_mutex_);
    for (const auto& row : database_.checkpoints())
      try_to("what compressing has left could not be removed", row.id,
             [&] { checkpoint::tidy_rest(settings_.checkpoint_dir(row.id)); });
  }
  replica_ended();
  // Not before: another daemon that this one takes over from may have used them until now.
  std::scoped_lock lock(mutex_);
  if (settings_.compress_after_us && !closing_ && !rester_.joinable())
    rester_ = std::thread([this] { background_loop(&Checkpoints::rest); });
}

void Checkpoints::work_loop(std::deque<Job>& jobs, bool (Checkpoints::*work)(Job&)) {
  std::unique_lock lock(mutex_);
  while (!closing_) {
    if (jobs.empty()) {
      changed_.wait(lock);
      continue;
    }
    Job job = std::move(jobs.front());
    jobs.pop_front();
    lock.unlock();
    bool told = !job.failure.empty(), done = true;
    try {
      if (told)
        fail(job.ticket, job.failure, job.count);
      else
        done = (this->*work)(job);
      if (done) done_with(job.ticket.id);
      lock.lock();
    } catch (const std::exception& error) {
      if (!told)
        log::error("a checkpoint could not be completed",
                   {{"checkpoint", job.ticket.id}, {"error", error.what()}});
      job.shim.reset();
      if (!told) job.failure = error.what();
      lock.lock();
      jobs.push_back(std::move(job));
      // Its failure cannot be written either, as on a full disk: later, then.
      if (told) changed_.wait_for(lock, kRewritePause);
    }
  }
}

// False: it is still to be proven.
bool Checkpoints::finish(Job& job) {
  const DumpTicket& ticket = job.ticket;
  log::Context about("replica", ticket.replica), about_checkpoint("checkpoint", ticket.id);
  const PodPlan& plan = ticket.plan;
  fault_point("seal.begun");
  checkpoint::Manifest manifest;
  {
    Finally collected([&] {
      std::scoped_lock lock(mutex_);
      to_collect_.erase(ticket.id);
      changed_.notify_all();
    });
    nlohmann::json left = job.shim->call({{"op", "collect"},
                                          {"directory", ticket.directory},
                                          {"staged", job.result.at("staged")},
                                          {"own", is_own(plan.fingerprint)}},
                                         collect_deadline());
    manifest.left_out = {left.at("zero_bytes"), left.at("file_bytes")};
  }
  job.shim.reset();
  manifest.id = ticket.id;
  manifest.pod = plan.spec.name;
  manifest.fingerprint = plan.fingerprint;
  manifest.program = plan.program;
  if (plan.spec.checkpoint.when) manifest.condition = condition_text(*plan.spec.checkpoint.when);
  manifest.host = host_;
  manifest.created_us = wall_us();
  job.result.at("environment").get_to(manifest.environment);
  job.result.at("mounts").get_to(manifest.mounts);
  job.result.at("pipes").get_to(manifest.pipes);
  job.result.at("layers").get_to(manifest.layers);
  job.result.at("frozen_us").get_to(manifest.freeze_us);
  job.result.at("total_us").get_to(manifest.dump_us);
  checkpoint::seal(manifest, ticket.directory, key_);
  fault_point("seal.written");
  if (!database_.lease_holds("dump-" + plan.fingerprint, ticket.token)) {
    fail(ticket, "another dump of this version has begun meanwhile", false);
    return true;
  }
  bool removed = false;
  database_.transaction([&] {
    auto row = database_.checkpoint(ticket.id);
    removed = !row || row->status == "deleted";
    if (removed) return;
    row->bytes = manifest.bytes;
    row->memory_bytes = manifest.memory_bytes;
    row->freeze_us = manifest.freeze_us;
    row->dump_us = manifest.dump_us;
    database_.put_checkpoint(*row);
  });
  if (removed) {
    fail(ticket, "it was removed while it was being made", false);
    return true;
  }
  {
    std::scoped_lock lock(mutex_);
    reserved_.erase(ticket.id);  // its row counts from now on
  }
  set_status(ticket.id, "sealed", "",
             {{"freeze_us", manifest.freeze_us},
              {"freeze_parts", job.result.at("parts")},
              {"dump_us", manifest.dump_us}});
  if (std::string full; !make_room(0, ticket.id, &full))
    log::warn("checkpoints take more than they may", {{"checkpoint", ticket.id}, {"why", full}});
  fault_point("seal.sealed");
  database_.release_lease("dump-" + plan.fingerprint, ticket.token);
  if (!plan.spec.checkpoint.verify) {
    bool own = is_own(plan.fingerprint);
    set_status(ticket.id, "available",
               own ? fmt::format("replica {} alone goes on from it", ticket.replica) : "");
    return true;
  }
  std::scoped_lock lock(mutex_);
  proofs_.push_back({.ticket = ticket});
  changed_.notify_all();
  return false;
}

// A checkpoint that no restore has shown to work is a guess. The proof runs behind a closed gate
// and with its link closed: it has no effect outside.
bool Checkpoints::prove(Job& job) {
  const PodPlan& plan = job.ticket.plan;
  const std::string& id = job.ticket.id;
  set_status(id, "verifying", "");
  Outcome outcome = Outcome::kUnavailable;
  std::string reason;
  for (int attempt_number = 1; attempt_number <= 2; ++attempt_number) {
    bool diagnose = attempt_number > 1;
    UsableCheckpoint usable;
    RestoreAttempt attempt;
    std::string replica = random_hex(12), log_dir = settings_.log_dir("proof-" + id);
    log::Context about("replica", replica);
    std::unique_ptr<Slot> slot;
    try {
      usable = load(database_.checkpoint(id).value());
      Turns::Turn turn = turns_.wait(false);
      slot = slots_.take();
      fault_point("proof.slot", {{"shim", slot->shim_pid}});
      attempt = attempt_restore(*slot, plan, usable, replica, plan.spec.name + "-proof", log_dir,
                                Purpose::kProof, diagnose);
      if (attempt.end.phase == RestorePhase::kResumed) {
        fault_point("proof.restored", {{"shim", slot->shim_pid}, {"container", attempt.pid}});
        Fd cancel = any_of({closing_event_.get(), slot->shim->ended_fd()});
        validate(attempt, *slot, plan, log_dir, cancel.get());
        fault_point("proof.validated", {{"shim", slot->shim_pid}, {"container", attempt.pid}});
      }
      if (attempt.end.phase == RestorePhase::kValidated)
        if (auto touched = touched_memory(*slot, false)) learn(id, *touched, false);
    } catch (const Error& error) {
      attempt.end.error = error.code();
      attempt.end.reason = error.what();
    }
    slots_.destroy(std::move(slot));
    fault_point("proof.cleaned");
    try {
      // What CRIU did the second time explains the failure; it stays until the daemon's next start.
      if (!diagnose || attempt.end.phase == RestorePhase::kValidated) remove_tree(log_dir);
    } catch (const Error&) {
      // Only a log.
    }
    {
      std::scoped_lock lock(mutex_);
      if (closing_) return true;  // still "verifying": the next daemon proves it
    }
    outcome = classify(attempt.end);
    reason = attempt.end.reason;
    note_criu_log(database_, {.pod = plan.spec.name, .checkpoint = id}, "proof", attempt.log_tail);
    if (outcome == Outcome::kRestored) {
      set_status(id, "available", "");
      return true;
    }
    if (outcome == Outcome::kCorrupt) break;
  }
  database_.transaction([&] {
    set_status(id, "failed", fmt::format("its proof failed ({}): {}", name(outcome), reason));
    back_off(plan.fingerprint, "the proof failed: " + reason);
  });
  return true;
}

}  // namespace thaw::lifecycle
