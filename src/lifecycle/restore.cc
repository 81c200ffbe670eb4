#include "lifecycle/restore.h"

#include <sys/epoll.h>

#include <cstdlib>

#include "lifecycle/condition.h"
#include "lifecycle/slot_target.h"
#include "util/error.h"
#include "util/fault.h"
#include "util/file.h"
#include "util/log.h"

namespace thaw::lifecycle {
namespace {

constexpr std::int64_t kValidateUs = 30'000'000;
constexpr std::int64_t kHookUs = 60'000'000;

std::int64_t oom_kills(Slot& slot) {
  try {
    return slot.shim->call({{"op", "status"}}, Deadline::after_ms(2000))
        .value("oom_kills", std::int64_t{0});
  } catch (const Error&) {
    return 0;
  }
}

const char* memory_way(state::CheckpointSpec::Memory memory) {
  using Memory = state::CheckpointSpec::Memory;
  if (memory == Memory::kEager) return "eager";
  return memory == Memory::kBackground ? "background" : "lazy";
}

}  // namespace

int criu_log_level(int otherwise) {
  const char* text = std::getenv("THAW_CRIU_LOG");
  return text && text[0] >= '0' && text[0] <= '4' ? text[0] - '0' : otherwise;
}

std::int64_t restore_timeout_us(const checkpoint::Manifest& manifest) {
  // 20 MiB/s is slower than any disk that images should lie on. CRIU goes through processes,
  // threads and mappings one by one, at the dump as here; this machine may be busier than it was
  // then.
  return 20'000'000 + static_cast<std::int64_t>(manifest.memory_bytes / 20) +
         10 * manifest.freeze_us;
}

std::optional<std::string> run_hook(Slot& slot, const char* name,
                                    const std::vector<std::string>& argv, int cancel_fd) {
  if (argv.empty()) return std::nullopt;
  fault_point("hook.begun", {{"shim", slot.shim_pid}});
  try {
    RunResult result = slot.shim->exec(argv, Deadline::after_us(kHookUs), "", cancel_fd);
    if (result.ok()) return std::nullopt;
    return fmt::format("its {} program failed: {}", name, result.why());
  } catch (const Error& error) {
    if (error.code() == Code::kCancelled) throw;
    return fmt::format("its {} program failed: {}", name, error.what());
  }
}

void note_criu_log(state::Database& database, const state::EventRow& whose, const char* what,
                   const std::string& log_tail) {
  if (log_tail.empty()) return;
  state::EventRow event = whose;
  event.type = "criu.failed";
  event.message =
      fmt::format("the end of CRIU's log of the failed {} is this event's data.log", what);
  event.data = {{"log", log_tail}};
  database.append_event(event);
}

std::optional<std::vector<checkpoint::TouchedRange>> touched_memory(Slot& slot, bool serving) {
  try {
    slot.shim->call({{"op", "touched"}, {"serving", serving}}, Deadline::after_ms(5000));
    return checkpoint::decode_ranges(read_file(slot.paths.touched()));
  } catch (const Error& error) {
    log::warn("what a start touched is not known", {{"slot", slot.name}, {"error", error.what()}});
    return std::nullopt;
  }
}

RestoreAttempt attempt_restore(Slot& slot, const PodPlan& plan, const UsableCheckpoint& checkpoint,
                               const std::string& replica, const std::string& hostname,
                               const std::string& log_dir, Purpose purpose, bool diagnose) {
  RestoreAttempt attempt;
  bool proof = purpose == Purpose::kProof;
  try {
    // What a replica had written it goes on writing to. As one more read-only layer at each pause
    // it would have more of them than a mount can take.
    bool own = purpose == Purpose::kOwn;
    std::vector<std::string> layers(checkpoint.layers.begin() + (own ? 1 : 0),
                                    checkpoint.layers.end());
    runtime::ContainerSpec container =
        container_of(plan, replica, hostname, checkpoint.row.id, layers);
    if (purpose == Purpose::kStandby || purpose == Purpose::kStopped) container.identity.clear();
    nlohmann::json result =
        slot.shim->call({{"op", "restore"},
                         {"spec", runtime::to_json(container)},
                         {"log_dir", log_dir},
                         {"directory", checkpoint.directory},
                         {"mounts", checkpoint.manifest.mounts},
                         {"pipes", checkpoint.manifest.pipes},
                         {"memory", memory_way(plan.spec.checkpoint.memory)},
                         {"own", own},
                         {"link", !proof},
                         {"stopped", purpose == Purpose::kStopped},
                         // These make the record: the proof of what a start needs, the first that
                         // serves of what its first requests need.
                         {"exact", proof || !checkpoint.served},
                         {"timeout_us", restore_timeout_us(checkpoint.manifest)},
                         {"log_level", diagnose ? 4 : criu_log_level(1)}},
                        Deadline::after_us(restore_timeout_us(checkpoint.manifest) + 10'000'000));
    attempt.phases = result.at("phases");
    if (result.at("success")) {
      attempt.pid = result.at("pid");
      attempt.end.phase = RestorePhase::kResumed;
      return attempt;
    }
    attempt.end.criu_refused = true;
    attempt.end.timed_out = result.at("timed_out");
    if (result.contains("beside")) attempt.end.error = result["beside"].get<Code>();
    attempt.end.reason = result.at("reason");
    attempt.log_tail = result.at("log_tail");
    attempt.end.oom_kills = oom_kills(slot);
  } catch (const Error& error) {
    attempt.end.error = error.code();
    attempt.end.reason = error.what();
  } catch (const std::exception& error) {
    attempt.end.error = Code::kInternal;
    attempt.end.reason = error.what();
  }
  return attempt;
}

void validate(RestoreAttempt& attempt, Slot& slot, const PodPlan& plan, const std::string& log_dir,
              int cancel_fd) {
  RestoreEnd& end = attempt.end;
  std::optional<state::Condition> probe;
  if (plan.spec.ready) probe = readiness_probe(*plan.spec.ready);
  if (!probe && plan.spec.checkpoint.when) probe = readiness_probe(*plan.spec.checkpoint.when);
  try {
    if (auto why = run_hook(slot, "after_restore", plan.spec.checkpoint.after_restore, cancel_fd)) {
      end.reason = *why;
    } else if (probe) {
      SlotTarget target(slot, attempt.pid, log_dir, command_of(plan));
      WaitOutcome outcome =
          wait_condition(*probe, target, Deadline::after_us(kValidateUs), cancel_fd);
      if (outcome.result == WaitResult::kHolds) {
        end.phase = RestorePhase::kValidated;
        return;
      }
      end.reason = fmt::format("it did not answer its probe within {} s: {}",
                               kValidateUs / 1'000'000, outcome.last);
      return;
    }
    // Being alive is enough.
    if (end.reason.empty() && !wait_readable(slot.shim->ended_fd(), Deadline::after_us(0))) {
      end.phase = RestorePhase::kValidated;
      return;
    }
  } catch (const Error& error) {
    if (error.code() != Code::kCancelled) {
      end.reason = error.what();
      // What the host had no room for here says nothing about the program.
      if (error.code() == Code::kExhausted) end.error = error.code();
      // A program that ends makes a probe fail in many ways; how it ended is what to tell.
      wait_readable(slot.shim->ended_fd(), Deadline::after_ms(1000));
    }
  }
  end.exit = slot.shim->exit_status();
  end.oom_kills = oom_kills(slot);
  if (end.exit) {
    end.reason = "the restored program ended before it was ready: " + end.exit->text();
  } else if (slot.shim->lost()) {
    end.error = Code::kUnavailable;
    end.reason = "the shim is gone";
  }
}

Fd any_of(std::initializer_list<int> descriptors) {
  Fd group(check(::epoll_create1(EPOLL_CLOEXEC), "make epoll"));
  for (int fd : descriptors) {
    epoll_event event{EPOLLIN, {.fd = fd}};
    check(::epoll_ctl(group.get(), EPOLL_CTL_ADD, fd, &event), "watch descriptor");
  }
  return group;
}

}  // namespace thaw::lifecycle
