#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <thread>

#include "api/frames.h"
#include "api/handlers.h"
#include "api/json.h"
#include "util/clock.h"
#include "util/log.h"

namespace thaw::api {
namespace {

using nlohmann::json;

constexpr std::size_t kPendingLimit =
    1 << 20;  // bytes on their way, each direction, before we stop reading
constexpr std::int64_t kHangupGraceUs = 2'000'000;
// After the end of the process its output may still come: a pseudo-terminal hands it over
// asynchronously. Its end of file never comes when a child in the background keeps it open.
constexpr std::int64_t kDrainUs = 100'000;

// Moves bytes between the client's frames and the process's descriptors until one side ends.
class Session {
 public:
  Session(Upgraded client, pods::ExecStream process)
      : client_(std::move(client)), process_(std::move(process)), done_(Fd::event()) {
    for (Fd* fd : {&process_.input, &process_.output, &process_.error}) {
      if (*fd) set_nonblocking(*fd, true);
    }
    waiter_ = std::thread([this] {
      try {
        ended_ = frame_of(process_.wait());
      } catch (const Error& error) {
        ended_ = encode_frame(FrameType::kError, dump(error_json(error)));
      } catch (const std::exception& error) {
        ended_ = encode_frame(
            FrameType::kError,
            dump(error_json(Error(Code::kInternal, "wait for the process", {}, error.what()))));
      }
      signal_event(done_);
    });
  }

  ~Session() {
    hang_up();
    waiter_.join();
  }

  void run() {
    reader_.append(client_.received);
    if (!take_frames()) return;
    while (turn()) {
    }
  }

 private:
  static std::string frame_of(const ExitStatus& status) {
    json signal = status.signalled ? json(status.value) : json();
    return encode_frame(FrameType::kExit,
                        dump({{"exit_code", status.shell_code()}, {"signal", signal}}));
  }

  // One round of poll. False when the session is over.
  bool turn() {
    bool finished = finishing_ && !process_.output && !process_.error;
    if ((finished || (finishing_ && drain_.passed())) && !ending_) {
      to_client_ += ended_;
      ending_ = true;
    }
    if (ending_ && to_client_.empty()) return false;

    bool reading = to_process_.size() < kPendingLimit && !ending_;
    bool roomy = to_client_.size() < kPendingLimit && !ending_;
    pollfd entries[] = {
        {client_.fd,
         static_cast<short>((reading ? POLLIN : 0) | POLLRDHUP |
                            (to_client_.empty() ? 0 : POLLOUT)),
         0},
        {client_.stop_fd, POLLIN, 0},
        {finishing_ ? -1 : done_.get(), POLLIN, 0},
        {roomy && process_.output ? process_.output.get() : -1, POLLIN, 0},
        {roomy && process_.error ? process_.error.get() : -1, POLLIN, 0},
        {to_process_.empty() || !process_.input ? -1 : process_.input.get(), POLLOUT, 0}};
    int timeout = finishing_ && !ending_ ? drain_.poll_ms() : -1;
    if (::poll(entries, std::size(entries), timeout) < 0) {
      if (errno == EINTR) return true;
      throw_errno("wait for", "exec session");
    }
    if (entries[1].revents) return stop();
    if (entries[2].revents) {
      finishing_ = true;
      drain_ = Deadline::after_us(kDrainUs);
      to_process_.clear();
      process_.input.reset();
    }
    if (entries[3].revents) read_output(process_.output, FrameType::kStdout);
    if (entries[4].revents) read_output(process_.error, FrameType::kStderr);
    if (entries[5].revents) write_input();
    if (entries[0].revents & POLLOUT) {
      if (!send_pending()) return false;
    }
    if (entries[0].revents & POLLIN) return receive();
    return !(entries[0].revents & (POLLRDHUP | POLLHUP | POLLERR));
  }

  bool stop() {
    to_client_ += encode_frame(
        FrameType::kError,
        dump(error_json(Error(Code::kUnavailable, "go on with the exec session", {},
                              "the daemon is stopping", "try again when it is back"))));
    send_pending();
    return false;
  }

  void read_output(Fd& fd, FrameType type) {
    char block[32 * 1024];
    ssize_t count = ::read(fd.get(), block, sizeof block);
    if (count > 0) {
      to_client_ += encode_frame(type, std::string_view(block, static_cast<std::size_t>(count)));
    } else if (count == 0 || (errno != EAGAIN && errno != EINTR)) {
      fd.reset();  // a terminal whose other side is closed says EIO
    }
  }

  void write_input() {
    ssize_t count = ::write(process_.input.get(), to_process_.data(), to_process_.size());
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (count < 0) {  // the process reads no more: what is left goes nowhere, as in a shell's pipe
      process_.input.reset();
      to_process_.clear();
      return;
    }
    to_process_.erase(0, static_cast<std::size_t>(count));
    if (input_ended_ && to_process_.empty()) process_.input.reset();
  }

