#include "checkpoint/page_filter.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <optional>
#include <set>

#include "checkpoint/images.h"
#include "checkpoint/page_index.h"
#include "util/file.h"

namespace thaw::checkpoint {
namespace {

// A run is split for no fewer pages than this.
constexpr std::uint64_t kShortest = 16;
constexpr std::uint64_t kChunk = 2 << 20;

// What a page that is not stored would be: zeros, the file's at `offset`, or something else.
struct Area {
  std::uint64_t start = 0, end = UINT64_MAX;
  bool zero = false;
  int file = -1;  // not owned
  std::uint64_t offset = 0;
};

// The files of the root file system that processes map, by number.
class MappedFiles {
 public:
  MappedFiles(const std::string& images, const OpenMapped& open) : open_(open) {
    std::vector<std::string> mounts = names_like(images, "mountpoints-");
    if (!exists(images + "/files.img") || mounts.size() != 1) return;
    std::optional<std::uint32_t> root;
    std::string path = images + "/" + mounts[0];
    for (const std::string& bytes : read_image(path).entries) {
      auto mount = parse_entry<rpc::MountEntry>(bytes, path);
      if (mount.mountpoint() != "/" && mount.mountpoint() != "./") continue;
      if (root) return;
      root = mount.mnt_id();
    }
    if (!root) return;
    // A file that was deleted has a name that may be another's now.
    std::set<std::uint32_t> remapped;
    path = images + "/remap-fpath.img";
    if (exists(path))
      for (const std::string& bytes : read_image(path).entries)
        remapped.insert(parse_entry<rpc::Remap>(bytes, path).orig_id());
    path = images + "/files.img";
    for (const std::string& bytes : read_image(path).entries) {
      auto file = parse_entry<rpc::AnyFile>(bytes, path);
      if (file.has_reg() && file.reg().has_mnt_id() && !remapped.contains(file.id()) &&
          file.reg().mnt_id() == static_cast<std::int64_t>(*root))
        names_[file.id()] = file.reg().name();
    }
  }

  // -1: it is none of these.
  int descriptor(std::uint64_t id) {
    auto name = names_.find(id);
    if (name == names_.end()) return -1;
    auto [at, fresh] = opened_.try_emplace(id);
    if (fresh) at->second = open_(name->second);
    return at->second.get();
  }

