#include "lifecycle/shim.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "checkpoint/criu.h"
#include "checkpoint/image_fixes.h"
#include "checkpoint/manifest.h"
#include "checkpoint/obstacles.h"
#include "checkpoint/page_service.h"
#include "checkpoint/record.h"
#include "checkpoint/shared_memory.h"
#include "lifecycle/container_log.h"
#include "lifecycle/dump_stage.h"
#include "lifecycle/keeper.h"
#include "lifecycle/shim_protocol.h"
#include "lifecycle/upper_copy.h"
#include "network/network.h"
#include "runtime/cgroup.h"
#include "runtime/container.h"
#include "runtime/enter.h"
#include "runtime/heartbeat.h"
#include "store/copy.h"
#include "store/layered.h"
#include "util/clock.h"
#include "util/error.h"
#include "util/fault.h"
#include "util/file.h"
#include "util/finally.h"
#include "util/memory.h"
#include "util/process.h"

namespace thaw::lifecycle {
namespace {

using nlohmann::json;

constexpr int kControlNumber = 3;
// Numbers of the container's stdio in a waiting CRIU.
constexpr int kSwrkStdin = 10, kSwrkStdout = 11, kSwrkStderr = 12, kSwrkShared = 13;

// CRIU seldom says that a disk was full, and never which.
bool is_full(const std::string& path) {
  constexpr std::uint64_t kLittle = 1 << 20;
  struct statvfs info {};
  return ::statvfs(path.c_str(), &info) == 0 &&
         (info.f_bavail * info.f_frsize < kLittle || (info.f_files && info.f_favail == 0));
}

// CRIU puts its own descriptors behind the program's, at multiples of 128 (choose_service_fd_base
// in its criu/servicefd.c). With fewer than this its refusal is put down to the limit.
constexpr std::uint64_t kFewDescriptors = 1024;

// What CRIU has not done, and, where that is not its word, the code of the cause beside it.
json failure_of(const checkpoint::CriuOutcome& outcome, const std::vector<std::string>& written) {
  json result = {{"success", false},
                 {"timed_out", outcome.timed_out},
                 {"error_number", outcome.error_number},
                 {"reason", outcome.reason},
                 {"log_tail", outcome.log_tail}};
  if (outcome.beside) result["beside"] = static_cast<int>(*outcome.beside);
  for (const std::string& path : written)
    if (is_full(path)) {
      result["beside"] = static_cast<int>(Code::kExhausted);
      result["reason"] = outcome.reason + " (the disk of " + path + " is full)";
    }
  if (std::uint64_t limit = raise_limit(RLIMIT_NOFILE); limit < kFewDescriptors) {
    result["beside"] = static_cast<int>(Code::kExhausted);
    result["reason"] = fmt::format("{} (this host lets a process open {} files: raise LimitNOFILE)",
                                   outcome.reason, limit);
  }
  return result;
}

// Where time went, for the replica's phases. Absolute monotonic times.
class PhaseList {
 public:
  void add(const std::string& name, std::int64_t start_us) {
    list_.push_back({{"name", name}, {"start_us", start_us}, {"end_us", monotonic_us()}});
  }
  const json& list() const { return list_; }

 private:
  json list_ = json::array();
};

// System V shared memory, semaphores or message queues in our ipc namespace: each file has a head
// line.
bool has_ipc_objects() {
  for (const char* kind : {"shm", "sem", "msg"}) {
    std::string text = read_file(std::string("/proc/sysvipc/") + kind);
    if (std::count(text.begin(), text.end(), '\n') > 1) return true;
  }
  return false;
}

// What a container gets is never less than ours (runtime::process_limits), and where the daemon is
// killed sooner than others that is not the container's matter.
void lower_oom_score() {
  std::string file = "/proc/self/oom_score_adj";
  try {
    if (std::stoi(read_file(file)) > 0) write_file(file, "0");
  } catch (const Error&) {
    // Not without CAP_SYS_RESOURCE, if who has it set a floor.
  }
}

// A step that knows the daemon and up to two others.
void fault(FaultName name, Victim one = {}, Victim other = {}) {
  fault_point(name, {{"daemon", ::getppid()}, one, other});
}

// Nobody reads a shim's stderr but the daemon's journal.
void complain(const std::string& what) {
  std::string line = "thaw shim: " + what + "\n";
  [[maybe_unused]] ssize_t n = ::write(2, line.data(), line.size());
}

class Shim {
 public:
  explicit Shim(std::string directory) : control_(kControlNumber) {
    paths_.dir = std::move(directory);
  }
  int run();

 private:
  enum class Stage { kPreparing, kPrepared, kBusy, kRunning, kExited };
  struct Session {
    Process process;
  };

  // Operations. Each returns the members of its answer's "result".
  json prepare(const json& request, std::vector<Fd>& descriptors);
  json start_cold(const json& request);
  json restore(const json& request);
  json touched(const json& request);
  json rest();
  json wake();
  json take(const json& request);
  json dump(const json& request);
  json collect(const json& request);
  std::shared_ptr<DumpStage> stage(const std::string& directory, std::uint64_t spare);
  json execute(const json& request, std::vector<Fd>& descriptors,
               std::vector<int>& answer_descriptors, Fd& keep);
  json status();
  void announce(const json& request);
  void destroy();
  void kill_container();
  void keeper_ended();

  void handle(Message message);
  void answer(const json& id, const std::function<json()>& work);
  void on_thread(const json& id, std::function<void()> work);
  void send(const json& body, const std::vector<int>& descriptors = {});
  void begin(Stage from, Stage to, const char* what);
  checkpoint::Swrk start_restorer();
  checkpoint::Swrk prepared_criu(PhaseList& phases);
  void use_criu(checkpoint::Swrk* criu);
  std::shared_ptr<checkpoint::PageService> pages();
  void took_init(Process init);
  void watch(int fd, std::function<void()> on_event);
  void unwatch(int fd);
  void accept_daemon();
  void lost_daemon();
  void read_notifications();
  void container_exited();
  void session_exited(int id);
  void listen();
  std::vector<runtime::Bind> binds() const;
  std::string cgroup_mount() const;