  bool send_pending() {
    ssize_t count = ::send(client_.fd, to_client_.data(), to_client_.size(), MSG_NOSIGNAL);
    if (count < 0) return errno == EAGAIN || errno == EINTR;
    to_client_.erase(0, static_cast<std::size_t>(count));
    return true;
  }

  bool receive() {
    char block[32 * 1024];
    ssize_t count = ::recv(client_.fd, block, sizeof block, 0);
    if (count < 0) return errno == EAGAIN || errno == EINTR;
    if (count == 0) return false;
    reader_.append(std::string_view(block, static_cast<std::size_t>(count)));
    return take_frames();
  }

  bool take_frames() {
    try {
      while (auto frame = reader_.next()) take(*frame);
      return true;
    } catch (const Error& error) {
      refuse(error);
    } catch (const json::exception& error) {
      refuse(Error(Code::kInvalid, "read a frame of the exec session", {}, error.what(),
                   "see docs/api.md"));
    }
    return false;
  }

  void refuse(const Error& error) {
    to_client_ += encode_frame(FrameType::kError, dump(error_json(error)));
    send_pending();
  }

  void take(const Frame& frame) {
    if (finishing_) return;
    switch (frame.type) {
      case FrameType::kStdin:
        if (process_.input && !input_ended_) to_process_ += frame.payload;
        return;
      case FrameType::kStdinEof:
        input_ended_ = true;
        if (to_process_.empty()) process_.input.reset();
        return;
      case FrameType::kResize: {
        json size = json::parse(frame.payload);
        if (process_.resize) process_.resize(size.at("rows"), size.at("columns"));
        return;
      }
      case FrameType::kSignal:
        if (process_.signal) process_.signal(json::parse(frame.payload).at("signal"));
        return;
      default:
        throw Error(Code::kInvalid, "read the exec session", {},
                    "a frame of this type comes from the daemon only", "see docs/api.md");
    }
  }

  // Nobody listens any more: the process gets what a closed terminal gives, and is killed when it
  // ignores that.
  void hang_up() noexcept {
    try {
      process_.input.reset();
      process_.output.reset();
      process_.error.reset();
      if (wait_readable(done_.get(), Deadline::after_us(0))) return;
      if (process_.signal) process_.signal(SIGHUP);
      if (wait_readable(done_.get(), Deadline::after_us(kHangupGraceUs))) return;
      if (process_.signal) process_.signal(SIGKILL);
    } catch (const std::exception& error) {
      log::warn("exec session: the process was not ended", {{"error", describe(error)}});
    }
  }

  Upgraded client_;
  pods::ExecStream process_;
  Fd done_;
  FrameReader reader_;
  std::string to_client_, to_process_;
  std::string ended_;  // the last frame; set by the waiter before done_
  bool input_ended_ = false;
  bool finishing_ = false;  // the process has ended
  bool ending_ = false;     // the last frame is queued
  Deadline drain_ = Deadline::never();
  std::thread waiter_;
};

int size_of(const json& body, const char* key, int fallback) {
  if (!body.contains(key)) return fallback;
  if (!body[key].is_number_integer() || body[key] < 1 || body[key] > 65535) {
    throw Error(Code::kInvalid, "read", key, dump(body[key]) + " is no size from 1 to 65535",
                "leave it out or send the terminal's size");
  }
  return body[key];
}

std::vector<std::string> argv_of(const json& body) {
  std::vector<std::string> argv;
  const json value = body.contains("argv") ? body["argv"] : json();
  if (value.is_array()) {
    for (auto& item : value) {
      if (!item.is_string()) return {};
      argv.push_back(item);
    }
  }
  return argv;
}

}  // namespace

void exec_in_replica(Exchange& exchange) {
  json body = exchange.body_object({"argv", "terminal", "rows", "columns"});
  std::vector<std::string> argv = argv_of(body);
  if (argv.empty() || argv[0].empty()) {
    throw Error(Code::kInvalid, "read", "argv", "it is no list of texts with a program first",
                "send {\"argv\": [\"ls\", \"-l\"]}");
  }
  if (body.contains("terminal") && !body["terminal"].is_boolean()) {
    throw Error(Code::kInvalid, "read", "terminal",
                dump(body["terminal"]) + " is not true or false", "leave it out or send true");
  }
  bool terminal = body.value("terminal", false);
  int rows = size_of(body, "rows", 24), columns = size_of(body, "columns", 80);
  if (exchange.request().upgrade != "thaw-exec") {
    throw HttpError(
        426, Code::kInvalid, "answer", "POST " + exchange.request().target,
        "exec leaves HTTP for a stream of frames, and the request does not ask for that",
        "send the headers 'Connection: Upgrade' and 'Upgrade: thaw-exec'; see docs/api.md",
        {{"Upgrade", "thaw-exec"}});
  }
  std::string replica = exchange.backend().replica(exchange.path("id")).id;
  pods::ExecStream process = exchange.backend().exec(replica, argv, terminal, rows, columns);
  Session(exchange.upgrade("thaw-exec"), std::move(process)).run();
}

}  // namespace thaw::api