 private:
  const OpenMapped& open_;
  std::map<std::uint64_t, std::string> names_;
  std::map<std::uint64_t, Fd> opened_;
};

std::vector<Area> areas_of(const std::string& mm_path, MappedFiles& files) {
  std::vector<std::string> mms = read_image(mm_path).entries;
  if (mms.size() != 1) throw Error(Code::kCorrupt, "read image", mm_path, "it has no head");
  std::vector<Area> areas;
  rpc::Mm mm = parse_entry<rpc::Mm>(mms[0], mm_path);
  for (const rpc::Vma& vma : mm.vmas()) {
    Area area{vma.start(), vma.end()};
    // What is neither plain anonymous memory nor a private mapping of a file stays as it is.
    std::uint32_t kind = vma.status() & ~(kStack | kHeap);
    area.zero = kind == (kRegular | kAnonPrivate) && !(vma.flags() & MAP_HUGETLB);
    if (kind == (kRegular | kFilePrivate)) {
      area.file = files.descriptor(vma.shmid());
      area.offset = vma.pgoff();
    }
    areas.push_back(area);
  }
  return areas;
}

bool is_zero(const char* page) {
  std::uint64_t word;
  std::memcpy(&word, page, sizeof word);
  return word == 0 && std::memcmp(page, page + sizeof word, kPageSize - sizeof word) == 0;
}

std::size_t read_at(int fd, char* to, std::uint64_t length, std::uint64_t offset,
                    const std::string& path) {
  std::size_t done = 0;
  while (done < length) {
    ssize_t n = ::pread(fd, to + done, length - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    check(n, "read", path);
    if (n == 0) break;
    done += static_cast<std::size_t>(n);
  }
  return done;
}

// One pages image on its way.
class Mover {
 public:
  Mover(const std::string& source, const std::string& target)
      : path_(source),
        in_place_(source == target),
        chunk_(kChunk, '\0'),
        file_chunk_(kChunk, '\0') {
    source_ = Fd::open(source, in_place_ ? O_RDWR : O_RDONLY);
    if (!in_place_) target_ = Fd::open(target, O_WRONLY | O_CREAT | O_EXCL, 0600);
  }

  // The stored pages at `address`, all of one area. Calls keep(address, length) for each run of
  // those that stay.
  void move(std::uint64_t address, std::uint64_t length, const Area& area,
            const std::function<void(std::uint64_t, std::uint64_t)>& keep) {
    for (std::uint64_t done = 0; done < length;) {
      std::uint64_t part = std::min(length - done, kChunk);
      move_chunk(address + done, part, area, done == 0, done + part == length, keep);
      done += part;
    }
  }

  // The file has what was kept and nothing else.
  void finish() {
    check(::ftruncate((in_place_ ? source_ : target_).get(), static_cast<off_t>(written_)),
          "set size of", path_);
    if (!in_place_) check(::unlink(path_.c_str()), "unlink", path_);
  }
  const LeftOut& left_out() const { return left_; }

 private:
  void move_chunk(std::uint64_t address, std::uint64_t length, const Area& area, bool first,
                  bool last, const std::function<void(std::uint64_t, std::uint64_t)>& keep) {
    if (read_at(source_.get(), chunk_.data(), length, read_, path_) != length)
      throw Error(Code::kCorrupt, "read image", path_, "it has fewer pages than its pagemap names");
    read_ += length;
    std::size_t in_file = 0;
    if (area.file >= 0) {
      in_file = read_at(area.file, file_chunk_.data(), length, area.offset + (address - area.start),
                        path_);
      // A page that the file's end lies in is zero behind it; behind that page there is nothing.
      std::size_t whole = (in_file + kPageSize - 1) / kPageSize * kPageSize;
      std::memset(file_chunk_.data() + in_file, 0, whole - in_file);
      in_file = whole;
    }
    std::uint64_t pages = length / kPageSize;
    auto page = [&](std::uint64_t i) { return chunk_.data() + i * kPageSize; };
    auto needless = [&](std::uint64_t i) {
      if (area.zero) return is_zero(page(i));
      return (i + 1) * kPageSize <= in_file &&
             std::memcmp(page(i), file_chunk_.data() + i * kPageSize, kPageSize) == 0;
    };
    for (std::uint64_t i = 0; i < pages;) {
      bool leave = needless(i);
      std::uint64_t end = i + 1;
      while (end < pages && needless(end) == leave) ++end;
      bool at_an_end = (first && i == 0) || (last && end == pages);
      std::uint64_t bytes = (end - i) * kPageSize;
      if (leave && (at_an_end || end - i >= kShortest)) {
        (area.zero ? left_.zero : left_.file) += bytes;
      } else {
        keep(address + i * kPageSize, bytes);
        if (leave && area.zero && !in_place_) {
          left_.zero += bytes;  // a hole
        } else {
          write(page(i), bytes);
        }
        written_ += bytes;
      }
      i = end;
    }
  }

  void write(const char* data, std::uint64_t length) const {
    const Fd& to = in_place_ ? source_ : target_;
    for (std::uint64_t done = 0; done < length;) {
      ssize_t n =
          ::pwrite(to.get(), data + done, length - done, static_cast<off_t>(written_ + done));
      if (n < 0 && errno == EINTR) continue;
      done += static_cast<std::uint64_t>(check(n, "write", path_));
    }
  }

  std::string path_;
  bool in_place_;
  Fd source_, target_;
  std::string chunk_, file_chunk_;
  std::uint64_t read_ = 0, written_ = 0;  // in place: what is written never overtakes what is read
  LeftOut left_;
};

// The runs of `map`, without what `mover` leaves out.
void filter(Image& map, const std::string& path, const std::vector<Area>& areas, Mover& mover) {
  std::vector<std::string> kept{map.entries.at(0)};
  auto area = areas.begin();
  for (std::size_t i = 1; i < map.entries.size(); ++i) {
    auto entry = parse_entry<rpc::PagemapEntry>(map.entries[i], path);
    std::uint64_t address = entry.vaddr(), end = address + pages_of(entry, path) * kPageSize;
    if (!(entry.flags() & kPresent)) {
      kept.push_back(map.entries[i]);
      continue;
    }
    std::uint64_t run = 0, run_end = 0;
    auto put_run = [&] {
      if (run == run_end) return;
      entry.set_vaddr(run);
      std::uint64_t pages = (run_end - run) / kPageSize;
      if (entry.has_nr_pages()) entry.set_nr_pages(pages);
      if (!entry.has_nr_pages() || entry.compat_nr_pages())
        entry.set_compat_nr_pages(static_cast<std::uint32_t>(pages));
      kept.push_back(entry.SerializeAsString());
    };
    while (address < end) {
      while (area != areas.end() && area->end <= address) ++area;
      if (area == areas.end() || area->start > address)
        throw Error(Code::kCorrupt, "read image", path, "pages lie outside every mapping");
      std::uint64_t stop = std::min(end, area->end);
      mover.move(address, stop - address, *area, [&](std::uint64_t at, std::uint64_t length) {
        if (at != run_end) {
          put_run();
          run = at;
        }
        run_end = at + length;
      });
      address = stop;
    }
    put_run();
  }
  map.entries = std::move(kept);
}

}  // namespace

LeftOut move_memory(const std::string& from, const std::string& to, const OpenMapped& open) {
  MappedFiles files(from, open);
  LeftOut all;
  std::set<std::uint32_t> seen;
  for (const std::string& name : names_like(from, "pagemap-")) {
    std::string path = from + "/" + name, id = name.substr(8);
    Image map = read_image(path);
    if (map.entries.empty()) throw Error(Code::kCorrupt, "read image", path, "it has no head");
    std::uint32_t pages_id = parse_entry<rpc::PagemapHead>(map.entries[0], path).pages_id();
    if (!seen.insert(pages_id).second)
      throw Error(Code::kCorrupt, "read image", path, "its pages are another pagemap's, too");
    // Shared memory has no VMAs here: what is not stored of it is zero.
    std::vector<Area> areas = id.rfind("shmem-", 0) == 0 ? std::vector<Area>{{.zero = true}}
                                                         : areas_of(from + "/mm-" + id, files);
    std::string pages = fmt::format("/pages-{}.img", pages_id);
    Mover mover(from + pages, to + pages);
    filter(map, path, areas, mover);
    mover.finish();
    all.zero += mover.left_out().zero;
    all.file += mover.left_out().file;
    write_file_atomic(to + "/" + name, image_bytes(map));
    if (from != to) check(::unlink(path.c_str()), "unlink", path);
  }
  return all;
}

}  // namespace thaw::checkpoint
