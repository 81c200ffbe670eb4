#include "checkpoint/criu.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <sstream>

#include "checkpoint/rpc.pb.h"
#include "util/error.h"
#include "util/file.h"

namespace thaw::checkpoint {
namespace {

// criu_req_type of CRIU's RPC.
enum RequestType { kDump = 1, kRestore = 2, kNotify = 6 };
constexpr int kCgroupsIgnore = 0;    // criu_cg_mode
constexpr int kNetworkLockSkip = 3;  // criu_network_lock_method
constexpr int kSocketNumber = 3;     // in the child

// Files that were deleted but are open travel in the images up to this size.
constexpr std::uint32_t kGhostLimit = 1u << 30;

// 0, or the errno.
int send_message(const Fd& socket, const rpc::Request& request) {
  std::string bytes = request.SerializeAsString();
  ssize_t n;
  do n = ::send(socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
  while (n < 0 && errno == EINTR);
  return n < 0 ? errno : 0;
}

// nullopt at end of file, when CRIU has ended (processes that it forked may hold its socket open),
// or at the deadline.
std::optional<rpc::Response> receive_message(const Fd& socket, const Process& criu,
                                             Deadline deadline) {
  pollfd fds[2] = {{socket.get(), POLLIN, 0}, {criu.pidfd().get(), POLLIN, 0}};
  while (::poll(fds, 2, deadline.poll_ms()) < 0) {
    if (errno != EINTR) throw_errno("wait for", "CRIU");
  }
  if (!fds[0].revents) return std::nullopt;
  std::string buffer(64 << 10, '\0');
  ssize_t n;
  do n = ::recv(socket.get(), buffer.data(), buffer.size(), 0);
  while (n < 0 && errno == EINTR);
  rpc::Response response;
  if (n <= 0 || !response.ParseFromArray(buffer.data(), static_cast<int>(n))) return std::nullopt;
  return response;
}

void fill_common(rpc::Options& options, int images_dir, int work_dir, const char* log_name,
                 int log_level) {
  options.set_images_dir_fd(images_dir);
  options.set_work_dir_fd(work_dir);
  options.set_log_file(log_name);
  options.set_log_level(log_level);
  options.set_tcp_established(true);
  options.set_tcp_skip_in_flight(true);
  options.set_network_lock(kNetworkLockSkip);
  options.set_manage_cgroups_mode(kCgroupsIgnore);
  options.set_ext_unix_sk(true);
  options.set_file_locks(true);
  options.set_link_remap(true);
  options.set_orphan_pts_master(true);
  options.set_ghost_limit(kGhostLimit);
}

}  // namespace

Swrk Swrk::start(const CriuInstall& criu, ProcessOptions options) {
  auto [ours, theirs] = Fd::socket_pair(SOCK_SEQPACKET);
  options.descriptors.emplace_back(theirs.get(), kSocketNumber);
  std::vector<std::string> argv = criu.command;
  argv.insert(argv.end(), {"swrk", std::to_string(kSocketNumber)});
  Process process = Process::spawn(argv, options);
  return Swrk(std::move(process), std::move(ours));
}

CriuOutcome Swrk::dump(const DumpRequest& request,
                       const std::function<void(const std::string&)>& on_stage, Deadline deadline) {
  rpc::Request message;
  message.set_type(kDump);
  rpc::Options& options = *message.mutable_opts();
  fill_common(options, request.images_dir, request.work_dir, "dump.log", request.log_level);
  options.set_pid(request.pid);
  if (request.leave_stopped)
    options.set_leave_stopped(true);
  else
    options.set_leave_running(true);
  options.set_notify_scripts(true);
  for (auto& [target, key] : request.mounts) options.add_external("mnt[" + target + "]:" + key);
  return converse(message, on_stage, deadline, request.work_dir, "dump.log");
}

// Asks, and answers notifications until the response comes. A CRIU that is gone is an outcome, too.
CriuOutcome Swrk::converse(const rpc::Request& request,
                           const std::function<void(const std::string&)>& on_stage,
                           Deadline deadline, int work_dir, const char* log_name) {
  CriuOutcome outcome;
  std::string stage_failure;
  auto send = [&](const rpc::Request& message) {
    int error = send_message(socket_, message);
    // How a CRIU that is gone has ended says more than that it is gone.
    if (error != 0 && error != EPIPE && error != ECONNRESET)
      outcome.reason = std::string("the request could not be sent: ") + std::strerror(error);
    return error == 0;
  };
  bool sent = send(request);
  while (sent) {
    auto response = receive_message(socket_, process_, deadline);
    if (!response) break;
    if (response->type() == kNotify) {
      rpc::Request answer;
      answer.set_type(kNotify);
      answer.set_notify_success(true);
      try {
        on_stage(response->notify().script());
      } catch (const std::exception& error) {
        auto ours = dynamic_cast<const Error*>(&error);
        outcome.beside = ours ? ours->code() : Code::kInternal;
        stage_failure = error.what();
        answer.set_notify_success(false);
      }
      sent = send(answer);
      continue;
    }
    outcome.success = response->success() && stage_failure.empty();
    outcome.error_number = response->cr_errno();
    outcome.reason = response->cr_errmsg();
    outcome.pid = response->restore().pid();
    break;
  }
  outcome.timed_out = !outcome.success && deadline.passed();
  outcome = finish(std::move(outcome), work_dir, log_name);
  if (!stage_failure.empty()) outcome.reason = stage_failure;
  return outcome;
}

CriuOutcome Swrk::restore(const RestoreRequest& request,
                          const std::function<void(const std::string&)>& on_stage,
                          Deadline deadline) {
  rpc::Request message;
  message.set_type(kRestore);
  rpc::Options& options = *message.mutable_opts();
  fill_common(options, request.images_dir, request.work_dir, "restore.log", request.log_level);
  options.set_root(request.root);
  options.set_rst_sibling(true);
  options.set_notify_scripts(true);
  options.set_lazy_pages(request.lazy);
  options.set_leave_stopped(request.leave_stopped);
  for (auto& [key, source] : request.mounts) options.add_external("mnt[" + key + "]:" + source);
  for (auto& [key, number] : request.inherit) {
    rpc::InheritFd& entry = *options.add_inherit_fd();
    entry.set_key(key);
    entry.set_fd(number);
  }
  return converse(message, on_stage, deadline, request.work_dir, "restore.log");
}

CriuOutcome Swrk::finish(CriuOutcome outcome, int work_dir, const char* log_name) {
  socket_.reset();
  // After its answer it only has to exit; what does not is killed.
  auto status = process_.wait(outcome.timed_out ? Deadline::after_us(0) : Deadline::after_ms(5000));
  if (status && status->signalled && status->value == SIGKILL) outcome.beside = Code::kUnavailable;
  for (int none_left : {ENOSPC, EDQUOT, ENOMEM, EMFILE, ENFILE})
    if (outcome.error_number == none_left) outcome.beside = Code::kExhausted;
  if (!status) {
    process_.kill(9);
    status = process_.wait(Deadline::after_ms(5000));
  }
  if (outcome.success) return outcome;
  std::string log;
  int fd = ::openat(work_dir, log_name, O_RDONLY | O_CLOEXEC);
  if (fd >= 0) {
    Fd file(fd);
    try {
      log = read_all(file);
    } catch (const Error&) {
      // The log only explains; without it the message stays shorter.
    }
  }
  std::istringstream lines(log);
  std::vector<std::string> tail;
  std::string first_error;
  for (std::string line; std::getline(lines, line);) {
    tail.push_back(line);
    if (tail.size() > 20) tail.erase(tail.begin());
    auto at = line.find("Error (");
    // Where root lacks CAP_SYS_RESOURCE every log begins with this harmless one.
    bool harmless = line.find("RLIMIT_NOFILE") != std::string::npos;
    if (at == std::string::npos || harmless || !first_error.empty()) continue;
    first_error = line.substr(at);
  }
  for (const std::string& line : tail) outcome.log_tail += line + "\n";
  if (outcome.timed_out)
    outcome.reason = "CRIU did not finish in time and was killed";
  else if (!first_error.empty())
    outcome.reason = first_error;
  else if (outcome.reason.empty())
    outcome.reason =
        status ? "CRIU ended with " + status->text() : "CRIU hangs and cannot be killed";
  if (outcome.error_number > 0)
    outcome.reason +=
        fmt::format(" (errno {}: {})", outcome.error_number, std::strerror(outcome.error_number));
  return outcome;
}

DumpTimes read_dump_stats(const std::string& work_dir) {
  // An image: 4 bytes common magic, 4 bytes type magic, then entries of 4 bytes length and protobuf
  // (criu.org/Images).
  std::string bytes = read_file(work_dir + "/stats-dump");
  DumpTimes times;
  if (bytes.size() < 12) return times;
  std::uint32_t length;
  std::memcpy(&length, bytes.data() + 8, sizeof length);
  rpc::Stats stats;
  if (length > bytes.size() - 12 ||
      !stats.ParsePartialFromArray(bytes.data() + 12, static_cast<int>(length)))
    return times;
  times.freezing_us = stats.dump().freezing_time();
  times.frozen_us = stats.dump().frozen_time();
  times.memory_us = stats.dump().memdump_time();
  times.write_us = stats.dump().memwrite_time();
  times.pages_written = stats.dump().pages_written();
  return times;
}

}  // namespace thaw::checkpoint