  runtime::SlotPaths paths_;
  Fd control_, listener_, epoll_, notify_, route_socket_;
  std::string link_;
  checkpoint::CriuInstall criu_;
  std::string runtime_binary_;
  std::optional<runtime::Cgroup> cgroup_;
  runtime::CgroupLayout layout_;
  Fd stdin_, stdout_, stderr_;      // our ends; stdin is the read end, it has no writer
  Fd stdout_child_, stderr_child_;  // the container's ends, until it has them
  std::vector<std::string> pipes_;  // "pipe:[inode]" of the three
  Keeper keeper_;
  runtime::ContainerSpec spec_;
  ContainerLog log_;
  std::map<int, std::function<void()>> handlers_;
  bool done_ = false;
  std::atomic<std::int64_t> resting_since_us_ = 0;
  std::atomic<bool> stopped_ = false;  // restored or dumped, and every process is left stopped

  std::mutex mutex_;  // guards what follows
  Stage stage_ = Stage::kPreparing;
  std::optional<checkpoint::Swrk> swrk_;     // waits for its request
  std::vector<Fd> shared_files_;             // empty, for shared memory; that CRIU has them, too
  checkpoint::Swrk* criu_in_use_ = nullptr;  // works on it
  std::shared_ptr<checkpoint::PageService> pages_;
  std::map<std::string, std::shared_ptr<DumpStage>> staged_;  // of dumps, by where they are to go
  int daemons_lost_ = 0;
  std::string keeper_failure_;
  bool dumping_ = false, destroying_ = false;
  int entering_ = 0;  // programs that are on their way into the container
  int working_ = 0;   // operations that run on a thread of their own
  std::condition_variable work_over_;
  std::optional<Process> init_;
  int init_pid_ = 0;
  std::optional<ExitStatus> exit_;
  std::map<int, Session> sessions_;
  int next_session_ = 1;
  std::mutex send_mutex_;
};

int Shim::run() {
  epoll_ = Fd(check(::epoll_create1(EPOLL_CLOEXEC), "make epoll"));
  ::prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
  ::prctl(PR_SET_NAME, "thaw-shim", 0, 0, 0);
  ::setsid();
  lower_oom_score();
  // The daemon's may be low for now.
  for (int limit : {RLIMIT_NOFILE, RLIMIT_AS, RLIMIT_DATA, RLIMIT_NPROC}) raise_limit(limit);
  for (int number : {SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGQUIT}) ::signal(number, SIG_IGN);
  watch(control_.get(), [this] {
    auto message = receive_message(control_);
    if (message)
      handle(std::move(*message));
    else
      lost_daemon();
  });
  while (!done_) {
    epoll_event events[16];
    int count = ::epoll_wait(epoll_.get(), events, 16, -1);
    if (count < 0 && errno == EINTR) continue;
    check(count, "wait for events");
    for (int i = 0; i < count && !done_; ++i) {
      std::unique_lock lock(mutex_);
      auto found = handlers_.find(events[i].data.fd);
      if (found == handlers_.end()) continue;
      auto handler = found->second;
      lock.unlock();
      try {
        handler();
      } catch (const std::exception& error) {
        // Our end would be the container's.
        complain(error.what());
      }
    }
  }
  std::scoped_lock lock(mutex_);
  // An operation that does not end must not find its shim gone from under it.
  if (working_ > 0) ::_exit(1);
  return 0;
}

void Shim::watch(int fd, std::function<void()> on_event) {
  epoll_event event{EPOLLIN, {.fd = fd}};
  std::scoped_lock lock(mutex_);
  handlers_[fd] = std::move(on_event);
  check(::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event), "watch descriptor");
}

void Shim::unwatch(int fd) {
  std::scoped_lock lock(mutex_);
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
  handlers_.erase(fd);
}

void Shim::send(const json& body, const std::vector<int>& descriptors) {
  std::scoped_lock lock(send_mutex_);
  if (!control_) return;
  try {
    send_message(control_, body, descriptors);
  } catch (const Error&) {
    // The daemon went away: the next one asks for the state.
  }
}

void Shim::answer(const json& id, const std::function<json()>& work) {
  json reply{{"id", id}};
  try {
    reply["result"] = work();
  } catch (const std::exception& error) {
    reply["error"] = error_json(error);
  }
  send(reply);
}

// Long operations run on a thread of their own, so that the loop goes on moving output and hears a
// kill.
void Shim::on_thread(const json& id, std::function<void()> work) {
  auto count = [this](int change) {
    std::scoped_lock lock(mutex_);
    working_ += change;
    work_over_.notify_all();
  };
  count(1);
  try {
    std::thread([count, work = std::move(work)] {
      work();
      count(-1);
    }).detach();
  } catch (const std::system_error& error) {
    count(-1);
    answer(id, [&]() -> json {
      throw Error(Code::kExhausted, "start a thread", "", error.what(),
                  "let the host or Thaw's cgroup have more processes");
    });
  }
}

void Shim::handle(Message message) {
  json request = std::move(message.body);
  json id = request.value("id", json());
  std::string operation = request.value("op", "");
  auto later = [&](std::function<json()> work) {
    on_thread(id, [this, id, work = std::move(work)] { answer(id, work); });
  };
  if (operation == "prepare") {
    answer(id, [&] { return prepare(request, message.descriptors); });
  } else if (operation == "start-cold") {
    later([this, request] { return start_cold(request); });
  } else if (operation == "restore") {
    later([this, request] { return restore(request); });
  } else if (operation == "rest") {
    later([this] { return rest(); });
  } else if (operation == "wake") {
    answer(id, [&] { return wake(); });
  } else if (operation == "take") {
    answer(id, [&] { return take(request); });
  } else if (operation == "dump") {
    later([this, request] { return dump(request); });
  } else if (operation == "collect") {
    later([this, request] { return collect(request); });
  } else if (operation == "settle") {
    // For a daemon that takes over in the middle of a dump.
    later([this] {
      std::unique_lock lock(mutex_);
      work_over_.wait(lock, [this] { return !dumping_; });
      return json::object();
    });
  } else if (operation == "execute") {
    auto descriptors = std::make_shared<std::vector<Fd>>(std::move(message.descriptors));
    on_thread(id, [this, id, request, descriptors] {
      json reply{{"id", id}};
      std::vector<int> attached;
      Fd keep;
      try {
        reply["result"] = execute(request, *descriptors, attached, keep);
      } catch (const std::exception& error) {
        reply["error"] = error_json(error);
      }
      send(reply, attached);
    });
  } else if (operation == "session-signal") {
    answer(id, [&] {
      std::scoped_lock lock(mutex_);
      auto found = sessions_.find(request.at("session").get<int>());
      // The whole session: what the program started goes with it.
      if (found != sessions_.end()) {
        ::kill(-found->second.process.pid(), request.at("signal").get<int>());
        found->second.process.kill(request.at("signal").get<int>());
      }
      return json::object();
    });
  } else if (operation == "signal") {
    answer(id, [&] {
      int number = request.at("signal").get<int>();
      if (number == SIGKILL && cgroup_) {
        kill_container();
      } else {
        std::scoped_lock lock(mutex_);
        if (init_) init_->kill(number);
      }
      return json::object();
    });
  } else if (operation == "touched") {
    later([this, request] { return touched(request); });
  } else if (operation == "announce") {
    answer(id, [&] {
      announce(request);
      return json::object();
    });
  } else if (operation == "status") {
    answer(id, [&] { return status(); });
  } else if (operation == "destroy") {
    answer(id, [&] {
      destroy();
      return json::object();
    });
    done_ = true;
  } else {
    answer(id, [&]() -> json {
      throw Error(Code::kInvalid, "do operation", operation, "the shim does not know it");
    });
  }
}

void Shim::begin(Stage from, Stage to, const char* what) {
  std::scoped_lock lock(mutex_);
  if (stage_ != from)
    throw Error(Code::kConflict, what, paths_.dir, "the slot is not in the right state for it");
  stage_ = to;
}

// Members: link, criu [argv], criu_version, runtime, cgroup, swrk (bool). Descriptors: the network
// namespace.
json Shim::prepare(const json& request, std::vector<Fd>& descriptors) {
  link_ = request.at("link");
  criu_.command = request.at("criu").get<std::vector<std::string>>();
  criu_.version = request.at("criu_version");
  runtime_binary_ = request.at("runtime");
  // Made before moving: it goes on speaking to the host's namespace, where the other end of the
  // link is.
  route_socket_ = network::open_route_socket();
  // Until it is known what the slot is for nothing gets out; a proof never does.
  network::set_link_open(route_socket_, link_, false);
  check(::setns(descriptors.at(0).get(), CLONE_NEWNET), "enter network namespace");
  check(::unshare(CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNS), "unshare namespaces");
  // Unmounts of the host still reach us, ours do not reach the host.
  check(::mount(nullptr, "/", nullptr, MS_REC | MS_SLAVE, nullptr), "make mounts private", "/");
  runtime::prepare_slot_mounts(paths_);
  layout_ = runtime::CgroupLayout::detect();
  cgroup_.emplace(layout_, request.at("cgroup").get<std::string>());
  cgroup_->create();
  fault("shim.prepare.cgroup");
  keeper_ = Keeper::start(cgroup_->procs_files().front(), cgroup_->thawing());
  watch(keeper_.socket(), [this] { keeper_ended(); });

  Fd writer;
  std::tie(stdin_, writer) = Fd::pipe();
  std::tie(stdout_, stdout_child_) = Fd::pipe();
  std::tie(stderr_, stderr_child_) = Fd::pipe();
  for (const Fd* fd : {&stdin_, &stdout_, &stderr_}) {
    struct stat info;
    check(::fstat(fd->get(), &info), "stat pipe");
    pipes_.push_back(fmt::format("pipe:[{}]", info.st_ino));
  }
  for (Fd* fd : {&stdout_, &stderr_}) {
    set_nonblocking(*fd, true);
    watch(fd->get(), [this, fd] {
      if (log_.pump(*fd, fd == &stderr_)) return;
      unwatch(fd->get());
      fd->reset();
    });
  }

  notify_ =
      Fd(check(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), "make socket"));
  int on = 1;
  check(::setsockopt(notify_.get(), SOL_SOCKET, SO_PASSCRED, &on, sizeof on), "set socket option");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  // Long data directories do not fit into sun_path: the name is given relative to the folder.
  std::string name = "/proc/self/fd/";
  Fd folder = Fd::open(paths_.thaw(), O_PATH | O_DIRECTORY);
  name += std::to_string(folder.get()) + "/notify";
  std::strncpy(address.sun_path, name.c_str(), sizeof address.sun_path - 1);
  check(::bind(notify_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), "bind",
        paths_.thaw() + "/notify");
  check(::chmod((paths_.thaw() + "/notify").c_str(), 0666), "set mode of", "notify socket");
  watch(notify_.get(), [this] { read_notifications(); });

