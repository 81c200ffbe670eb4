#include "lifecycle/shim_protocol.h"

#include <sys/socket.h>

#include <cerrno>
#include <cstring>

namespace thaw::lifecycle {
namespace {
constexpr std::size_t kMaxMessage = 200 << 10;
constexpr std::size_t kMaxDescriptors = 8;
}  // namespace

void send_message(const Fd& socket, const nlohmann::json& body,
                  const std::vector<int>& descriptors) {
  std::string text = body.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  if (text.size() > kMaxMessage || descriptors.size() > kMaxDescriptors)
    throw Error(Code::kExhausted, "send message to", "shim",
                fmt::format("it has {} bytes", text.size()),
                "make command, environment and mounts shorter");
  iovec data{text.data(), text.size()};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxDescriptors * sizeof(int))] = {};
  if (!descriptors.empty()) {
    std::size_t size = descriptors.size() * sizeof(int);
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(size);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(size);
    std::memcpy(CMSG_DATA(header), descriptors.data(), size);
  }
  ssize_t n;
  do n = ::sendmsg(socket.get(), &message, MSG_NOSIGNAL);
  while (n < 0 && errno == EINTR);
  if (n < 0)
    throw Error(Code::kUnavailable, "send message over", "shim socket", std::strerror(errno));
}

std::optional<Message> receive_message(const Fd& socket) {
  std::string buffer(kMaxMessage + 1, '\0');
  iovec data{buffer.data(), buffer.size()};
  msghdr header{};
  header.msg_iov = &data;
  header.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxDescriptors * sizeof(int))] = {};
  header.msg_control = control;
  header.msg_controllen = sizeof control;
  ssize_t n;
  do n = ::recvmsg(socket.get(), &header, MSG_CMSG_CLOEXEC);
  while (n < 0 && errno == EINTR);
  Message message;
  for (cmsghdr* part = CMSG_FIRSTHDR(&header); n >= 0 && part; part = CMSG_NXTHDR(&header, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    std::size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof fd);
      message.descriptors.emplace_back(fd);
    }
  }
  if (n <= 0) return std::nullopt;
  buffer.resize(static_cast<std::size_t>(n));
  message.body = nlohmann::json::parse(buffer, nullptr, false);
  if (!message.body.is_object()) return std::nullopt;
  return message;
}

nlohmann::json error_json(const std::exception& error) {
  if (auto* ours = dynamic_cast<const Error*>(&error))
    return {{"code", static_cast<int>(ours->code())},
            {"action", ours->action()},
            {"object", ours->object()},
            {"cause", ours->cause()},
            {"remedy", ours->remedy()}};
  return {{"code", static_cast<int>(Code::kInternal)},
          {"action", "do what was asked"},
          {"object", ""},
          {"cause", error.what()},
          {"remedy", ""}};
}

Error error_from_json(const nlohmann::json& json) {
  return Error(static_cast<Code>(json.at("code").get<int>()), json.at("action"), json.at("object"),
               json.at("cause"), json.at("remedy"));
}

nlohmann::json status_json(const ExitStatus& status) {
  return {{"signalled", status.signalled}, {"value", status.value}};
}

ExitStatus status_from_json(const nlohmann::json& json) {
  return {json.at("signalled"), json.at("value")};
}

}  // namespace thaw::lifecycle
