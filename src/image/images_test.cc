#include "image/images.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "image/layout.h"
#include "image/staging.h"
#include "image/tools.h"
#include "util/error.h"
#include "util/file.h"
#include "util/process.h"

namespace thaw::image {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;

// An environment variable for the life of the object.
class WithVariable {
 public:
  WithVariable(const char* name, const std::string& value) : name_(name) {
    if (const char* old = std::getenv(name)) before_ = old;
    ::setenv(name, value.c_str(), 1);
  }
  ~WithVariable() { before_ ? ::setenv(name_, before_->c_str(), 1) : ::unsetenv(name_); }

 private:
  const char* name_;
  std::optional<std::string> before_;
};

void must_run(const std::vector<std::string>& argv, const std::string& directory) {
  RunResult result = run(argv, Deadline::after_ms(60'000), {.directory = directory});
  if (!result.ok()) throw std::runtime_error(argv[0] + " " + argv[1] + ": " + result.err);
}

class Images : public testing::Test {
 protected:
  // One image for all tests: two layers, the second takes a file of the first away.
  static void SetUpTestSuite() {
    made_ = (fs::temp_directory_path() / ("thaw-images-" + random_hex())).string();
    make_directories(made_ + "/one/etc");
    make_directories(made_ + "/one/bin");
    write_file(made_ + "/one/etc/passwd", "root:x:0:0::/root:/bin/sh\n");
    write_file(made_ + "/one/etc/gone", "");
    write_file(made_ + "/one/bin/tool", "#!/bin/sh\n");
    ASSERT_EQ(::chmod((made_ + "/one/bin/tool").c_str(), 04755), 0);
    ASSERT_EQ(::chown((made_ + "/one/etc/passwd").c_str(), 33, 34), 0) << "this test needs root";
    ASSERT_EQ(::symlink("tool", (made_ + "/one/bin/link").c_str()), 0);
    make_directories(made_ + "/two/etc");
    write_file(made_ + "/two/etc/.wh.gone", "");
    write_file(made_ + "/two/etc/new", "new");
    for (const char* layer : {"one", "two"})
      must_run({"tar", "-cf", std::string(layer) + ".tar", "-C", layer, "."}, made_);
    make_image(made_, "oci", {"one.tar", "two.tar"});
  }
  static void TearDownTestSuite() { remove_tree(made_); }

  // An OCI layout `name` in `directory`, tagged v1.
  static void make_image(const std::string& directory, const std::string& name,
                         const std::vector<std::string>& layers,
                         const std::vector<std::string>& config = {}) {
    std::string image = name + ":v1";
    must_run({"umoci", "init", "--layout", name}, directory);
    must_run({"umoci", "new", "--image", image}, directory);
    for (const std::string& layer : layers)
      must_run({"umoci", "raw", "add-layer", "--image", image, layer}, directory);
    std::vector<std::string> argv{"umoci",
                                  "config",
                                  "--image",
                                  image,
                                  "--config.env",
                                  "A=b c",
                                  "--config.entrypoint",
                                  "/bin/tool",
                                  "--config.cmd",
                                  "serve",
                                  "--config.user",
                                  "33",
                                  "--config.workingdir",
                                  "/srv",
                                  "--config.exposedports",
                                  "80/tcp"};
    argv.insert(argv.end(), config.begin(), config.end());
    must_run(argv, directory);
  }

  Images()
      : dir_((fs::temp_directory_path() / ("thaw-images-" + random_hex())).string()),
        store_(dir_ + "/store") {
    make_directories(store_);
  }
  ~Images() override { remove_tree(dir_); }

  Image import(const std::string& reference) {
    lines_.clear();
    return import_image(store_, reference, Deadline::after_ms(60'000), cancel_.get(),
                        [this](const std::string& line) { lines_.push_back(line); });
  }
  std::optional<Error> error_of(const std::string& reference,
                                Deadline deadline = Deadline::after_ms(60'000)) {
    try {
      import_image(store_, reference, deadline, cancel_.get());
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(reference));
      EXPECT_TRUE(nothing_left()) << error.what();
      return error;
    }
    ADD_FAILURE() << reference << " was imported";
    return std::nullopt;
  }
  bool nothing_left() { return !exists(store_ + "/tmp") || fs::is_empty(store_ + "/tmp"); }
  std::string copy(const std::string& to) {
    must_run({"skopeo", "copy", "--quiet", "--insecure-policy", "oci:" + made_ + "/oci:v1", to},
             dir_);
    return to;
  }

  static std::string made_;
  std::string dir_, store_;
  Fd cancel_ = Fd::event();
  std::vector<std::string> lines_;
};
std::string Images::made_;

TEST_F(Images, ImportUnpacksAndKeepsTheConfiguration) {
  Image image = import("oci:" + made_ + "/oci:v1");
  json index = json::parse(read_file(made_ + "/oci/index.json"));
  EXPECT_EQ("sha256:" + image.id, index["manifests"][0]["digest"]);
  EXPECT_EQ(image.rootfs, store_ + "/images/" + image.id + "/rootfs");
  EXPECT_EQ(image.reference, "oci:" + made_ + "/oci:v1");
  EXPECT_GT(image.bytes, 0u);

  EXPECT_EQ(image.config["Env"], json::array({"A=b c"}));
  EXPECT_EQ(image.config["Entrypoint"], json::array({"/bin/tool"}));
  EXPECT_EQ(image.config["Cmd"], json::array({"serve"}));
  EXPECT_EQ(image.config["User"], "33");
  EXPECT_EQ(image.config["WorkingDir"], "/srv");
  EXPECT_TRUE(image.config["ExposedPorts"].contains("80/tcp"));

  EXPECT_EQ(read_file(image.rootfs + "/etc/new"), "new");
  EXPECT_FALSE(exists(image.rootfs + "/etc/gone"));
  EXPECT_FALSE(exists(image.rootfs + "/etc/.wh.gone"));
  EXPECT_EQ(fs::read_symlink(image.rootfs + "/bin/link"), "tool");
  struct stat info {};
  ASSERT_EQ(::stat((image.rootfs + "/etc/passwd").c_str(), &info), 0);
  EXPECT_EQ(info.st_uid, 33u);
  EXPECT_EQ(info.st_gid, 34u);
  ASSERT_EQ(::stat((image.rootfs + "/bin/tool").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 04755u);
  EXPECT_TRUE(nothing_left());
}

TEST_F(Images, ImportReadsEveryKindOfFile) {
  for (const std::string& to :
       {"dir:" + dir_ + "/dir", "docker-archive:" + dir_ + "/docker.tar:app:v1",
        "oci-archive:" + dir_ + "/oci.tar:v1"}) {
    Image image = import(copy(to));
    EXPECT_EQ(read_file(image.rootfs + "/etc/new"), "new") << to;
    EXPECT_EQ(image.config["Entrypoint"], json::array({"/bin/tool"})) << to;
    remove_image(store_, image.id);
  }
}

TEST_F(Images, ImportOfWhatIsThereIsQuick) {
  Image first = import("oci:" + made_ + "/oci:v1");
  EXPECT_THAT(lines_, Contains(HasSubstr("unpacking 2 layers")));
  Image again = import("oci:" + made_ + "/oci:v1");
  EXPECT_THAT(lines_, Contains("the image is in the store already"));
  EXPECT_EQ(again.id, first.id);
  EXPECT_EQ(again.config, first.config);
  // Another way to the same image: by its manifest, nothing is copied.
  std::string other = copy("dir:" + dir_ + "/dir");
  EXPECT_EQ(import(other).id, first.id);
  EXPECT_THAT(lines_, Contains("the image is in the store already"));
  auto listed = list_images(store_);
  ASSERT_EQ(listed.size(), 1u);
  EXPECT_EQ(listed[0].reference, other);
  EXPECT_EQ(listed[0].bytes, first.bytes);
}

TEST_F(Images, RelativePathsAreTheCallers) {
  std::string to = copy("dir:" + dir_ + "/dir");
  EXPECT_FALSE(import("dir:" + fs::relative(dir_ + "/dir").string()).id.empty());
}

TEST_F(Images, ImportsOfTheSameImageAtTheSameTime) {
  std::vector<std::thread> threads;
  std::vector<std::string> found(3);
  for (std::string& id : found)
    threads.emplace_back([&] {
      id = import_image(store_, "oci:" + made_ + "/oci:v1", Deadline::after_ms(60'000)).id;
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(found, ElementsAre(found[0], found[0], found[0]));
  EXPECT_EQ(list_images(store_).size(), 1u);
  EXPECT_TRUE(nothing_left());
}

TEST_F(Images, ReferencesThatDoNotSayWhereFrom) {
  for (const char* text : {"nginx", "nginx:latest", "registry.example:5000/a:b", ""}) {
    auto error = error_of(text);
    ASSERT_TRUE(error);
    EXPECT_EQ(error->code(), Code::kInvalid);
    EXPECT_THAT(error->what(), HasSubstr("docker://"));
    EXPECT_THAT(error->what(), HasSubstr("oci-archive:"));
  }
  EXPECT_EQ(error_of("oci:")->code(), Code::kInvalid);
  EXPECT_EQ(error_of("dir:/no/such/path")->code(), Code::kNotFound);
  EXPECT_EQ(error_of("oci:/no/such/path:v1")->code(), Code::kNotFound);
}

TEST_F(Images, WhatIsNoImage) {
  make_directories(dir_ + "/empty");
  EXPECT_EQ(error_of("dir:" + dir_ + "/empty")->code(), Code::kUnavailable);
  EXPECT_THAT(error_of("oci:" + made_ + "/oci:other")->what(), HasSubstr("skopeo: "));
  write_file(dir_ + "/empty/manifest.json", R"({"schemaVersion":1})");
  EXPECT_EQ(error_of("dir:" + dir_ + "/empty")->code(), Code::kUnsupported);
  write_file(dir_ + "/junk.tar", "no tar");
  error_of("docker-archive:" + dir_ + "/junk.tar");
  EXPECT_TRUE(list_images(store_).empty());
}

TEST_F(Images, ArtifactsAreRefused) {
  make_directories(dir_ + "/helm");
  std::string config = "{}";
  write_file(dir_ + "/helm/" + sha256_hex(config), config);
  json manifest{{"schemaVersion", 2},
                {"mediaType", "application/vnd.oci.image.manifest.v1+json"},
                {"config",
                 {{"mediaType", "application/vnd.cncf.helm.config.v1+json"},
                  {"digest", "sha256:" + sha256_hex(config)},
                  {"size", 2}}},
                {"layers", json::array()}};
  write_file(dir_ + "/helm/manifest.json", manifest.dump());
  write_file(dir_ + "/helm/version", "Directory Transport Version: 1.1\n");
  EXPECT_THAT(error_of("dir:" + dir_ + "/helm")->what(), HasSubstr("helm"));
}

TEST_F(Images, AnotherArchitectureIsRefused) {
  make_image(dir_, "foreign", {}, {"--architecture", "pdp11"});
  auto error = error_of("oci:" + dir_ + "/foreign:v1");
  EXPECT_EQ(error->code(), Code::kUnsupported);
  EXPECT_THAT(error->what(), HasSubstr("linux/pdp11"));
}

TEST_F(Images, ADamagedLayerIsRefused) {
  copy("dir:" + dir_ + "/dir");
  json manifest = json::parse(read_file(dir_ + "/dir/manifest.json"));
  std::string layer = dir_ + "/dir/" + manifest["layers"][0]["digest"].get<std::string>().substr(7);
  std::string data = read_file(layer);
  data[data.size() / 2] ^= 1;
  write_file(layer, data);
  EXPECT_EQ(error_of("dir:" + dir_ + "/dir")->code(), Code::kUnavailable);
}

TEST_F(Images, ALayoutIsCheckedAgainstItsDigests) {
  must_run({"cp", "-a", made_ + "/oci", "layout"}, dir_);
  json index = json::parse(read_file(dir_ + "/layout/index.json"));
  std::string digest = index["manifests"][0]["digest"];
  std::string blob = dir_ + "/layout/blobs/sha256/" + digest.substr(7);
  // Other histories of the same layout stay in index.json; ours is the tagged one.
  EXPECT_EQ("sha256:" + read_layout(dir_ + "/layout", "x").id, digest);
  write_file(blob, read_file(blob) + " ");
  try {
    read_layout(dir_ + "/layout", "x");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kCorrupt);
  }
}

TEST_F(Images, AConfigurationOfOtherTypesIsRefused) {
  must_run({"cp", "-a", made_ + "/oci", "layout"}, dir_);
  std::string blobs = dir_ + "/layout/blobs/sha256/";
  json index = json::parse(read_file(dir_ + "/layout/index.json"));
  auto read = [&](const json& descriptor) {
    return json::parse(read_file(blobs + descriptor["digest"].get<std::string>().substr(7)));
  };
  auto put = [&](json& descriptor, const json& value) {
    std::string text = value.dump(), hex = sha256_hex(text);
    write_file(blobs + hex, text);
    descriptor["digest"] = "sha256:" + hex;
    descriptor["size"] = text.size();
  };
  json manifest = read(index["manifests"][0]), config = read(manifest["config"]);
  for (const char* text : {R"({"Env": {"A": "b"}})", R"({"Env": [1]})", R"({"Env": [["A=b"]]})",
                           R"({"User": 0})", R"({"User": ["root"]})", R"({"WorkingDir": {}})",
                           R"({"Entrypoint": "/bin/tool"})", R"({"Cmd": [null]})"}) {
    config["config"] = json::parse(text);
    put(manifest["config"], config);
    put(index["manifests"][0], manifest);
    write_file(dir_ + "/layout/index.json", index.dump());
    try {
      read_layout(dir_ + "/layout", "x");
      ADD_FAILURE() << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kCorrupt) << text;
    }
  }
}

TEST_F(Images, LayersCannotReachOutside) {
  make_directories(dir_ + "/in/a");
  write_file(dir_ + "/outside", "before");
  write_file(dir_ + "/in/a/file", "evil");
  must_run({"tar", "-cPf", "up.tar", "--transform",
            "s,^a/file,../../../../../../../.." + dir_ + "/outside,", "-C", "in", "a/file"},
           dir_);
  ASSERT_EQ(::symlink(dir_.c_str(), (dir_ + "/in/link").c_str()), 0);
  must_run({"tar", "-cPf", "link.tar", "-C", "in", "link"}, dir_);
  must_run({"tar", "-cPf", "through.tar", "--transform", "s,^a/file,link/outside,", "-C", "in",
            "a/file"},
           dir_);
  make_image(dir_, "evil", {"up.tar", "link.tar", "through.tar"});
  try {
    import("oci:" + dir_ + "/evil:v1");  // taken, with the names kept inside, or refused
  } catch (const Error&) {
  }
  EXPECT_EQ(read_file(dir_ + "/outside"), "before");
  EXPECT_TRUE(nothing_left());
}

TEST_F(Images, BombsAreRefusedAndLeaveNothing) {
  must_run({"truncate", "-s", "100M", "zeros"}, dir_);
  must_run({"sh", "-c", "tar -cf - zeros | gzip -1 > zeros.tar.gz; rm zeros"}, dir_);
  UnpackLimits limits{.bytes = 10 << 20};
  auto refused = [&](const std::string& reference) {
    try {
      import_image(store_, reference, Deadline::after_ms(60'000), -1, {}, limits);
      ADD_FAILURE() << reference << " was imported";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kExhausted) << error.what();
      EXPECT_THAT(error.what(), testing::AllOf(HasSubstr(reference), HasSubstr("--image-size")));
    }
    EXPECT_TRUE(nothing_left());
  };
  // A layer, written down as it is: umoci would pack it anew.
  make_image(dir_, "bomb", {});
  std::string blobs = dir_ + "/bomb/blobs/sha256/", layer = read_file(dir_ + "/zeros.tar.gz");
  json index = json::parse(read_file(dir_ + "/bomb/index.json"));
  std::string old = index["manifests"][0]["digest"].get<std::string>().substr(7);
  json manifest = json::parse(read_file(blobs + old));
  manifest["layers"] = {{{"mediaType", "application/vnd.oci.image.layer.v1.tar+gzip"},
                         {"digest", "sha256:" + sha256_hex(layer)},
                         {"size", layer.size()}}};
  write_file(blobs + sha256_hex(layer), layer);
  write_file(blobs + sha256_hex(manifest.dump()), manifest.dump());
  index["manifests"][0]["digest"] = "sha256:" + sha256_hex(manifest.dump());
  index["manifests"][0]["size"] = manifest.dump().size();
  write_file(dir_ + "/bomb/index.json", index.dump());
  refused("oci:" + dir_ + "/bomb:v1");
  // An archive that skopeo would unpack to look into it.
  refused("docker-archive:" + dir_ + "/zeros.tar.gz");
  refused("oci-archive:" + dir_ + "/zeros.tar.gz");
  // A file of it that is too large as it is: the tool cannot write it.
  limits.bytes = 1000;
  must_run({"sh", "-c", "head -c 100000 /dev/urandom > static; tar -cf noise.tar static"}, dir_);
  make_image(dir_, "noise", {dir_ + "/noise.tar"});
  try {
    import_image(store_, "oci:" + dir_ + "/noise:v1", Deadline::after_ms(60'000), -1, {}, limits);
    ADD_FAILURE() << "it was imported";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("file too large"));
  }
  EXPECT_TRUE(nothing_left());
  EXPECT_TRUE(list_images(store_).empty());
}

TEST_F(Images, CancelledOrTooLate) {
  EXPECT_EQ(error_of("oci:" + made_ + "/oci:v1", Deadline::after_ms(0))->code(), Code::kTimeout);
  signal_event(cancel_);
  EXPECT_EQ(error_of("oci:" + made_ + "/oci:v1")->code(), Code::kCancelled);
  EXPECT_TRUE(list_images(store_).empty());
}

TEST_F(Images, WithoutTheTools) {
  WithVariable path("PATH", "/nowhere");
  auto error = error_of("oci:" + made_ + "/oci:v1");
  EXPECT_EQ(error->code(), Code::kUnsupported);
  EXPECT_THAT(error->what(), HasSubstr("install skopeo and umoci"));
}

TEST_F(Images, ListRemovesWhatAKilledImportLeft) {
  make_directories(store_ + "/tmp/image-0123/layout");
  write_file(store_ + "/tmp/image-0123/layout/file", "");
  make_directories(store_ + "/tmp/other");
  Staging running(store_);
  EXPECT_TRUE(list_images(store_).empty());
  EXPECT_FALSE(exists(store_ + "/tmp/image-0123"));
  EXPECT_TRUE(exists(store_ + "/tmp/other"));  // not ours
  EXPECT_TRUE(exists(running.path()));
  // As a daemon that is killed leaves it to a tool that runs on.
  Fd inherited = running.lock().duplicate();
  EXPECT_TRUE(list_images(store_).empty());
  EXPECT_TRUE(exists(running.path()));
}

TEST_F(Images, RemoveTakesItAway) {
  std::string id = import("oci:" + made_ + "/oci:v1").id;
  remove_image(store_, id);
  EXPECT_TRUE(list_images(store_).empty());
  EXPECT_FALSE(exists(store_ + "/images/" + id));
  EXPECT_TRUE(nothing_left());
  for (const std::string& absent : {id, std::string("../tmp"), std::string()}) {
    try {
      remove_image(store_, absent);
      FAIL() << absent;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kNotFound);
    }
  }
}

TEST(References, RegistriesArePinnedByDigest) {
  std::string digest = "@sha256:" + sha256_hex("raw");
  auto pinned = [](const std::string& text) { return Reference::parse(text).pinned("raw").text(); };
  EXPECT_EQ(pinned("docker://nginx"), "docker://nginx" + digest);
  EXPECT_EQ(pinned("docker://nginx:1"), "docker://nginx" + digest);
  EXPECT_EQ(pinned("docker://host:5000/a/b:c"), "docker://host:5000/a/b" + digest);
  EXPECT_EQ(pinned("docker://host:5000/a/b"), "docker://host:5000/a/b" + digest);
  EXPECT_EQ(pinned("docker://a@sha256:00"), "docker://a@sha256:00");
  EXPECT_EQ(pinned("docker-daemon:a:b"), "docker-daemon:a:b");
}

// A registry of one image, for two platforms. The tag is gone once it was asked for, so only the
// digest leads on.
constexpr const char* kRegistry = R"py(
import hashlib, http.server, json, os, sys
blobs = {}
for name in os.listdir("oci/blobs/sha256"):
    blobs["sha256:" + name] = open("oci/blobs/sha256/" + name, "rb").read()
ours = json.load(open("oci/index.json"))["manifests"][0]
ours = {k: ours[k] for k in ("mediaType", "digest", "size")}
index = json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [
    dict(ours, digest="sha256:" + "0" * 64, platform={"os": "linux", "architecture": "pdp11"}),
    dict(ours, platform={"os": "linux", "architecture": sys.argv[1]})]}).encode()
blobs["sha256:" + hashlib.sha256(index).hexdigest()] = index
asked = 0
class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self): self.do_GET()
    def do_GET(self):
        global asked
        name = self.path.rsplit("/", 1)[1]
        body = b"{}" if self.path == "/v2/" else blobs.get(name)
        if self.path.endswith("/manifests/v1"):
            asked += 1
            body = index if asked == 1 else None
        self.send_response(200 if body is not None else 404)
        body = body or b""
        kind = "application/octet-stream"
        if "/manifests/" in self.path and body: kind = json.loads(body).get("mediaType", ours["mediaType"])
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET": self.wfile.write(body)
    def log_message(self, *a): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
)py";

TEST_F(Images, ImportFromARegistry) {
  auto [out_read, out_write] = Fd::pipe();
  Process registry = Process::spawn({"/usr/bin/python3", "-c", kRegistry, host_architecture()},
                                    {.directory = made_, .descriptors = {{out_write.get(), 1}}});
  out_write.reset();
  std::string port;
  for (char c; ::read(out_read.get(), &c, 1) == 1 && c != '\n';) port += c;
  std::string host = "127.0.0.1:" + port;
  make_directories(dir_ + "/.config/containers");
  write_file(dir_ + "/.config/containers/registries.conf",
             "[[registry]]\nlocation = \"" + host + "\"\ninsecure = true\n");
  WithVariable home("HOME", dir_);  // skopeo looks there for registries.conf
  Image image = import("docker://" + host + "/app:v1");
  EXPECT_EQ(read_file(image.rootfs + "/etc/new"), "new");
  EXPECT_EQ(image.id, json::parse(read_file(made_ + "/oci/index.json"))["manifests"][0]["digest"]
                          .get<std::string>()
                          .substr(7));
  auto error = error_of("docker://" + host + "/app:v1");
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), Code::kUnavailable);
  EXPECT_THAT(error->what(), HasSubstr("network"));
}

}  // namespace
}  // namespace thaw::image
