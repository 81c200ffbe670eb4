#include "lifecycle/shim_client.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace thaw::lifecycle {

ShimClient::ShimClient(Fd socket)
    : socket_(std::move(socket)), ended_(Fd::event()), reader_([this] { read_loop(); }) {}

std::unique_ptr<ShimClient> ShimClient::connect(const std::string& path) {
  std::string folder_path = path.substr(0, path.rfind('/')),
              name = path.substr(path.rfind('/') + 1);
  Fd folder = Fd::open(folder_path, O_PATH | O_DIRECTORY);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::string short_path = "/proc/self/fd/" + std::to_string(folder.get()) + "/" + name;
  std::strncpy(address.sun_path, short_path.c_str(), sizeof address.sun_path - 1);
  Fd socket(check(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), "make socket"));
  if (::connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
    throw Error(Code::kUnavailable, "connect to shim", path, std::strerror(errno));
  return std::make_unique<ShimClient>(std::move(socket));
}

ShimClient::~ShimClient() {
  ::shutdown(socket_.get(), SHUT_RDWR);
  reader_.join();
}

void ShimClient::read_loop() {
  while (auto message = receive_message(socket_)) {
    std::scoped_lock lock(mutex_);
    std::string event = message->body.value("event", "");
    if (event == "exited") {
      exit_ = status_from_json(message->body.at("status"));
      signal_event(ended_);
    } else if (event == "session-exited") {
      sessions_[message->body.at("session").get<int>()] =
          status_from_json(message->body.at("status"));
    } else if (auto found = answers_.find(message->body.value("id", std::int64_t{0}));
               found != answers_.end()) {
      found->second = std::move(*message);
    }
    changed_.notify_all();
  }
  std::scoped_lock lock(mutex_);
  lost_ = true;
  signal_event(ended_);
  changed_.notify_all();
}

nlohmann::json ShimClient::call(nlohmann::json request, Deadline deadline,
                                const std::vector<int>& descriptors, std::vector<Fd>* received) {
  std::int64_t id;
  std::string operation = request.at("op");
  {
    std::scoped_lock lock(mutex_);
    id = next_id_++;
    answers_[id] = std::nullopt;
  }
  request["id"] = id;
  try {
    std::scoped_lock lock(send_mutex_);
    send_message(socket_, request, descriptors);
  } catch (...) {
    std::scoped_lock lock(mutex_);
    answers_.erase(id);
    throw;
  }
  std::unique_lock lock(mutex_);
  auto arrived = [&] { return lost_ || answers_[id].has_value(); };
  if (deadline.at_us() == Deadline::never().at_us())
    changed_.wait(lock, arrived);
  else
    changed_.wait_for(lock, std::chrono::microseconds(deadline.left_us()), arrived);
  std::optional<Message> message = std::move(answers_[id]);
  answers_.erase(id);
  if (!message) {
    if (lost_) throw Error(Code::kUnavailable, operation, "replica", "its shim is gone");
    throw Error(Code::kTimeout, operation, "replica", "the shim did not answer in time");
  }
  lock.unlock();
  if (message->body.contains("error")) throw error_from_json(message->body.at("error"));
  if (received) *received = std::move(message->descriptors);
  return std::move(message->body.at("result"));
}

bool ShimClient::lost() const {
  std::scoped_lock lock(mutex_);
  return lost_;
}

std::optional<ExitStatus> ShimClient::exit_status() const {
  std::scoped_lock lock(mutex_);
  return exit_;
}

void ShimClient::set_exit_status(ExitStatus status) {
  std::scoped_lock lock(mutex_);
  exit_ = status;
  signal_event(ended_);
}

int ShimClient::start_session(const std::vector<std::string>& argv, bool terminal, int rows,
                              int columns, const std::vector<int>& stdio, Fd* terminal_fd) {
  nlohmann::json request{{"op", "execute"},
                         {"argv", argv},
                         {"terminal", terminal},
                         {"rows", rows},
                         {"columns", columns}};
  if (terminal) request["env"] = {"TERM=xterm-256color"};
  std::vector<Fd> received;
  nlohmann::json result = call(request, Deadline::after_ms(10'000), stdio, &received);
  if (terminal_fd && !received.empty()) *terminal_fd = std::move(received[0]);
  return result.at("session");
}

void ShimClient::signal_session(int session, int number) {
  call({{"op", "session-signal"}, {"session", session}, {"signal", number}},
       Deadline::after_ms(5000));
}

std::optional<ExitStatus> ShimClient::wait_session(int session, Deadline deadline) {
  std::unique_lock lock(mutex_);
  auto ended = [&] { return lost_ || sessions_.count(session) > 0; };
  if (deadline.at_us() == Deadline::never().at_us())
    changed_.wait(lock, ended);
  else
    changed_.wait_for(lock, std::chrono::microseconds(deadline.left_us()), ended);
  auto found = sessions_.find(session);
  if (found == sessions_.end()) {
    if (lost_)
      throw Error(Code::kUnavailable, "wait for program in", "replica", "its shim is gone");
    return std::nullopt;
  }
  ExitStatus status = found->second;
  sessions_.erase(found);
  return status;
}

RunResult ShimClient::exec(const std::vector<std::string>& argv, Deadline deadline,
                           const std::string& input, int cancel_fd) {
  auto [in_read, in_write] = Fd::pipe();
  auto [out_read, out_write] = Fd::pipe();
  auto [err_read, err_write] = Fd::pipe();
  int session =
      start_session(argv, false, 0, 0, {in_read.get(), out_write.get(), err_write.get()}, nullptr);
  in_read.reset();
  out_write.reset();
  err_write.reset();
  RunResult result;
  // Probes get little input: it fits into the pipe.
  set_nonblocking(in_write, true);
  if (!input.empty()) [[maybe_unused]]
    ssize_t n = ::write(in_write.get(), input.data(), input.size());
  in_write.reset();
  bool cancelled = false, killed = false;
  Deadline wait = deadline;
  while (out_read || err_read) {
    pollfd fds[3] = {{out_read ? out_read.get() : -1, POLLIN, 0},
                     {err_read ? err_read.get() : -1, POLLIN, 0},
                     {killed ? -1 : cancel_fd, POLLIN, 0}};
    int ready = ::poll(fds, 3, wait.poll_ms());
    if (ready < 0 && errno == EINTR) continue;
    check(ready, "poll");
    if ((ready == 0 || fds[2].revents) && killed) break;
    if (ready == 0 || fds[2].revents) {
      (ready == 0 ? result.timed_out : cancelled) = true;
      killed = true;
      wait = Deadline::after_ms(5000);
      signal_session(session, SIGKILL);
      continue;
    }
    for (auto [index, fd, into] :
         {std::tuple{0, &out_read, &result.out}, std::tuple{1, &err_read, &result.err}}) {
      if (!fds[index].revents) continue;
      char buffer[65536];
      ssize_t n = ::read(fd->get(), buffer, sizeof buffer);
      if (n <= 0)
        fd->reset();
      else if (into->size() < (1u << 20))
        into->append(buffer, static_cast<std::size_t>(n));
    }
  }
  // A program may close its output and run on.
  auto status = wait_session(session, killed ? Deadline::after_ms(5000) : deadline);
  if (!status) {
    result.timed_out = !cancelled;
    signal_session(session, SIGKILL);
    status = wait_session(session, Deadline::after_ms(5000));
  }
  if (cancelled) throw Error(Code::kCancelled, "run in container", argv[0], "it was cancelled");
  if (status) result.status = *status;
  return result;
}

}  // namespace thaw::lifecycle