  listen();
  fault("shim.prepare.listens");
  if (request.at("swrk")) {
    swrk_.emplace(start_restorer());
    fault("shim.prepare.criu", {"criu", swrk_->pid()});
  }
  begin(Stage::kPreparing, Stage::kPrepared, "prepare slot");
  return {{"pid", ::getpid()}};
}

void Shim::listen() {
  Fd folder = Fd::open(paths_.dir, O_PATH | O_DIRECTORY);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::string name = "/proc/self/fd/" + std::to_string(folder.get()) + "/shim.sock";
  std::strncpy(address.sun_path, name.c_str(), sizeof address.sun_path - 1);
  listener_ = Fd(check(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), "make socket"));
  check(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), "bind",
        paths_.socket());
  check(::listen(listener_.get(), 4), "listen on", paths_.socket());
  watch(listener_.get(), [this] { accept_daemon(); });
}

// The newest daemon wins: a daemon that was killed may still look connected for a moment.
void Shim::accept_daemon() {
  int fd = ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC);
  if (fd < 0) return;
  ucred peer{};
  socklen_t size = sizeof peer;
  ::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size);
  if (peer.uid != 0) {
    ::close(fd);
    return;
  }
  if (control_) unwatch(control_.get());
  {
    std::scoped_lock lock(send_mutex_);
    control_.reset(fd);
  }
  watch(control_.get(), [this] {
    auto message = receive_message(control_);
    if (message)
      handle(std::move(*message));
    else
      lost_daemon();
  });
}

