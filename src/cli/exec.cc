#include <poll.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>

#include "api/frames.h"
#include "api/json.h"
#include "cli/command.h"

namespace thaw::cli {
namespace {

using api::FrameType;

struct ExecOptions {
  bool interactive = false, terminal = false;
  std::string replica;
  std::vector<std::string> words, rest;
};

// The terminal as it was, on every way out but SIGKILL.
class RawTerminal {
 public:
  RawTerminal() {
    check(::tcgetattr(0, &before_), "read the settings of", "terminal");
    termios raw = before_;
    ::cfmakeraw(&raw);
    check(::tcsetattr(0, TCSADRAIN, &raw), "set up", "terminal");
  }
  ~RawTerminal() { ::tcsetattr(0, TCSADRAIN, &before_); }
  RawTerminal(const RawTerminal&) = delete;
  RawTerminal& operator=(const RawTerminal&) = delete;

 private:
  termios before_{};
};

// Signals that belong to the program in the container, taken from a descriptor while the session
// lasts.
class SignalFd {
 public:
  SignalFd() {
    sigset_t set;
    ::sigemptyset(&set);
    for (int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH}) ::sigaddset(&set, signal);
    ::pthread_sigmask(SIG_BLOCK, &set, &before_);
    fd_ = Fd(check(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK), "watch", "signals"));
  }
  ~SignalFd() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  int get() const { return fd_.get(); }
  int take() const {
    signalfd_siginfo info{};
    return ::read(fd_.get(), &info, sizeof info) == sizeof info ? static_cast<int>(info.ssi_signo)
                                                                : 0;
  }

 private:
  Fd fd_;
  sigset_t before_{};
};

winsize terminal_size() {
  winsize size{};
  if (::ioctl(0, TIOCGWINSZ, &size) != 0 || size.ws_row == 0 || size.ws_col == 0) {
    size.ws_row = 24;
    size.ws_col = 80;
  }
  return size;
}

class Session {
 public:
  Session(api::ExecConnection connection, bool interactive)
      : socket_(std::move(connection.socket)), reading_(interactive) {
    reader_.append(connection.received);
    if (!interactive) send(FrameType::kStdinEof, "");
  }

  int run(const SignalFd& signals) {
    while (!exit_code_) {
      while (auto frame = reader_.next()) {
        take(*frame);
        if (exit_code_) return *exit_code_;
      }
      bool full = unsent_.size() > kMostUnsent;
      pollfd entries[] = {
          {socket_.get(), static_cast<short>(unsent_.empty() ? POLLIN : POLLIN | POLLOUT), 0},
          {reading_ && !full ? 0 : -1, POLLIN, 0},
          {signals.get(), POLLIN, 0}};
      if (::poll(entries, 3, -1) < 0 && errno != EINTR) throw_errno("wait for", "exec session");
      if (entries[2].revents) forward(signals.take());
      if (entries[1].revents) read_input();
      if (!unsent_.empty()) flush();
      if (entries[0].revents & ~POLLOUT) receive();
    }
    return *exit_code_;
  }

 private:
  void send(FrameType type, std::string_view payload) {
    unsent_ += api::encode_frame(type, payload);
    flush();
  }

