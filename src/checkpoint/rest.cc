#include "checkpoint/rest.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <mutex>
#include <system_error>
#include <thread>

#include "store/seekable.h"
#include "util/error.h"
#include "util/fault.h"
#include "util/fd.h"
#include "util/file.h"

namespace thaw::checkpoint {
namespace {

constexpr std::string_view kImages = "images/", kPages = "images/pages-", kEnd = ".zst";
constexpr std::string_view kHalf = ".half";   // written to, in either direction
constexpr std::uint64_t kLeast = 256u << 10;  // a smaller image is not worth a file of its own
constexpr std::uint64_t kSample = 64u << 20;  // after which it must have become smaller
constexpr std::size_t kZeros = 4096;          // of which a hole is made
constexpr unsigned kMostThreads = 4;

std::string rest_directory(const std::string& directory) { return directory + "/rest"; }

std::optional<struct stat> look(const std::string& path) {
  struct stat info;
  if (::lstat(path.c_str(), &info) == 0) return info;
  if (errno != ENOENT && errno != ENOTDIR) check(-1, "stat", path);
  return std::nullopt;
}

std::string state_of(const struct stat& info) {
  return fmt::format("{} {} {} {}.{}", info.st_dev, info.st_ino, info.st_size, info.st_mtim.tv_sec,
                     info.st_mtim.tv_nsec);
}

std::vector<std::string> names_in(const std::string& directory) {
  std::vector<std::string> names;
  std::error_code absent;
  for (std::filesystem::directory_iterator at(directory, absent), end; !absent && at != end;
       at.increment(absent))
    names.push_back(at->path().filename());
  if (absent && absent != std::errc::no_such_file_or_directory)
    throw Error(Code::kSystem, "list", directory, absent.message());
  return names;
}

void rename_file(const std::string& from, const std::string& to) {
  check(::rename(from.c_str(), to.c_str()), "rename", to);
}

void remove_file(const std::string& path) {
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) check(-1, "remove", path);
}

// Of the page images only, by names that lead nowhere else.
bool is_memory(const std::string& path) {
  return path.starts_with(kPages) && path.find('/', kImages.size()) == std::string::npos;
}

bool pays(std::uint64_t plain, std::uint64_t stored) { return stored < plain - plain / 10; }

// False when it would hardly become smaller.
bool compress_one(const FileRecord& file, const std::string& from, const std::string& to,
                  const std::function<void()>& between) {
  Fd in = Fd::open(from, O_RDONLY | O_NOFOLLOW);
  Fd out = Fd::open(to, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, 0600);
  struct HardlySmaller {};
  try {
    std::uint64_t stored =
        store::compress_seekable(in, out, to, [&](std::uint64_t read, std::uint64_t written) {
          if (read >= kSample && !pays(read, written)) throw HardlySmaller();
          between();
        });
    if (!pays(file.size, stored)) return false;
  } catch (const HardlySmaller&) {
    return false;
  }
  check(::fdatasync(out.get()), "sync", to);
  // What is read next is to come from the disk.
  ::posix_fadvise(out.get(), 0, 0, POSIX_FADV_DONTNEED);
  store::SeekableFile written(to);
  if (written.size() != file.size || store::digest_seekable(written, between) != file.sha256)
    throw Error(Code::kCorrupt, "compress checkpoint file", from,
                "its contents are not what was sealed");
  return true;
}

void write_at(const Fd& file, std::string_view data, std::uint64_t offset,
              const std::string& path) {
  while (!data.empty()) {
    ssize_t n = ::pwrite(file.get(), data.data(), data.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    check(n, "write", path);
    data.remove_prefix(static_cast<std::size_t>(n));
    offset += static_cast<std::uint64_t>(n);
  }
}

bool all_zero(std::string_view data) {
  return data.empty() ||
         (data[0] == 0 && std::memcmp(data.data(), data.data() + 1, data.size() - 1) == 0);
}

// Zeros stay a hole of the file, as they were when it was sealed.
void write_frame(const Fd& file, std::string_view data, std::uint64_t offset,
                 const std::string& path) {
  std::size_t begin = 0;  // of what is to be written
  for (std::size_t at = 0; at < data.size();) {
    std::size_t size = std::min(kZeros, data.size() - at);
    if (all_zero(data.substr(at, size))) {
      write_at(file, data.substr(begin, at - begin), offset + begin, path);
      begin = at + size;
    }
    at += size;
  }
  write_at(file, data.substr(begin), offset + begin, path);
  // The disk is to have begun when all is waited for.
  ::sync_file_range(file.get(), static_cast<off_t>(offset), static_cast<off_t>(data.size()),
                    SYNC_FILE_RANGE_WRITE);
}

void inflate_one(const FileRecord& file, const std::string& from, const std::string& to) {
  store::SeekableFile compressed(from);
  // Before anything is written: a broken table may promise more than a disk has.
  if (compressed.size() != file.size)
    throw Error(Code::kCorrupt, "use checkpoint file", from,
                fmt::format("it holds {} bytes instead of {}", compressed.size(), file.size));
  Fd out = Fd::open(to, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, 0600);
  check(::ftruncate(out.get(), static_cast<off_t>(file.size)), "size", to);
  std::atomic<std::size_t> next = 0;
  std::atomic<bool> over = false;
  std::mutex mutex;
  std::exception_ptr error;
  auto work = [&] {
    try {
      store::FrameReader reader(compressed);
      for (std::size_t frame; !over && (frame = next++) < compressed.frames();)
        write_frame(out, reader.read(frame), compressed.offset(frame), to);
    } catch (...) {
      std::scoped_lock lock(mutex);
      if (!error) error = std::current_exception();
      over = true;
    }
  };
  {
    unsigned count = std::clamp(std::thread::hardware_concurrency(), 1u, kMostThreads);
    std::vector<std::jthread> others;
    // Those that cannot be had are not needed.
    try {
      for (unsigned i = 1; i < count && i < compressed.frames(); ++i) others.emplace_back(work);
    } catch (const std::system_error&) {
    }
    work();
  }
  if (error) std::rethrow_exception(error);
  check(::fdatasync(out.get()), "sync", to);
}

std::vector<FileRecord> resting_files(const Manifest& manifest, const std::string& directory) {
  std::vector<FileRecord> files;
  for (const FileRecord& file : manifest.files)
    if (rests(directory, file.path)) files.push_back(file);
  return files;
}

}  // namespace

std::string rest_name(const std::string& path) {
  return fmt::format("rest/{}{}", path.substr(kImages.size()), kEnd);
}

bool rests(const std::string& directory, const std::string& path) {
  return is_memory(path) && !look(directory + "/" + path) &&
         look(directory + "/" + rest_name(path));
}

bool at_rest(const std::string& directory) { return resting_memory(directory).has_value(); }

std::optional<std::uint64_t> resting_memory(const std::string& directory) {
  if (!look(rest_directory(directory))) return std::nullopt;
  std::uint64_t bytes = 0;
  bool any = false;
  for (const std::string& name : names_in(rest_directory(directory))) {
    if (!name.ends_with(kEnd)) continue;
    std::string image = std::string(kImages) + name.substr(0, name.size() - kEnd.size());
    auto compressed = look(rest_directory(directory) + "/" + name);
    if (!compressed || look(directory + "/" + image)) continue;
    bytes += static_cast<std::uint64_t>(compressed->st_size);
    any = true;
  }
  if (!any) return std::nullopt;
  for (const std::string& name : names_in(directory + "/images"))
    if (is_memory(std::string(kImages) + name))
      if (auto plain = look(directory + "/images/" + name))
        bytes += static_cast<std::uint64_t>(plain->st_size);
  return bytes;
}

Compressed compress_memory(const Manifest& manifest, const std::string& directory,
                           const std::function<void()>& between) {
  Compressed made;
  for (const FileRecord& file : manifest.files) {
    if (!is_memory(file.path) || file.size < kLeast || rests(directory, file.path)) continue;
    make_directories(rest_directory(directory), 0700);
    std::string to = directory + "/" + rest_name(file.path), half = to + std::string(kHalf);
    if (!compress_one(file, directory + "/" + file.path, half, between)) {
      remove_file(half);
      continue;
    }
    rename_file(half, to);
    auto info = look(to);
    if (!info) throw Error(Code::kConflict, "compress checkpoint file", to, "it is gone");
    made.files.emplace_back(file.path, state_of(*info));
    made.plain += file.size;
    made.stored += static_cast<std::uint64_t>(info->st_size);
  }
  if (made.files.empty()) {
    tidy_rest(directory);
  } else {
    sync_directory(rest_directory(directory));
    sync_directory(directory);
  }
  return made;
}

bool settle_memory(const Compressed& made, const std::string& directory) {
  for (const auto& [path, state] : made.files) {
    auto info = look(directory + "/" + rest_name(path));
    if (!info || state_of(*info) != state) return false;
  }
  for (const auto& [path, state] : made.files) {
    // Large files take their time to go; tidy_rest() removes this one.
    rename_file(directory + "/" + path, fmt::format("{}/{}.plain{}", rest_directory(directory),
                                                    path.substr(kImages.size()), kHalf));
    fault_point("rest.removed");
  }
  return true;
}

void tidy_rest(const std::string& directory) {
  std::string rest = rest_directory(directory);
  if (!look(rest)) return;
  for (const std::string& name : names_in(rest)) {
    bool half = name.ends_with(kHalf);
    std::string image = name.substr(0, name.size() - std::min(name.size(), kEnd.size()));
    if (half || look(directory + "/" + std::string(kImages) + image))
      remove_file(rest + "/" + name);
  }
  ::rmdir(rest.c_str());  // stays when something rests in it
}

std::pair<std::uint64_t, std::uint64_t> inflated_bytes(const Manifest& manifest,
                                                       const std::string& directory) {
  std::uint64_t plain = 0, stored = 0;
  for (const FileRecord& file : resting_files(manifest, directory)) {
    plain += file.size;
    if (auto info = look(directory + "/" + rest_name(file.path)))
      stored += static_cast<std::uint64_t>(info->st_size);
  }
  return {plain - std::min(plain, stored), std::min(plain, stored)};
}

void inflate_memory(const Manifest& manifest, const std::string& directory) {
  for (const FileRecord& file : resting_files(manifest, directory)) {
    std::string from = directory + "/" + rest_name(file.path);
    std::string half =
        rest_directory(directory) + "/" + file.path.substr(kImages.size()) + std::string(kHalf);
    fault_point("inflate.begun");
    try {
      inflate_one(file, from, half);
      fault_point("inflate.written");
      rename_file(half, directory + "/" + file.path);
    } catch (const std::exception&) {
      ::unlink(half.c_str());
      throw;
    }
    sync_directory(directory + "/images");
    fault_point("inflate.placed");
    remove_file(from);
  }
  ::rmdir(rest_directory(directory).c_str());
}

}  // namespace thaw::checkpoint
