#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <charconv>

#include "image/images.h"
#include "util/error.h"
#include "util/in_root.h"

namespace thaw::image {
namespace {

constexpr std::size_t kFileLimit = 16 << 20;

// 4294967295 is (uid_t)-1, which no process can have.
std::optional<std::uint32_t> number(std::string_view text) {
  std::uint32_t value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || text.empty() ||
      value == UINT32_MAX)
    return std::nullopt;
  return value;
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (;;) {
    auto at = text.find(separator);
    parts.push_back(text.substr(0, at));
    if (at == std::string_view::npos) return parts;
    text.remove_prefix(at + 1);
  }
}

// A file of the image, which may be anything: absent, a link to outside, a FIFO that would block
// us.
std::string read_inside(const std::string& rootfs, const std::string& path) {
  Fd root = Fd::open(rootfs, O_PATH | O_DIRECTORY);
  Fd file = try_open_in_root(root, path, O_RDONLY | O_NONBLOCK | O_NOCTTY);
  if (!file) {
    if (errno == ENOENT || errno == ENOTDIR || errno == ELOOP || errno == ENXIO) return {};
    throw_errno("open", rootfs + path);
  }
  struct stat info {};
  check(::fstat(file.get(), &info), "stat", rootfs + path);
  return S_ISREG(info.st_mode) ? read_all(file, kFileLimit) : std::string();
}

struct User {
  std::string name, home;
  std::uint32_t uid = 0, gid = 0;
};

// The first line that the name or number fits, as getpwnam and getpwuid do.
std::optional<User> find_user(const std::string& passwd, std::string_view who) {
  auto uid = number(who);
  for (std::string_view line : split(passwd, '\n')) {
    auto fields = split(line, ':');
    if (fields.size() < 4) continue;
    auto line_uid = number(fields[2]), line_gid = number(fields[3]);
    if (!line_uid || !line_gid || (fields[0] != who && line_uid != uid)) continue;
    return User{std::string(fields[0]), std::string(fields.size() > 5 ? fields[5] : ""), *line_uid,
                *line_gid};
  }
  return std::nullopt;
}

std::optional<std::uint32_t> find_group(const std::string& group, std::string_view which) {
  for (std::string_view line : split(group, '\n')) {
    auto fields = split(line, ':');
    if (fields.size() >= 3 && fields[0] == which)
      if (auto gid = number(fields[2])) return gid;
  }
  return number(which);
}

std::vector<std::uint32_t> groups_of(const std::string& group, const std::string& member) {
  std::vector<std::uint32_t> found;
  for (std::string_view line : split(group, '\n')) {
    auto fields = split(line, ':');
    if (fields.size() < 4) continue;
    auto gid = number(fields[2]);
    if (!gid || std::find(found.begin(), found.end(), *gid) != found.end()) continue;
    for (std::string_view name : split(fields[3], ','))
      if (name == member) {
        found.push_back(*gid);
        break;
      }
  }
  return found;
}

[[noreturn]] void unknown(const std::string& what, std::string_view name, const std::string& file) {
  throw Error(Code::kInvalid, "find " + what, std::string(name),
              "the image's " + file + " does not know it", "use a name from there or a number");
}

}  // namespace

// The rules are those of docker and podman: a number needs no line in /etc/passwd, and its group is
// then 0; the user's supplementary groups count only where no group was given.
Identity resolve_user(const std::string& rootfs, const std::string& user) {
  auto colon = user.find(':');
  std::string who = user.substr(0, colon),
              group = colon == std::string::npos ? "" : user.substr(colon + 1);
  if (who.empty()) who = "0";
  Identity identity;
  auto found = find_user(read_inside(rootfs, "/etc/passwd"), who);
  if (found) {
    identity.uid = found->uid;
    identity.gid = found->gid;
    if (!found->home.empty()) identity.home = found->home;
  } else if (auto uid = number(who)) {
    identity.uid = *uid;
  } else {
    unknown("user", who, "/etc/passwd");
  }
  if (!group.empty()) {
    auto gid = find_group(read_inside(rootfs, "/etc/group"), group);
    if (!gid) unknown("group", group, "/etc/group");
    identity.gid = *gid;
  } else if (found) {
    identity.groups = groups_of(read_inside(rootfs, "/etc/group"), found->name);
  }
  return identity;
}

}  // namespace thaw::image