void Shim::lost_daemon() {
  unwatch(control_.get());
  {
    std::scoped_lock lock(send_mutex_);
    control_.reset();
  }
  // Nobody will ask for a dump's images any more: its daemon's successor counts it as failed.
  decltype(staged_) nobodys;
  std::unique_lock lock(mutex_);
  nobodys.swap(staged_);
  ++daemons_lost_;
  // A slot that nobody has used yet belongs to that daemon and goes with it.
  if (stage_ != Stage::kPreparing && stage_ != Stage::kPrepared) return;
  lock.unlock();
  destroy();
  done_ = true;
}

void Shim::destroy() {
  fault("shim.destroy.begun");
  {
    std::scoped_lock lock(mutex_);
    destroying_ = true;
    if (swrk_) swrk_->kill();
    if (criu_in_use_) criu_in_use_->kill();
  }
  bool empty = !cgroup_ || cgroup_->kill_all(Deadline::after_ms(10'000));
  {
    // What is in the middle of something has lost its CRIU or its container, and ends.
    std::unique_lock lock(mutex_);
    work_over_.wait_for(lock, std::chrono::seconds(10), [this] { return working_ == 0; });
    if (working_ == 0) swrk_.reset();
  }
  if (!cgroup_) return;
  empty = cgroup_->kill_all(Deadline::after_ms(10'000)) && empty;
  fault("shim.destroy.killed");
  // Not before: while anything lives, memory that nobody serves any more would read as zeros. Where
  // something does live, the keeper goes on with it.
  if (keeper_) unwatch(keeper_.socket());
  if (empty) {
    {
      std::scoped_lock lock(mutex_);
      pages_.reset();
    }
    keeper_.dismiss();
  }
  cgroup_->remove();
}

// With it goes what makes faults wait if this process dies. A slot without one is not used; a
// replica that has unread memory is not left without one.
void Shim::keeper_ended() {
  unwatch(keeper_.socket());
  std::shared_ptr<checkpoint::PageService> pages = this->pages();
  {
    std::scoped_lock lock(mutex_);
    keeper_failure_ = "the process that keeps its page faults waiting has ended";
    if (stage_ == Stage::kPreparing || stage_ == Stage::kPrepared) done_ = true;
  }
  if (done_)
    destroy();
  else if (pages && pages->stats().spaces > 0)
    kill_container();
}

void Shim::kill_container() {
  // Also before: what was frozen does nothing more.
  for (int pid : cgroup_->pids()) ::kill(pid, SIGKILL);
  cgroup_->freeze(false, Deadline::after_us(0));
  for (int pid : cgroup_->pids()) ::kill(pid, SIGKILL);
}

std::shared_ptr<checkpoint::PageService> Shim::pages() {
  std::scoped_lock lock(mutex_);
  return pages_;
}

// A CRIU with all that it can be told to let a container inherit.
checkpoint::Swrk Shim::start_restorer() {
  ProcessOptions options;
  options.join_cgroups = cgroup_->procs_files();
  options.descriptors = {{stdin_.get(), kSwrkStdin},
                         {stdout_child_.get(), kSwrkStdout},
                         {stderr_child_.get(), kSwrkStderr}};
  for (std::size_t i = 0; i < checkpoint::kMostShared; ++i) {
    if (i == shared_files_.size()) shared_files_.push_back(checkpoint::make_shared_file());
    options.descriptors.emplace_back(shared_files_[i].get(), kSwrkShared + static_cast<int>(i));
  }
  return checkpoint::Swrk::start(criu_, options);
}

// The CRIU that waits, or another.
checkpoint::Swrk Shim::prepared_criu(PhaseList& phases) {
  {
    std::scoped_lock lock(mutex_);
    std::optional<checkpoint::Swrk> waiting = std::exchange(swrk_, std::nullopt);
    if (waiting && waiting->running()) return std::move(*waiting);
  }
  std::int64_t at = monotonic_us();
  checkpoint::Swrk started = start_restorer();
  phases.add("start criu", at);
  return started;
}

// The one that works on it, or none any more: it is killed when the slot goes, so that whoever
// waits for its answer has one.
void Shim::use_criu(checkpoint::Swrk* criu) {
  std::scoped_lock lock(mutex_);
  if (criu && destroying_)
    throw Error(Code::kCancelled, "use slot", paths_.dir, "it is being removed");
  criu_in_use_ = criu;
}

std::string Shim::cgroup_mount() const {
  return layout_.unified_only() ? layout_.unified() + cgroup_->path() : "";
}

std::vector<runtime::Bind> Shim::binds() const {
  return runtime::binds(spec_, paths_, cgroup_mount());
}

void Shim::took_init(Process init) {
  {
    std::scoped_lock lock(mutex_);
    init_pid_ = init.pid();
    init_.emplace(std::move(init));
    stage_ = Stage::kRunning;
  }
  // The container has its ends now; ours closed, its death is seen as the end of the pipes.
  stdout_child_.reset();
  stderr_child_.reset();
  watch(init_->pidfd().get(), [this] { container_exited(); });
}

void Shim::container_exited() {
  unwatch(init_->pidfd().get());
  std::optional<ExitStatus> status;
  {
    std::scoped_lock lock(mutex_);
    status = init_->wait(Deadline::never());
    exit_ = status;
    stage_ = Stage::kExited;
  }
  for (Fd* fd : {&stdout_, &stderr_})
    if (*fd) log_.pump(*fd, fd == &stderr_);
  log_.flush();
  send({{"event", "exited"}, {"status", status_json(*status)}});
}

// Members: spec, log_dir. Result: pid, phases.
json Shim::start_cold(const json& request) {
  begin(Stage::kPrepared, Stage::kBusy, "start container");
  PhaseList phases;
  std::int64_t at = monotonic_us();
  {
    // It was for a restore, and the runtime refuses a cgroup with a process in it.
    std::scoped_lock lock(mutex_);
    if (swrk_) swrk_->kill();
    swrk_.reset();
  }
  shared_files_.clear();
  spec_ = runtime::container_from_json(request.at("spec"));
  log_.open(request.at("log_dir"));
  check(::sethostname(spec_.hostname.c_str(), spec_.hostname.size()), "set hostname",
        spec_.hostname);
  runtime::prepare_rootfs(spec_, paths_);
  fault("shim.cold.rootfs");
  std::vector<runtime::Bind> mounts = binds();
  write_file(paths_.bundle() + "/config.json",
             runtime::oci_config(spec_, paths_, mounts, cgroup_->path()).dump());
  if (spec_.cut_off)
    network::cut_off();
  else
    network::set_link_open(route_socket_, link_, true);
  phases.add("mounts", at);

  at = monotonic_us();
  std::string name = "c", pid_file = paths_.bundle() + "/pid",
              log_file = paths_.bundle() + "/runtime.log";
  std::vector<std::string> common = {
      runtime_binary_, "--root", paths_.runc_root(), "--log", log_file, "--log-format", "json"};
  auto with = [&](std::vector<std::string> more) {
    std::vector<std::string> argv = common;
    argv.insert(argv.end(), more.begin(), more.end());
    return argv;
  };
  auto runtime_error = [&](const char* verb, const std::string& why) {
    // The runtime logs a JSON object a line; the last one with level error says why.
    std::string reason = why;
    if (exists(log_file)) {
      std::istringstream lines(read_file(log_file));
      for (std::string line; std::getline(lines, line);) {
        json entry = json::parse(line, nullptr, false);
        if (entry.is_object() && entry.value("level", "") == "error")
          reason = entry.value("msg", reason);
      }
    }
    return Error(Code::kInvalid, std::string(verb) + " container with", runtime_binary_, reason);
  };
  ProcessOptions stdio;
  stdio.descriptors = {{stdin_.get(), 0}, {stdout_child_.get(), 1}, {stderr_child_.get(), 2}};
  Process create = Process::spawn(
      with({"create", "--bundle", paths_.bundle(), "--pid-file", pid_file, name}), stdio);
  fault("shim.cold.create", {"runc", create.pid()});
  auto created = create.wait(Deadline::after_ms(60'000));
  if (!created || !created->ok())
    throw runtime_error("create", created ? created->text() : "it did not answer within 60 s");
  Process init = Process::adopt(std::stoi(read_file(pid_file)));
  fault("shim.cold.created", {"container", init.pid()});
  phases.add("runtime create", at);

  at = monotonic_us();
  runtime::mask_paths(init.pid(), paths_);
  fault("shim.cold.masked", {"container", init.pid()});
  RunResult started = thaw::run(with({"start", name}), Deadline::after_ms(60'000));
  if (!started.ok()) throw runtime_error("start", started.why());
  phases.add("runtime start", at);
  fault("shim.cold.started", {"container", init.pid()});
  int pid = init.pid();
  took_init(std::move(init));
  return {{"pid", pid}, {"phases", phases.list()}};
}

// Members: spec, log_dir, directory (the checkpoint's), mounts [[target, key]], pipes [3], memory
// "lazy"|"background"|"eager", own (bool: the replica's own state, of which the topmost layer goes
// on as its upper directory), link (bool: let it reach the outside), stopped (bool: leave it
// stopped before its first instruction), timeout_us, log_level. Result: success,
// pid, phases; or success false, criu_pid_seen, timed_out, error_number, reason, log_tail.
json Shim::restore(const json& request) {
  begin(Stage::kPrepared, Stage::kBusy, "restore container");
  PhaseList phases;
  std::int64_t at = monotonic_us();
  Deadline deadline = Deadline::after_us(request.at("timeout_us").get<std::int64_t>());
  spec_ = runtime::container_from_json(request.at("spec"));
  log_.open(request.at("log_dir"));
  std::string directory = request.at("directory");
  check(::sethostname(spec_.hostname.c_str(), spec_.hostname.size()), "set hostname",
        spec_.hostname);
  cgroup_->apply(spec_.resources);
  for (auto& [name, to] :
       {std::pair{"shm", paths_.shm()}, {"dev", paths_.dev()}, {"thaw", paths_.thaw()}})
    if (exists(directory + "/" + name)) store::copy_tree(directory + "/" + name, to);
  if (request.value("own", false)) store::copy_tree(directory + "/fs.0", paths_.upper());
  runtime::prepare_rootfs(spec_, paths_);
  runtime::write_inside(paths_, "restored", "");
  phases.add("mounts", at);

  checkpoint::Swrk swrk = prepared_criu(phases);
  use_criu(&swrk);
  Finally no_longer([this] { use_criu(nullptr); });
  fault("shim.restore.mounts", {"criu", swrk.pid()});
  at = monotonic_us();
  Fd images = Fd::open(directory + "/images", O_RDONLY | O_DIRECTORY);
  Fd work = Fd::open(paths_.criu_work(), O_RDONLY | O_DIRECTORY);
  // From here on beside CRIU.
  std::vector<Fd> shared_files = std::exchange(shared_files_, {});
  std::vector<checkpoint::SharedSegment> shared =
      checkpoint::read_shared_memory(directory + "/images");
  checkpoint::SharedFill fill(directory + "/images", shared, shared_files, cgroup_->procs_files());
  bool lazy = request.at("memory") != "eager";
  if (lazy) {
    auto pages = std::make_shared<checkpoint::PageService>(
        directory + "/images", paths_.criu_work(), checkpoint::read_working_set(directory),
        request.value("exact", false), request.at("memory") == "background",
        checkpoint::PageServiceCallbacks{[this](int fd) { keeper_.hold(fd); },
                                         [this] { keeper_.let_go(); },
                                         [this](const std::string&) { kill_container(); }});
    if (request.value("stopped", false)) pages->rest(true);
    std::scoped_lock lock(mutex_);
    pages_ = std::move(pages);
  }
  checkpoint::RestoreRequest criu;
  criu.lazy = lazy;
  criu.leave_stopped = request.value("stopped", false);
  criu.images_dir = images.get();
  criu.work_dir = work.get();
  criu.root = paths_.rootfs();
  criu.log_level = request.at("log_level");
  std::vector<runtime::Bind> mounts = binds();
  for (const json& mount : request.at("mounts")) {
    std::string key = mount.at(1);
    criu.mounts.emplace_back(key, runtime::external_source(key, paths_, mounts));
  }
  constexpr int numbers[] = {kSwrkStdin, kSwrkStdout, kSwrkStderr};
  for (std::size_t i = 0; i < 3; ++i)
    criu.inherit.emplace_back(request.at("pipes").at(i), numbers[i]);
  for (const checkpoint::SharedSegment& segment : shared)
    criu.inherit.emplace_back(checkpoint::shared_key(segment.number),
                              kSwrkShared + static_cast<int>(segment.number));
  fault("shim.restore.asked", {"criu", swrk.pid()});
  int destroyed = 0;
  std::int64_t sockets_us = 0;
  bool reach_outside = request.at("link") && !spec_.cut_off;
  if (spec_.cut_off) network::cut_off();
  checkpoint::CriuOutcome outcome = swrk.restore(
      criu,
      [&](const std::string& stage) {
        if (stage != "pre-resume") return;
        std::int64_t waiting_us = monotonic_us();
        fill.wait(deadline);
        if (!shared.empty()) phases.add("criu restore/shared memory", waiting_us);
        // The link is still closed: nothing has reached the outside, and nothing of the original's
        // connections will. Nothing runs yet either: a program that reconnects at once finds the
        // link open.
        fault("shim.restore.resuming", {"criu", swrk.pid()});
        std::int64_t start = monotonic_us();
        runtime::freshen_heartbeats(cgroup_->pids());
        destroyed = network::destroy_outside_sockets();
        if (reach_outside) network::set_link_open(route_socket_, link_, true);
        fault("shim.restore.open", {"criu", swrk.pid()});
        sockets_us = monotonic_us() - start;
      },
      deadline);
  phases.add("criu restore", at);
  if (!outcome.success) {
    if (criu.log_level == 4) {
      std::error_code ignored;  // it only explains
      std::filesystem::copy_file(paths_.criu_work() + "/restore.log",
                                 request.at("log_dir").get<std::string>() + "/restore.log",
                                 std::filesystem::copy_options::overwrite_existing, ignored);
    }
    json result = failure_of(outcome, {paths_.criu_work()});
    result["phases"] = phases.list();
    return result;
  }

  fault("shim.restore.done", {"container", outcome.pid});
  stopped_ = criu.leave_stopped;
  resting_since_us_ = monotonic_us();
  took_init(Process::adopt(outcome.pid));
  return {{"success", true},
          {"pid", outcome.pid},
          {"destroyed_sockets", destroyed},
          {"sockets_us", sockets_us},
          {"phases", phases.list()}};
}

// Members: serving (bool: it serves, and nobody asks again). Writes what was faulted in so far to
// the slot's folder. Result: ranges, how many these are.
json Shim::touched(const json& request) {
  std::vector<checkpoint::TouchedRange> ranges;
  if (auto pages = this->pages()) ranges = pages->touched(request.at("serving"));
  std::size_t most = checkpoint::kMostServing / checkpoint::kPageSize;
  if (request.at("serving") && ranges.size() > most) ranges.resize(most);
  ranges = checkpoint::merge_ranges(std::move(ranges));
  write_file(paths_.touched(), checkpoint::encode_ranges(ranges));
  return {{"ranges", ranges.size()}};
}

// Lets a replica wait, frozen.
json Shim::rest() {
  {
    std::scoped_lock lock(mutex_);
    if (stage_ != Stage::kRunning)
      throw Error(Code::kConflict, "freeze container", paths_.dir, "it is not running");
    if (!sessions_.empty() || entering_ > 0)
      throw Error(Code::kConflict, "freeze container", paths_.dir, "an exec session is open in it");
  }
  if (stopped_) return json::object();
  if (auto pages = this->pages()) pages->rest(true);
  cgroup_->freeze(true, Deadline::after_ms(5000));
  resting_since_us_ = monotonic_us();
  return json::object();
}

// Members: hostname, identity. The end of a standby: it is told who it is, and runs.
json Shim::take(const json& request) {
  spec_.hostname = request.at("hostname");
  spec_.identity = request.at("identity");
  runtime::write_names(spec_, paths_);
  runtime::refresh_secrets(spec_, paths_);
  check(::sethostname(spec_.hostname.c_str(), spec_.hostname.size()), "set hostname",
        spec_.hostname);
  return wake();
}

// The end of a rest; nothing where none rests.
json Shim::wake() {
  // No watchdog bites before that, and looking costs a client its time.
  constexpr std::int64_t kLongRestUs = 3'000'000;
  if (monotonic_us() - resting_since_us_ > kLongRestUs)
    runtime::freshen_heartbeats(cgroup_->pids());
  if (auto pages = this->pages()) pages->rest(false);
  if (stopped_.exchange(false))
    for (int pid : cgroup_->pids()) ::kill(pid, SIGCONT);
  else
    cgroup_->freeze(false, Deadline::after_us(0));
  return json::object();
}

// Members: directory (exists, empty), spare (bytes of memory that others may still take),
// leave_stopped (bool: the processes do not run on), timeout_us, log_level. Result: mounts, pipes,
// layers, environment, frozen_us, total_us; or success false as above.
json Shim::dump(const json& request) {
  int daemons_lost;
  {
    std::scoped_lock lock(mutex_);
    daemons_lost = daemons_lost_;
    if (stage_ != Stage::kRunning)
      throw Error(Code::kConflict, "dump container", paths_.dir, "it is not running");
    if (!sessions_.empty() || entering_ > 0)
      throw Error(Code::kConflict, "dump container", paths_.dir, "an exec session is open in it",
                  "end it first");
    if (dumping_)
      throw Error(Code::kConflict, "dump container", paths_.dir, "it is being dumped already");
    dumping_ = true;
  }
  Finally over([this] {
    std::scoped_lock lock(mutex_);
    dumping_ = false;
    work_over_.notify_all();
  });
  std::int64_t begin_us = monotonic_us();
  Deadline deadline = Deadline::after_us(request.at("timeout_us").get<std::int64_t>());
  std::string directory = request.at("directory");
  // CRIU would call a dump good from which the pages that were never read are missing.
  auto pages = this->pages();
  if (pages && !pages->drain(deadline))
    throw Error(Code::kTimeout, "dump container", paths_.dir,
                "its memory could not be read in whole first: " + pages->failure());
  for (const char* name : {"/images", "/fs.0", "/shm", "/dev", "/thaw"})
    make_directories(directory + name, name == std::string("/images") ? 0700 : 0755);
  json layers = json::array({"fs.0"});
  UpperCopy upper(paths_, directory + "/fs.0");
  upper.ahead(cgroup_->pids());
  // Layers that this replica was restored from go along; they are read-only, so they need not wait
  // for the freeze.
  for (std::size_t i = 0; i + 1 < spec_.lowers.size(); ++i) {
    std::string name = fmt::format("fs.{}", i + 1);
    make_directories(directory + "/" + name);
    store::copy_tree(spec_.lowers[i], directory + "/" + name);
    layers.push_back(name);
  }
  fault("shim.dump.begun", {"container", init_pid_});
  std::shared_ptr<DumpStage> staged = stage(directory, request.at("spare"));
  std::string images_path = staged ? staged->path() : directory + "/images";
  Fd images = Fd::open(images_path, O_RDONLY | O_DIRECTORY);
  Fd work = Fd::open(paths_.criu_work(), O_RDONLY | O_DIRECTORY);
  checkpoint::DumpRequest criu;
  criu.pid = init_pid_;
  criu.images_dir = images.get();
  criu.work_dir = work.get();
  criu.log_level = request.at("log_level");
  criu.leave_stopped = request.value("leave_stopped", false);
  json mounts = json::array();
  for (const auto& mount : runtime::external_mounts(init_pid_, paths_, binds())) {
    criu.mounts.emplace_back(mount.target, mount.key);
    mounts.push_back({mount.target, mount.key});
  }
  // Outside the container's cgroup: its memory is not the container's, and its limits are not
  // CRIU's. The ipc namespace is the slot's, and CRIU saves none that it lives in itself. Where the
  // program has System V objects (PostgreSQL has one) CRIU runs in another, so that they are saved,
  // and restored into a namespace of the container's own.
  ProcessOptions where;
  where.new_ipc_namespace = has_ipc_objects();
  checkpoint::Swrk swrk = checkpoint::Swrk::start(criu_, where);
  use_criu(&swrk);
  Finally no_longer([this] { use_criu(nullptr); });
  int dumper = swrk.pid();
  fault("shim.dump.criu", {"criu", dumper}, {"container", init_pid_});
  std::int64_t capture_us = 0;
  checkpoint::CriuOutcome outcome = swrk.dump(
      criu,
      [&](const std::string& stage) {
        if (stage != "post-dump") return;
        fault("shim.dump.frozen", {"criu", dumper}, {"container", init_pid_});
        if (staged) staged->finish();
        std::int64_t at = monotonic_us();
        upper.finish(cgroup_->pids(), spec_.lowers);
        store::copy_tree(paths_.shm(), directory + "/shm");
        store::copy_tree(paths_.dev(), directory + "/dev");
        store::copy_tree(paths_.thaw(), directory + "/thaw");
        runtime::freshen_heartbeats(cgroup_->pids());
        capture_us = monotonic_us() - at;
        fault("shim.dump.captured", {"criu", dumper}, {"container", init_pid_});
      },
      deadline);
  if (!outcome.success) {
    try {
      if (staged) staged->finish();
    } catch (const Error& error) {
      outcome.reason = error.what();
    }
    std::string obstacle = checkpoint::find_obstacle(cgroup_->pids());
    if (!obstacle.empty()) outcome.reason = obstacle + " (" + outcome.reason + ")";
    json result = failure_of(outcome, {images_path, directory, paths_.criu_work()});
    return result;
  }
  if (criu.leave_stopped) {
    resting_since_us_ = monotonic_us();
    stopped_ = true;
  }
  fault("shim.dump.done", {"container", init_pid_});
  // What every slot makes for itself is not the checkpoint's.
  for (const char* name : {"null", "zero", "full", "random", "urandom", "tty", "fd", "stdin",
                           "stdout", "stderr", "ptmx", "pts", "shm"})
    remove_tree(directory + "/dev/" + name);
  for (const char* name : {"identity.json", "notify", "restored", "started.json", "secrets"})
    remove_tree(directory + "/thaw/" + name);
  checkpoint::rearm_expired_timers(images_path);
  checkpoint::join_mappings(images_path);
  {
    std::scoped_lock lock(mutex_);
    if (staged && daemons_lost == daemons_lost_) staged_[directory] = staged;
  }
  checkpoint::DumpTimes times = checkpoint::read_dump_stats(paths_.criu_work());
  return {{"success", true},
          {"mounts", mounts},
          {"pipes", pipes_},
          {"layers", layers},
          {"environment", spec_.env},
          {"frozen_us", times.freezing_us + times.frozen_us},
          {"parts",
           {{"freezing_us", times.freezing_us},
            {"memory_us", times.memory_us},
            {"write_us", times.write_us},
            {"files_us", capture_us}}},
          {"total_us", monotonic_us() - begin_us},
          {"staged", staged != nullptr}};
}

// A dump's memory is copied while the tree is frozen, so it goes to memory that was touched before.
// Where there is room for it; nullptr otherwise, then CRIU writes to the disk.
std::shared_ptr<DumpStage> Shim::stage(const std::string& directory, std::uint64_t spare) {
  // For what else the machine needs while the copy is there, which takes as long as it is large.
  constexpr std::uint64_t kSpare = 256 << 20, kSparePart = 8;
  // Besides those of its processes: of memory that they share. What a tree has more than this is
  // small, and goes to the tmpfs.
  constexpr std::size_t kSharedImages = 16, kMostImages = 256;
  std::uint64_t size = cgroup_->unfiled_bytes();
  if (available_memory() < size + size / kSparePart + spare + kSpare) return nullptr;
  std::size_t images = std::min(cgroup_->pids().size() + kSharedImages, kMostImages);
  std::string path = paths_.stage() + "/" + directory.substr(directory.rfind('/') + 1);
  try {
    return std::make_shared<DumpStage>(path, images, size);
  } catch (const Error&) {
    return nullptr;
  }
}

// Members: directory, staged (bool: the images wait in memory), own (bool: the replica itself goes
// on from them). Brings a dump's images to where they belong, without what need not be stored; the
// replica runs. Result: zero_bytes, file_bytes, which are not stored.
json Shim::collect(const json& request) {
  fault("shim.collect.begun", {"container", init_pid_});
  std::string directory = request.at("directory"), images = directory + "/images";
  std::shared_ptr<DumpStage> staged;
  {
    std::scoped_lock lock(mutex_);
    if (auto found = staged_.extract(directory)) staged = std::move(found.mapped());
  }
  if (request.at("staged") && !staged)
    throw Error(Code::kUnavailable, "collect the dump of", paths_.dir, "there is none any more");
  if (staged) staged->write(images);
  staged.reset();
  // As a restore will find them: as they were at the dump, and read-only, unless the replica itself
  // goes on writing to the topmost.
  bool own = request.at("own");
  std::vector<std::string> layers = spec_.lowers;
  layers.insert(layers.begin(), directory + "/fs.0");
  checkpoint::LeftOut left = checkpoint::move_memory(images, images, [&](const std::string& path) {
    if (own && exists(layers.front() + "/" + path)) return Fd();
    return store::open_layered(layers, path);
  });
  checkpoint::name_shared_memory(images);
  return {{"zero_bytes", left.zero}, {"file_bytes", left.file}};
}

// Members: argv, env (added), terminal, rows, columns. Descriptors: stdin, stdout, stderr, unless
// terminal. Result: session; descriptor: the terminal.
json Shim::execute(const json& request, std::vector<Fd>& descriptors,
                   std::vector<int>& answer_descriptors, Fd& keep) {
  int init;
  {
    std::scoped_lock lock(mutex_);
    if (stage_ != Stage::kRunning)
      throw Error(Code::kConflict, "execute in container", paths_.dir, "it is not running");
    if (dumping_)
      throw Error(Code::kConflict, "execute in container", paths_.dir, "it is being dumped",
                  "try it again in a moment");
    init = init_pid_;
    ++entering_;
  }
  Finally entered_or_not([this] {
    std::scoped_lock lock(mutex_);
    --entering_;
  });
  runtime::EnterOptions options;
  options.argv = request.at("argv").get<std::vector<std::string>>();
  options.env = spec_.env;
  for (const json& variable : request.value("env", json::array())) options.env.push_back(variable);
  options.cwd = spec_.cwd;
  options.uid = spec_.uid;
  options.gid = spec_.gid;
  options.groups = spec_.groups;
  options.procs_files = cgroup_->procs_files();
  options.terminal = request.at("terminal");
  options.rows = request.value("rows", 24);
  options.columns = request.value("columns", 80);
  if (!options.terminal) {
    if (descriptors.size() != 3)
      throw Error(Code::kInternal, "execute in container", options.argv.at(0),
                  "three descriptors are needed");
    options.input = descriptors[0].get();
    options.output = descriptors[1].get();
    options.error = descriptors[2].get();
  }
  runtime::Entered entered = runtime::enter_container(init, options);
  keep = std::move(entered.terminal);
  if (keep) answer_descriptors.push_back(keep.get());
  int id, pidfd;
  {
    std::scoped_lock lock(mutex_);
    id = next_session_++;
    auto [at, fresh] = sessions_.emplace(id, Session{std::move(entered.process)});
    pidfd = at->second.process.pidfd().get();
  }
  watch(pidfd, [this, id] { session_exited(id); });
  return {{"session", id}};
}

void Shim::session_exited(int id) {
  std::unique_lock lock(mutex_);
  auto found = sessions_.find(id);
  if (found == sessions_.end()) return;
  int fd = found->second.process.pidfd().get(), pid = found->second.process.pid();
  lock.unlock();
  unwatch(fd);
  ::kill(-pid, SIGKILL);  // nothing of a probe or of a user's session stays behind in the container
  lock.lock();
  auto status = found->second.process.wait(Deadline::never());
  sessions_.erase(found);
  lock.unlock();
  send({{"event", "session-exited"}, {"session", id}, {"status", status_json(*status)}});
}

void Shim::read_notifications() {
  for (;;) {
    char text[4096];
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(ucred)) + CMSG_SPACE(8 * sizeof(int))];
    iovec data{text, sizeof text};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    ssize_t n = ::recvmsg(notify_.get(), &message, MSG_CMSG_CLOEXEC);
    if (n < 0) return;
    int pid = 0;
    for (cmsghdr* part = CMSG_FIRSTHDR(&message); part; part = CMSG_NXTHDR(&message, part)) {
      if (part->cmsg_type == SCM_CREDENTIALS) {
        ucred sender;
        std::memcpy(&sender, CMSG_DATA(part), sizeof sender);
        pid = sender.pid;
      } else if (part->cmsg_type == SCM_RIGHTS) {  // FDSTORE and the like: not kept
        std::size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (std::size_t i = 0; i < count; ++i) {
          int fd;
          std::memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof fd);
          ::close(fd);
        }
      }
    }
    std::string line = std::to_string(pid) + " " +
                       json(std::string(text, static_cast<std::size_t>(n)))
                           .dump(-1, ' ', false, json::error_handler_t::replace) +
                       "\n";
    // One that cannot be written, as on a full disk, is dropped; the next may be.
    Fd file = Fd::open(paths_.notify(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    struct stat info;
    // A chatty program (WATCHDOG=1 every second) must not fill the disk.
    if (::fstat(file.get(), &info) == 0 && info.st_size > (1 << 20))
      check(::ftruncate(file.get(), 0), "truncate", paths_.notify());
    write_all(file, line, paths_.notify());
  }
}

// Members: outcome, reason. Tells whoever waits in the container (docs/container-protocol.md).
void Shim::announce(const json& request) {
  runtime::write_inside(
      paths_, "started.json",
      json{{"outcome", request.at("outcome")}, {"reason", request.at("reason")}}.dump(
          -1, ' ', false, json::error_handler_t::replace) +
          "\n");
}

json Shim::status() {
  std::scoped_lock lock(mutex_);
  const char* names[] = {"preparing", "prepared", "busy", "running", "exited"};
  json result{{"pid", ::getpid()},
              {"stage", names[static_cast<int>(stage_)]},
              {"init", init_pid_},
              {"sessions", sessions_.size()}};
  if (exit_) result["status"] = status_json(*exit_);
  if (cgroup_) result["oom_kills"] = cgroup_->oom_kills();
  if (pages_) {
    checkpoint::PageServiceStats stats = pages_->stats();
    std::string failure = pages_->failure();
    result["memory"] = {{"faults", stats.faults},
                        {"fault_pages", stats.fault_pages},
                        {"ahead_pages", stats.ahead_pages},
                        {"unread_bytes", stats.unread_bytes},
                        {"failure", failure.empty() ? keeper_failure_ : failure}};
  }
  return result;
}

}  // namespace

int shim_main(int argc, char** argv) {
  if (argc != 3) return 2;
  try {
    return Shim(argv[2]).run();
  } catch (const std::exception& error) {
    complain(error.what());
    return 1;
  }
}

}  // namespace thaw::lifecycle
