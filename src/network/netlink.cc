#include "network/netlink.h"

#include <libmnl/libmnl.h>
#include <linux/netlink.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "util/error.h"

namespace thaw::network {
namespace {

std::uint32_t take_sequences() {
  // Far apart, so that an answer to one batch is never taken for an answer to another on the same
  // socket.
  static std::atomic<std::uint32_t> next{1};
  return next.fetch_add(4096);
}

std::string kernel_hint(const nlmsghdr* header) {
  if (!(header->nlmsg_flags & NLM_F_ACK_TLVS)) return {};
  // With NETLINK_CAP_ACK only the header of our message is echoed, unless the kernel says
  // otherwise.
  auto* error = static_cast<const nlmsgerr*>(mnl_nlmsg_get_payload(header));
  std::size_t offset = sizeof(nlmsgerr);
  if (!(header->nlmsg_flags & NLM_F_CAPPED))
    offset += MNL_ALIGN(error->msg.nlmsg_len) - sizeof(nlmsghdr);
  std::string hint;
  for (const nlattr* attribute : attributes_of(header, offset)) {
    if (mnl_attr_get_type(attribute) == NLMSGERR_ATTR_MSG) {
      auto* text = static_cast<const char*>(mnl_attr_get_payload(attribute));
      hint.assign(text, strnlen(text, mnl_attr_get_payload_len(attribute)));
    }
  }
  return hint;
}

}  // namespace

std::vector<const nlattr*> attributes_of(const nlmsghdr* message, std::size_t offset) {
  std::vector<const nlattr*> found;
  auto* tail = static_cast<const char*>(mnl_nlmsg_get_payload_tail(message));
  auto* attribute = static_cast<const nlattr*>(mnl_nlmsg_get_payload_offset(message, offset));
  for (; mnl_attr_ok(attribute, static_cast<int>(tail - reinterpret_cast<const char*>(attribute)));
       attribute = mnl_attr_next(attribute)) {
    found.push_back(attribute);
  }
  return found;
}

std::vector<const nlattr*> attributes_of(const nlattr* nest) {
  std::vector<const nlattr*> found;
  auto* attribute = static_cast<const nlattr*>(mnl_attr_get_payload(nest));
  auto* tail = reinterpret_cast<const char*>(attribute) + mnl_attr_get_payload_len(nest);
  for (; mnl_attr_ok(attribute, static_cast<int>(tail - reinterpret_cast<const char*>(attribute)));
       attribute = mnl_attr_next(attribute)) {
    found.push_back(attribute);
  }
  return found;
}

Fd open_netlink(int protocol) {
  Fd fd(check(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol), "open a netlink socket"));
  int on = 1;
  // Both only make messages better and shorter; a kernel without them still works.
  (void)::setsockopt(fd.get(), SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof on);
  (void)::setsockopt(fd.get(), SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof on);
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  check(::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address),
        "bind a netlink socket");
  return fd;
}

Batch::Batch(std::size_t capacity) : buffer_(capacity), first_sequence_(take_sequences()) {}

void Batch::finish_message() {
  if (!open_) return;
  used_ += MNL_ALIGN(open_->nlmsg_len);
  open_ = nullptr;
}

nlmsghdr* Batch::message(int type, int flags, std::string what, std::size_t room, bool unanswered) {
  finish_message();
  if (used_ + room > buffer_.size())
    throw Error(Code::kInternal, "build netlink message", what, "the batch is full");
  open_ = mnl_nlmsg_put_header(buffer_.data() + used_);
  open_->nlmsg_type = static_cast<std::uint16_t>(type);
  open_->nlmsg_flags =
      static_cast<std::uint16_t>(NLM_F_REQUEST | flags | (unanswered ? 0 : NLM_F_ACK));
  open_->nlmsg_seq = first_sequence_ + static_cast<std::uint32_t>(what_.size());
  what_.push_back(std::move(what));
  unanswered_.push_back(unanswered);
  return open_;
}

struct BatchRunner {
  const Fd& socket;
  Batch& batch;
  std::size_t waiting = 0;
  std::vector<bool> answered{};
  std::optional<NetlinkFailure> failure{};

  void fail(std::size_t index, int error_number, std::string hint) {
    if (!failure) failure = NetlinkFailure{error_number, batch.what_[index], std::move(hint)};
  }

  void settle(std::size_t index) {
    if (answered[index]) return;
    answered[index] = true;
    --waiting;
  }

  void handle(const nlmsghdr* header, const std::function<void(const nlmsghdr*)>& on_object) {
    std::size_t index = header->nlmsg_seq - batch.first_sequence_;
    if (index >= batch.what_.size()) return;  // an old answer or a notification
    if (header->nlmsg_flags & NLM_F_DUMP_INTR)
      fail(index, EINTR, "the list changed while it was read");
    if (header->nlmsg_type == NLMSG_ERROR) {
      auto* error = static_cast<const nlmsgerr*>(mnl_nlmsg_get_payload(header));
      if (error->error != 0) fail(index, -error->error, kernel_hint(header));
      settle(index);
    } else if (header->nlmsg_type == NLMSG_DONE) {
      settle(index);
    } else if (on_object) {
      on_object(header);
    }
  }

  void run(const std::function<void(const nlmsghdr*)>& on_object) {
    batch.finish_message();
    answered = batch.unanswered_;
    waiting = static_cast<std::size_t>(std::count(answered.begin(), answered.end(), false));
    sockaddr_nl kernel{};
    kernel.nl_family = AF_NETLINK;
    ssize_t sent;
    do {
      sent = ::sendto(socket.get(), batch.buffer_.data(), batch.used_, 0,
                      reinterpret_cast<sockaddr*>(&kernel), sizeof kernel);
    } while (sent < 0 && errno == EINTR);
    check(sent, "send to the kernel's network configuration",
          batch.what_.empty() ? "" : batch.what_.front());
    std::vector<char> buffer(32768);
    while (waiting > 0) {
      ssize_t got = ::recv(socket.get(), buffer.data(), buffer.size(), 0);
      if (got < 0 && errno == EINTR) continue;
      check(got, "read the kernel's answer", batch.what_.front());
      int left = static_cast<int>(got);
      for (auto* header = reinterpret_cast<const nlmsghdr*>(buffer.data());
           mnl_nlmsg_ok(header, left); header = mnl_nlmsg_next(header, &left)) {
        handle(header, on_object);
      }
    }
  }
};

std::optional<NetlinkFailure> try_send(const Fd& socket, Batch& batch,
                                       const std::function<void(const nlmsghdr*)>& on_object) {
  BatchRunner runner{socket, batch};
  runner.run(on_object);
  return runner.failure;
}

void throw_failure(const NetlinkFailure& failure) {
  std::string what = failure.what;
  if (!failure.hint.empty()) what += " (kernel: " + failure.hint + ")";
  throw_errno(what, {}, failure.error_number);
}

void send(const Fd& socket, Batch& batch, const std::function<void(const nlmsghdr*)>& on_object) {
  if (auto failure = try_send(socket, batch, on_object)) throw_failure(*failure);
}

}  // namespace thaw::network
