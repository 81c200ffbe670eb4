// The part of Checkpoints that compresses what nobody uses, and inflates it again.
#include <sys/statvfs.h>

#include "checkpoint/rest.h"
#include "lifecycle/checkpoints.h"
#include "util/error.h"
#include "util/fault.h"
#include "util/file.h"
#include "util/finally.h"
#include "util/log.h"

namespace thaw::lifecycle {
namespace {

// What else needs the disk comes first.
constexpr std::uint64_t kLeftFree = 512u << 20;

std::uint64_t free_bytes(const std::string& path) {
  struct statvfs info {};
  if (::statvfs(path.c_str(), &info) != 0) return UINT64_MAX;
  return static_cast<std::uint64_t>(info.f_bavail) * info.f_frsize;
}

}  // namespace

void Checkpoints::look(state::CheckpointRow& row) {
  std::string directory = settings_.checkpoint_dir(row.id);
  row.stored_bytes = exists(directory) ? row.bytes : 0;
  row.compressed = false;
  if (row.stored_bytes == 0) return;
  try {
    if (auto memory = checkpoint::resting_memory(directory)) {
      row.compressed = true;
      row.stored_bytes = row.bytes - std::min(row.bytes, row.memory_bytes) + *memory;
    }
  } catch (const Error& error) {
    log::warn("what a checkpoint takes on the disk is not known",
              {{"checkpoint", row.id}, {"error", error.what()}});
  }
}

bool Checkpoints::used_besides(const std::string& id) {
  for (const auto& replica : database_.replicas())
    if (replica.ended_us == 0 && replica.started_from == id) return true;
  std::scoped_lock lock(mutex_);
  return in_work_.contains(id) || pinned_.count(id) > 1;
}

void Checkpoints::compress(const std::string& id) {
  std::shared_ptr<void> pinned = pin(id);
  auto row = database_.checkpoint(id);
  if (!row || row->status != "available")
    throw Error(Code::kConflict, "compress checkpoint", id,
                row ? "it is " + row->status : "there is none with this id",
                "see `thaw checkpoint ls`");
  std::scoped_lock one_at_a_time(compress_mutex_);
  auto refuse_used = [&] {
    throw Error(Code::kConflict, "compress checkpoint", id, "a replica uses it",
                "try again when none runs from it");
  };
  if (used_besides(id)) refuse_used();
  std::string directory = settings_.checkpoint_dir(id);
  std::int64_t begin_us = monotonic_us();
  checkpoint::Compressed made;
  Finally clean([&] {
    try_to("what compressing has left could not be removed", id, [&] {
      {
        std::scoped_lock lock(inflate_mutex_);
        checkpoint::tidy_rest(directory);
      }
      pinned.reset();
      replica_ended();  // it may have been removed meanwhile
    });
  });
  fault_point("rest.begun");
  try {
    made = checkpoint::compress_memory(checkpoint::read_manifest(directory, key_), directory, [&] {
      if (wait_readable(closing_event_.get(), Deadline::after_us(0)))
        throw Error(Code::kCancelled, "compress checkpoint", id, "the daemon ends");
      if (free_bytes(directory) < kLeftFree)
        throw Error(Code::kExhausted, "compress checkpoint", id, "the disk is nearly full",
                    "make room, or remove checkpoints");
      std::scoped_lock lock(mutex_);
      if (pinned_.count(id) > 1) refuse_used();
    });
  } catch (const Error& error) {
    if (error.code() != Code::kCorrupt) throw;
    verify(id);  // says so, and sees to it that nobody starts from it
    throw;
  }
  if (made.files.empty()) {
    if (checkpoint::at_rest(directory)) return;
    hardly_smaller_.insert(id);
    throw Error(Code::kConflict, "compress checkpoint", id,
                "its memory is small, or would hardly become smaller");
  }
  fault_point("rest.written");
  {
    std::scoped_lock lock(rest_mutex_);
    // Whoever pins it from now on waits in inflate().
    if (used_besides(id)) refuse_used();
    ++rest_moves_;
    if (!checkpoint::settle_memory(made, directory))
      throw Error(Code::kConflict, "compress checkpoint", id, "its files have changed meanwhile",
                  "try again");
  }
  std::int64_t took_us = monotonic_us() - begin_us;
  database_.append_event(
      {.type = "memory.compressed",
       .pod = row->pod,
       .checkpoint = id,
       .message = fmt::format("the memory of checkpoint {} is compressed: {} take {}", id,
                              format_bytes(made.plain), format_bytes(made.stored)),
       .data = {{"plain_bytes", made.plain}, {"stored_bytes", made.stored}, {"took_us", took_us}}});
  on_change_();
}

void Checkpoints::inflate(UsableCheckpoint& usable) {
  const std::string& id = usable.row.id;
  {
    std::scoped_lock lock(rest_mutex_);
    // It is pinned: what is plain now stays so.
    if (!checkpoint::at_rest(usable.directory)) return;
  }
  std::scoped_lock lock(inflate_mutex_);
  if (!checkpoint::at_rest(usable.directory)) return;  // another start has inflated it
  std::int64_t begin_us = monotonic_us();
  checkpoint::Manifest manifest = checkpoint::read_manifest(usable.directory, key_);
  auto [more, passing] = checkpoint::inflated_bytes(manifest, usable.directory);
  {
    std::scoped_lock one_at_a_time(begin_mutex_);
    if (std::string full; !make_room(more, id, &full, passing))
      throw Error(Code::kExhausted, "inflate checkpoint", id, full);
    std::scoped_lock count(mutex_);
    inflating_ = more + passing;
  }
  auto moved = [&] {
    std::scoped_lock count(rest_mutex_);
    ++rest_moves_;
  };
  Finally done([&] {
    moved();
    std::scoped_lock count(mutex_);
    inflating_ = 0;
  });
  moved();
  checkpoint::inflate_memory(manifest, usable.directory);
  usable.inflate_begin_us = begin_us;
  usable.inflate_end_us = monotonic_us();
  database_.append_event({.type = "memory.inflated",
                          .pod = usable.row.pod,
                          .checkpoint = id,
                          .message = fmt::format("the memory of checkpoint {} is inflated: {}", id,
                                                 format_bytes(more + passing)),
                          .data = {{"plain_bytes", more + passing},
                                   {"stored_bytes", passing},
                                   {"took_us", usable.inflate_end_us - begin_us}}});
  on_change_();
}

std::int64_t Checkpoints::rest() {
  std::int64_t next_us = settings_.compress_after_us;
  try {
    std::set<std::string> busy = used(), left_plain;
    {
      std::scoped_lock lock(compress_mutex_);
      left_plain = hardly_smaller_;
    }
    std::map<std::string, std::int64_t> ended_us;  // the last replica that ran from it
    for (const auto& replica : database_.replicas())
      ended_us[replica.started_from] = std::max(ended_us[replica.started_from], replica.ended_us);
    for (const auto& row : database_.checkpoints()) {
      if (row.status != "available" || busy.contains(row.id) || left_plain.contains(row.id) ||
          checkpoint::at_rest(settings_.checkpoint_dir(row.id)))
        continue;
      {
        std::scoped_lock lock(mutex_);
        if (closing_) return 0;
      }
      // A time that is to come is from before the clock was set back.
      std::int64_t age = wall_us() - std::max(row.updated_us, ended_us[row.id]);
      std::int64_t left = age < 0 ? 0 : settings_.compress_after_us - age;
      if (left > 0) {
        next_us = std::min(next_us, left);
        continue;
      }
      try {
        compress(row.id);
      } catch (const Error& error) {
        log::info("a checkpoint is not compressed",
                  {{"checkpoint", row.id}, {"error", error.what()}});
      }
    }
  } catch (const std::exception& error) {
    log::warn("checkpoints could not be compressed", {{"error", error.what()}});
  }
  return next_us;
}

}  // namespace thaw::lifecycle
