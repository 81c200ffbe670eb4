#include "checkpoint/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <set>
#include <string_view>

#include "checkpoint/images.h"
#include "util/error.h"
#include "util/file.h"

namespace thaw::checkpoint {
namespace {

// As CRIU calls what was never given a name, and as it is called again when it is restored.
constexpr std::string_view kUnnamed = "/dev/zero";
// CRIU has room for 31 bytes, "/memfd:" included.
constexpr std::string_view kNamed = "/dev/zero.thaw.";
// A smaller one is not worth a process.
constexpr std::uint64_t kSmallest = 1 << 20;

std::string map_path(const std::string& images_dir, std::uint32_t shmid) {
  return fmt::format("{}/pagemap-shmem-{}.img", images_dir, shmid);
}

std::uint64_t stored_bytes(const std::string& path) {
  if (!exists(path)) return 0;
  Image map = read_image(path);
  std::uint64_t bytes = 0;
  for (std::size_t i = 1; i < map.entries.size(); ++i) {
    auto entry = parse_entry<rpc::PagemapEntry>(map.entries[i], path);
    if (entry.flags() & kPresent) bytes += pages_of(entry, path) * kPageSize;
  }
  return bytes;
}

// Files that have a descriptor, and files that are mapped shared and in no other way.
struct Uses {
  explicit Uses(const std::string& images_dir) {
    std::set<std::uint64_t> otherwise;
    for (const std::string& name : names_like(images_dir, "mm-")) {
      std::string path = images_dir + "/" + name;
      for (const std::string& bytes : read_image(path).entries) {
        auto mm = parse_entry<rpc::Mm>(bytes, path);
        for (const rpc::Vma& vma : mm.vmas())
          if (vma.status() == (kRegular | kFileShared | kMemfd))
            mapped.insert(vma.shmid());
          else if (vma.status() & kMemfd)
            otherwise.insert(vma.shmid());
      }
    }
    for (std::uint64_t id : otherwise) mapped.erase(id);
    for (const std::string& name : names_like(images_dir, "fdinfo-")) {
      std::string path = images_dir + "/" + name;
      for (const std::string& bytes : read_image(path).entries)
        opened.insert(parse_entry<rpc::FdinfoEntry>(bytes, path).id());
    }
  }
  std::set<std::uint64_t> mapped, opened;
};

std::size_t number_in(const std::string& name) {
  if (!name.starts_with(kNamed) || name.size() != kNamed.size() + 1) return kMostShared;
  return static_cast<std::size_t>(name.back() - '0');
}

// Only calls that are safe after a fork of a threaded process; the exit code is 0 or an errno.
[[noreturn]] void fill(const char* source_name, int target, const std::vector<Piece>& pieces,
                       const std::vector<std::string>& procs_files) {
  // What others see as the end of this process's parent is not kept from them.
  if (::dup2(target, 0) < 0) ::_exit(errno);
  ::close_range(1, ~0u, 0);
  for (const std::string& file : procs_files) {
    int fd = ::open(file.c_str(), O_WRONLY);
    if (fd < 0 || ::write(fd, "0", 1) != 1) ::_exit(errno);
    ::close(fd);
  }
  int source = ::open(source_name, O_RDONLY);
  if (source < 0) ::_exit(errno);
  for (const Piece& piece : pieces) {
    if (::lseek(0, static_cast<off_t>(piece.address), SEEK_SET) < 0) ::_exit(errno);
    off_t from = static_cast<off_t>(piece.offset);
    for (std::uint64_t left = piece.length; left > 0;) {
      ssize_t n = ::sendfile(0, source, &from, left);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) ::_exit(n < 0 ? errno : EIO);
      left -= static_cast<std::uint64_t>(n);
    }
  }
  ::_exit(0);
}

}  // namespace

