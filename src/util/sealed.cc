#include "util/sealed.h"

#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <sys/random.h>
#include <sys/stat.h>

#include <memory>

#include "util/fd.h"
#include "util/file.h"

namespace thaw {
namespace {

// Of a sealed file: this, the first bytes of the key's digest, the nonce, the ciphertext, the tag.
// What is before the ciphertext, and the name, are authenticated with it.
constexpr std::string_view kMark = "thaw-sealed-1\n", kAnyMark = "thaw-sealed-";
constexpr std::size_t kKey = 32, kId = 8, kNonce = 12, kTag = 16;

constexpr const char* kWriteAnew = "set it anew with `thaw secret set`";

[[noreturn]] void ours() { throw Error(Code::kInternal, "use AES-256-GCM", {}, "OpenSSL refuses"); }

void must(int result) {
  if (result != 1) ours();
}

const unsigned char* bytes_of(std::string_view text) {
  return reinterpret_cast<const unsigned char*>(text.data());
}
unsigned char* bytes_of(std::string& text) { return reinterpret_cast<unsigned char*>(text.data()); }

std::string from_hex(std::string_view text) {
  std::string bytes;
  for (std::size_t at = 0; at + 1 < text.size(); at += 2) {
    auto digit = [&](char c) {
      return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : 256;
    };
    int byte = digit(text[at]) * 16 + digit(text[at + 1]);
    if (byte > 255) return {};
    bytes += static_cast<char>(byte);
  }
  return bytes;
}

using Cipher = std::unique_ptr<EVP_CIPHER_CTX, decltype(&::EVP_CIPHER_CTX_free)>;

}  // namespace

SealKey::SealKey(std::string path, std::string bytes)
    : path_(std::move(path)), bytes_(std::move(bytes)) {
  id_ = from_hex(sha256_hex("thaw seal key " + bytes_)).substr(0, kId);
}

SealKey::SealKey(SealKey&& other) noexcept
    : path_(std::move(other.path_)), bytes_(std::move(other.bytes_)), id_(std::move(other.id_)) {
  ::OPENSSL_cleanse(other.bytes_.data(), other.bytes_.size());
}

SealKey::~SealKey() { ::OPENSSL_cleanse(bytes_.data(), bytes_.size()); }

SealKey SealKey::read(const std::string& path) {
  Fd file = Fd::open(path, O_RDONLY);
  struct stat info {};
  check(::fstat(file.get(), &info), "look at", path);
  if (info.st_mode & 077)
    throw Error(Code::kDenied, "use key", path, "others can read it", "chmod 600 it");
  std::string text = read_all(file, 4096), bytes = from_hex(trim(text));
  ::OPENSSL_cleanse(text.data(), text.size());
  if (bytes.size() != kKey)
    throw Error(Code::kCorrupt, "use key", path, "it does not hold 64 hexadecimal digits",
                "put the key back from where it is kept safe");
  return {path, std::move(bytes)};
}

SealKey SealKey::make(const std::string& path) {
  std::string text = random_hex(64);
  write_file_atomic(path, text + "\n");
  SealKey key(path, from_hex(text));
  ::OPENSSL_cleanse(text.data(), text.size());
  return key;
}

std::string SealKey::seal(std::string_view name, std::string_view plain) const {
  std::string nonce(kNonce, '\0');
  check(::getrandom(nonce.data(), nonce.size(), 0), "read random bytes");
  std::string head = std::string(kMark) + id_ + nonce, known = head + std::string(name);
  std::string hidden(plain.size(), '\0'), tag(kTag, '\0');
  Cipher cipher(::EVP_CIPHER_CTX_new(), ::EVP_CIPHER_CTX_free);
  if (!cipher) ours();
  int size = 0;
  must(::EVP_EncryptInit_ex(cipher.get(), ::EVP_aes_256_gcm(), nullptr, bytes_of(bytes_),
                            bytes_of(nonce)));
  must(::EVP_EncryptUpdate(cipher.get(), nullptr, &size, bytes_of(known),
                           static_cast<int>(known.size())));
  must(::EVP_EncryptUpdate(cipher.get(), bytes_of(hidden), &size, bytes_of(plain),
                           static_cast<int>(plain.size())));
  must(::EVP_EncryptFinal_ex(cipher.get(), bytes_of(hidden) + size, &size));
  must(::EVP_CIPHER_CTX_ctrl(cipher.get(), EVP_CTRL_AEAD_GET_TAG, kTag, tag.data()));
  return head + hidden + tag;
}

std::string SealKey::unseal(std::string_view name, std::string_view sealed) const {
  const std::string object(name);
  if (!sealed.starts_with(kMark) && sealed.starts_with(kAnyMark))
    throw Error(Code::kUnsupported, "open secret", object, "a newer Thaw has sealed it",
                "use that newer version");
  if (!sealed.starts_with(kMark) || sealed.size() < kMark.size() + kId + kNonce + kTag)
    throw Error(Code::kCorrupt, "open secret", object, "it is no sealed file", kWriteAnew);
  std::string_view head = sealed.substr(0, kMark.size() + kId + kNonce);
  if (head.substr(kMark.size(), kId) != id_)
    throw Error(Code::kUnavailable, "open secret", object,
                "it was sealed with another key than " + path_,
                std::string("put that key back, or ") + kWriteAnew);
  std::string_view nonce = head.substr(kMark.size() + kId);
  std::string tag(sealed.substr(sealed.size() - kTag));
  std::string_view hidden = sealed.substr(head.size(), sealed.size() - head.size() - kTag);
  std::string known = std::string(head) + object, plain(hidden.size(), '\0');
  Cipher cipher(::EVP_CIPHER_CTX_new(), ::EVP_CIPHER_CTX_free);
  if (!cipher) ours();
  int size = 0;
  must(::EVP_DecryptInit_ex(cipher.get(), ::EVP_aes_256_gcm(), nullptr, bytes_of(bytes_),
                            bytes_of(nonce)));
  must(::EVP_DecryptUpdate(cipher.get(), nullptr, &size, bytes_of(known),
                           static_cast<int>(known.size())));
  must(::EVP_DecryptUpdate(cipher.get(), bytes_of(plain), &size, bytes_of(hidden),
                           static_cast<int>(hidden.size())));
  must(::EVP_CIPHER_CTX_ctrl(cipher.get(), EVP_CTRL_AEAD_SET_TAG, kTag, tag.data()));
  if (::EVP_DecryptFinal_ex(cipher.get(), bytes_of(plain) + size, &size) != 1) {
    ::OPENSSL_cleanse(plain.data(), plain.size());
    throw Error(Code::kCorrupt, "open secret", object, "its file was changed, or is another one's",
                kWriteAnew);
  }
  return plain;
}

}  // namespace thaw
