// TLS beside the HTTP code, not in it: a thread moves the bytes between the encrypted socket and
// one end of a socket pair, and everything else speaks plainly to the other end.
#pragma once

#include <memory>
#include <string>
#include <thread>

#include "util/clock.h"
#include "util/fd.h"

struct ssl_ctx_st;
struct ssl_st;

namespace thaw::api {

// TLS 1.2 and newer. Thread-safe once made.
class TlsContext {
 public:
  // PEM files: the certificate with its chain, and the key. Error says which one is wrong.
  static TlsContext server(const std::string& certificate, const std::string& key);
  // `ca_file` empty: what the system trusts.
  static TlsContext client(const std::string& ca_file);
  ssl_ctx_st* get() const { return context_.get(); }

 private:
  explicit TlsContext(ssl_ctx_st* context);
  std::shared_ptr<ssl_ctx_st> context_;
};

// One encrypted connection, after its handshake.
class TlsLink {
 public:
  // The server's side. Error kInvalid when the peer does not speak TLS.
  static TlsLink accept(const TlsContext& context, Fd socket, Deadline deadline);
  // The client's: the certificate must be valid for `host`, or it is kDenied.
  static TlsLink connect(const TlsContext& context, Fd socket, const std::string& host,
                         Deadline deadline);
  TlsLink(TlsLink&&) = default;
  TlsLink& operator=(TlsLink&&) = delete;
  // Waits until what was written to the plain end has gone, which must have been closed before.
  ~TlsLink();

  Fd take_plain() { return std::move(plain_); }
  // It goes on until one of the ends closes, whatever becomes of this object.
  void detach();

 private:
  TlsLink(std::shared_ptr<ssl_st> ssl, Fd socket);
  Fd plain_;
  std::thread thread_;
};

}  // namespace thaw::api
