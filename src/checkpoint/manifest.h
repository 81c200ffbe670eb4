// A checkpoint on disk: a folder with images/ (CRIU's files), fs.0, fs.1 … (filesystem layers,
// topmost first), shm/, dev/, thaw/ (contents of small mounts) and manifest.json, which names every
// file with its size and digest and carries a keyed MAC. A folder without a valid manifest is no
// checkpoint.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "checkpoint/page_filter.h"

namespace thaw::checkpoint {

struct FileRecord {
  std::string path;  // below the checkpoint's folder
  std::uint64_t size = 0;
  std::string sha256;
};

struct Manifest {
  std::string id, pod, fingerprint, program;
  nlohmann::json host;  // host class: arch, cpu, kernel, criu
  std::string condition;
  std::int64_t created_us = 0;
  std::vector<std::string> environment;  // the dumped one; an entered process gets it too
  std::vector<std::pair<std::string, std::string>> mounts;  // {target, key}
  std::vector<std::string> pipes;            // "pipe:[inode]" of stdin, stdout, stderr at the dump
  std::vector<std::string> layers;           // fs.0, …
  std::vector<FileRecord> files;             // images/*
  std::map<std::string, std::string> trees;  // folder -> digest
  std::uint64_t memory_bytes = 0;            // size of the page images
  std::uint64_t bytes = 0;                   // all
  LeftOut left_out;                          // of the memory, which is not in the page images
  std::int64_t freeze_us = 0, dump_us = 0;
  int tasks = 0;
};

nlohmann::json to_json(const Manifest& manifest);

// The MAC key of a data directory: 32 random bytes in `data_dir`/mac.key, 0600, made at first use.
std::string load_mac_key(const std::string& data_dir);

// The manifest of a checkpoint after its MAC was found right; of nothing else is anything said.
// Error kCorrupt, kNotFound when there is none.
Manifest read_manifest(const std::string& directory, const std::string& key);

// Completes files, trees and sizes from what lies in `directory`, then writes manifest.json
// atomically. The checkpoint exists from then on.
void seal(Manifest& manifest, const std::string& directory, const std::string& key);

// A keyed MAC in hexadecimal digits, and whether one belongs to these bytes.
std::string mac_of(std::string_view bytes, const std::string& key);
bool mac_fits(const std::string& mac, std::string_view bytes, const std::string& key);

// When the images were last read whole, wall clock; 0 when nobody knows.
std::int64_t checked_us(const std::string& directory);

// A JSON file with a MAC. read_signed: null when absent or not ours.
void write_signed(const std::string& path, nlohmann::json json, const std::string& key);
nlohmann::json read_signed(const std::string& path, const std::string& key);

// Checks checkpoints before anything in them is used. What was hashed (known again by device,
// inode, size and times) is not hashed again; of the images a new daemon knows it, too, from the
// file `checked` beside the manifest, whose time is that of the last look, so that no restore reads
// the whole memory. Layers are hashed
// once a daemon. Thread-safe.
class Verifier {
 public:
  explicit Verifier(std::string key) : key_(std::move(key)) {}
  // The manifest, after its MAC, every name, size and digest was found right, and nothing beside
  // them among the images. Error kCorrupt says what is wrong, kNotFound when there is no manifest.
  // Memory at rest (checkpoint/rest.h) is right when its contents are.
  Manifest verify(const std::string& directory) { return verify(directory, false, {}); }
  // All of it is read, whatever is known of it; `between` is called now and then, and may throw.
  Manifest verify_anew(const std::string& directory, const std::function<void()>& between) {
    return verify(directory, true, between);
  }

 private:
  Manifest verify(const std::string& directory, bool anew, const std::function<void()>& between);
  std::string key_;
  std::mutex mutex_;
  std::map<std::string, std::string>
      known_;                   // path -> identity of the inode that had the right digest
  std::set<std::string> seen_;  // folders
};

}  // namespace thaw::checkpoint