int name_shared_memory(const std::string& images_dir) {
  std::string path = images_dir + "/memfd.img", files_path = images_dir + "/files.img";
  if (!exists(path)) return 0;
  Image image = read_image(path);
  std::vector<rpc::MemfdInode> inodes;
  for (const std::string& bytes : image.entries) {
    inodes.push_back(parse_entry<rpc::MemfdInode>(bytes, path));
    if (number_in(inodes.back().name()) < kMostShared) return 0;
  }
  std::map<std::uint32_t, std::vector<std::uint32_t>> files;  // of each inode
  for (const std::string& bytes : read_image(files_path).entries) {
    auto file = parse_entry<rpc::AnyFile>(bytes, files_path);
    if (file.has_memfd()) files[file.memfd().inode_id()].push_back(file.id());
  }
  Uses uses(images_dir);
  std::vector<std::pair<std::uint64_t, std::size_t>> found;  // {bytes, index}
  for (std::size_t i = 0; i < inodes.size(); ++i) {
    const rpc::MemfdInode& inode = inodes[i];
    const auto& ids = files[inode.inode_id()];
    if (inode.name() != kUnnamed || inode.seals() != F_SEAL_SEAL || inode.has_huge_pages() ||
        !std::all_of(ids.begin(), ids.end(), [&](std::uint32_t id) {
          return uses.mapped.contains(id) && !uses.opened.contains(id);
        }))
      continue;
    std::uint64_t bytes = stored_bytes(map_path(images_dir, inode.shmid()));
    if (bytes >= kSmallest) found.emplace_back(bytes, i);
  }
  std::sort(found.rbegin(), found.rend());
  if (found.size() > kMostShared) found.resize(kMostShared);
  for (std::size_t number = 0; number < found.size(); ++number) {
    rpc::MemfdInode& inode = inodes[found[number].second];
    inode.set_name(fmt::format("{}{}", kNamed, number));
    image.entries[found[number].second] = inode.SerializeAsString();
  }
  if (!found.empty()) write_file_atomic(path, image_bytes(image));
  return static_cast<int>(found.size());
}

std::vector<SharedSegment> read_shared_memory(const std::string& images_dir) {
  std::vector<SharedSegment> segments;
  std::string path = images_dir + "/memfd.img";
  if (!exists(path)) return segments;
  std::set<std::size_t> seen;
  for (const std::string& bytes : read_image(path).entries) {
    auto inode = parse_entry<rpc::MemfdInode>(bytes, path);
    std::size_t number = number_in(inode.name());
    if (number >= kMostShared || !seen.insert(number).second) continue;
    std::string map_name = map_path(images_dir, inode.shmid());
    Image map = read_image(map_name);
    if (map.entries.empty() || inode.size() > INT64_MAX)
      throw Error(Code::kCorrupt, "read image", map_name, "it has no head");
    SharedSegment segment{number, inode.size(), inode.uid(), inode.gid(), inode.mode(), "", {}};
    segment.pages_file = fmt::format(
        "pages-{}.img", parse_entry<rpc::PagemapHead>(map.entries[0], map_name).pages_id());
    struct stat info;
    std::string pages_path = images_dir + "/" + segment.pages_file;
    check(::stat(pages_path.c_str(), &info), "stat", pages_path);
    std::uint64_t stored = static_cast<std::uint64_t>(info.st_size), offset = 0;
    for (std::size_t i = 1; i < map.entries.size(); ++i) {
      auto entry = parse_entry<rpc::PagemapEntry>(map.entries[i], map_name);
      std::uint64_t length = pages_of(entry, map_name) * kPageSize, address = entry.vaddr();
      if (!(entry.flags() & kPresent)) continue;
      // A segment ends where its program says, its last page does not.
      std::uint64_t end = (segment.size + kPageSize - 1) / kPageSize * kPageSize;
      if (length > stored - offset || address > end || length > end - address)
        throw Error(Code::kCorrupt, "read image", map_name, "a run of pages makes no sense");
      segment.pieces.push_back({address, std::min(length, segment.size - address), offset});
      offset += length;
    }
    segments.push_back(std::move(segment));
  }
  return segments;
}

std::string shared_key(std::size_t number) { return fmt::format("/memfd:{}{}", kNamed, number); }

Fd make_shared_file() {
  return Fd(check(::memfd_create(kUnnamed.data(), MFD_CLOEXEC), "make", "shared memory"));
}

SharedFill::SharedFill(const std::string& images_dir, const std::vector<SharedSegment>& segments,
                       const std::vector<Fd>& files, const std::vector<std::string>& procs_files) {
  for (const SharedSegment& segment : segments) {
    int file = files.at(segment.number).get();
    check(::ftruncate(file, static_cast<off_t>(segment.size)), "set size of", "shared memory");
    check(::fchown(file, segment.uid, segment.gid), "set owner of", "shared memory");
    if (segment.mode) check(::fchmod(file, segment.mode & 07777), "set mode of", "shared memory");
  }
  for (const SharedSegment& segment : segments) {
    std::string source = images_dir + "/" + segment.pages_file;
    writers_.push_back(Process::fork("shared memory", [&] {
      fill(source.c_str(), files[segment.number].get(), segment.pieces, procs_files);
    }));
  }
}

void SharedFill::wait(Deadline deadline) {
  for (Process& writer : writers_) {
    auto status = writer.wait(deadline);
    if (!status) throw Error(Code::kTimeout, "fill", "shared memory", "it was not written in time");
    if (status->signalled)
      throw Error(Code::kUnavailable, "fill", "shared memory",
                  "the process that writes it was ended: " + status->text());
    if (status->value) throw_errno("fill", "shared memory", status->value);
  }
}

}  // namespace thaw::checkpoint
