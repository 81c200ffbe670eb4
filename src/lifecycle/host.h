// What the parts of one daemon share: settings, paths, and what the host can do.
#pragma once

#include <cstdint>
#include <string>

namespace thaw::lifecycle {

struct Settings {
  std::string data_dir = "/var/lib/thaw";
  std::string runtime = "runc";  // the OCI runtime for cold starts: a name in PATH or a path
  std::string criu_home;         // "" : found (see checkpoint/criu_install.h)
  std::string thaw_binary = "/proc/self/exe";
  int slots = 2;  // prepared ahead
  bool keep_logs = true;
  std::string secrets_key;  // the file of the key that kept secrets are sealed with; "": key_file()
  std::uint64_t checkpoint_quota = 0;  // bytes all checkpoints may take; 0: what the disk has
  std::int64_t verify_every_us =
      7LL * 24 * 3'600'000'000;  // each checkpoint is read whole; 0: never
  std::int64_t compress_after_us =
      7LL * 24 * 3'600'000'000;            // a checkpoint not used for so long; 0: never
  std::uint64_t image_quota = 0;           // bytes all images may take; 0: what the disk has
  std::uint64_t image_size = 64ull << 30;  // bytes one image may take unpacked

  // Traffic: what may be held for a pod while no replica is ready, by each port.
  int hold_connections = 1024;
  std::int64_t hold_bytes = 64 << 20;
  std::int64_t hold_time_us = 120'000'000;
  // Of connections with a replica that move no byte: for good (0: never), and when one end has
  // ended its stream.
  std::int64_t idle_time_us = 0;
  std::int64_t half_closed_time_us = 600'000'000;
  // The shared HTTP port, ADDRESS:PORT; "": none. With a certificate it speaks HTTPS.
  std::string front, front_tls_cert, front_tls_key;
  // Of it: for a request's header, between requests, and within one in which no byte moves.
  std::int64_t front_header_time_us = 30'000'000;
  std::int64_t front_keep_alive_time_us = 75'000'000;
  std::int64_t front_stall_time_us = 3'600'000'000;

  // Restarts: take the place of the daemon that runs; keep the listening sockets in a process of
  // their own; how long to stay for connections once another daemon has taken the place of this.
  bool replace = false, hold_listeners = false;
  std::int64_t hand_over_us = 3'600'000'000;

  std::string database() const { return data_dir + "/thaw.db"; }
  std::string private_dir() const { return data_dir + "/daemon"; }  // sockets for root alone
  std::string slot_dir(const std::string& slot) const { return data_dir + "/slots/" + slot; }
  std::string sealed_dir() const { return data_dir + "/sealed"; }    // kept secrets, encrypted
  std::string secrets_dir() const { return data_dir + "/secrets"; }  // the same before they were
  std::string key_file() const {
    return secrets_key.empty() ? data_dir + "/secrets.key" : secrets_key;
  }
  std::string log_dir(const std::string& replica) const { return data_dir + "/logs/" + replica; }
  std::string checkpoint_dir(const std::string& id) const {
    return data_dir + "/checkpoints/" + id;
  }
};

}  // namespace thaw::lifecycle