  // Never waits: the daemon may be waiting for us to take the program's output first.
  void flush() {
    std::size_t done = 0;
    while (done < unsent_.size()) {
      ssize_t count = ::send(socket_.get(), unsent_.data() + done, unsent_.size() - done,
                             MSG_NOSIGNAL | MSG_DONTWAIT);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0 && errno == EAGAIN) break;
      if (count < 0) done = unsent_.size();  // it has closed: its last frame is still to be read
      if (count > 0) done += static_cast<std::size_t>(count);
    }
    unsent_.erase(0, done);
  }

  void forward(int signal) {
    if (signal == SIGWINCH) {
      winsize size = terminal_size();
      send(FrameType::kResize, api::dump({{"rows", size.ws_row}, {"columns", size.ws_col}}));
    } else if (signal) {
      send(FrameType::kSignal, api::dump({{"signal", signal}}));
    }
  }

  void read_input() {
    char block[32 * 1024];
    ssize_t count = ::read(0, block, sizeof block);
    if (count < 0 && (errno == EINTR || errno == EAGAIN)) return;
    if (count > 0)
      return send(FrameType::kStdin, std::string_view(block, static_cast<std::size_t>(count)));
    send(FrameType::kStdinEof, "");
    reading_ = false;
  }

  void receive() {
    char block[64 * 1024];
    ssize_t count = ::recv(socket_.get(), block, sizeof block, 0);
    if (count < 0 && errno == EINTR) return;
    if (count <= 0) {
      throw Error(Code::kUnavailable, "go on with the exec session", {}, "the daemon closed it",
                  "try again");
    }
    reader_.append(std::string_view(block, static_cast<std::size_t>(count)));
  }

  void take(const api::Frame& frame) {
    if (frame.type == FrameType::kExit) {
      exit_code_ = nlohmann::json::parse(frame.payload).at("exit_code");
    } else if (frame.type == FrameType::kError) {
      throw api::from_error_json(nlohmann::json::parse(frame.payload));
    } else {
      int out = frame.type == FrameType::kStderr ? 2 : 1;
      std::string_view left = frame.payload;
      while (!left.empty()) {
        ssize_t count = ::write(out, left.data(), left.size());
        if (count < 0 && errno == EINTR) continue;
        check(count, "write to", out == 1 ? "stdout" : "stderr");
        left.remove_prefix(static_cast<std::size_t>(count));
      }
    }
  }

  static constexpr std::size_t kMostUnsent = 256 << 10;
  Fd socket_;
  std::string unsent_;  // frames that the daemon has not taken yet
  bool reading_;
  api::FrameReader reader_;
  std::optional<int> exit_code_;
};

int exec(Context& context, const ExecOptions& options) {
  api::ExecRequest request;
  request.replica = options.replica;
  request.argv = options.words;
  request.argv.insert(request.argv.end(), options.rest.begin(), options.rest.end());
  if (request.argv.empty()) {
    throw Error(Code::kInvalid, "run a program in", options.replica, "no program is given",
                "give one after --, for example `thaw exec " + options.replica + " -- ls -l`");
  }
  request.terminal = options.terminal;
  if (options.terminal && !::isatty(0)) {
    throw Error(Code::kInvalid, "use -t in", options.replica, "stdin is no terminal",
                "leave -t out");
  }
  winsize size = terminal_size();
  request.rows = size.ws_row;
  request.columns = size.ws_col;
  auto client = context.client();
  // Before the program starts: a Ctrl-C from now on is the program's.
  SignalFd signals;
  Session session(client.exec(request), options.interactive);
  std::optional<RawTerminal> raw;
  if (options.terminal && options.interactive) raw.emplace();
  return session.run(signals);
}

}  // namespace

Command exec_command() {
  auto options = std::make_shared<ExecOptions>();
  Command command{"exec", "Run a program in a replica",
                  "As the container's user, in its working directory, with its environment. Ends "
                  "with the program's own "
                  "exit code. Signals go to the program."};
  command.examples = {"thaw exec web -- ps aux", "thaw exec -it 3f2a -- bash"};
  command.options = {{"-i,--interactive", "", &options->interactive, "Pass stdin on"},
                     {"-t,--tty", "", &options->terminal, "Give it a terminal"}};
  command.positionals = {
      {"REPLICA", &options->replica, "A replica's id or a pod's name", true, "@replica"},
      {"PROGRAM", &options->words, "What to run; after -- when it has options", false}};
  command.rest = &options->rest;
  command.rest_name = "PROGRAM...";
  command.run = [options](Context& context) { return exec(context, *options); };
  return command;
}

}  // namespace thaw::cli
