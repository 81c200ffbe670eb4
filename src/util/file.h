// Files and paths: whole-file reads, atomic writes, trees.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace thaw {

// At most `limit` bytes; more is an Error (kExhausted). Works for /proc and cgroup files.
std::string read_file(const std::string& path, std::size_t limit = 64u << 20);
// Without a temporary file: for /proc, /sys, cgroups.
void write_file(const std::string& path, std::string_view data);
// Beside, fsync, rename, fsync of the folder: after it returns the file is whole or the old one.
void write_file_atomic(const std::string& path, std::string_view data, unsigned mode = 0600);
// After it returns a power cut loses no name that was made, renamed or removed in the folder.
void sync_directory(const std::string& path);
bool exists(const std::string& path);
void make_directories(const std::string& path, unsigned mode = 0755);
// Removes a tree without following symbolic links or crossing into other file systems (a mount
// found below is an Error kConflict). No error when absent.
void remove_tree(const std::string& path);
std::string trim(std::string_view text);
// 16 hex digits of kernel randomness, for ids. `length` even, 2 to 64.
std::string random_hex(int length = 12);
std::string sha256_hex(std::string_view data);
// Bytes with a binary unit for people: 1.5 GiB.
std::string format_bytes(std::uint64_t bytes);

}  // namespace thaw
