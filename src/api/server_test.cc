#include "api/server.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <csignal>
#include <future>

#include "api/client.h"
#include "api/frames.h"
#include "api/memory_backend.h"
#include "api/unreachable.h"
#include "util/sealed.h"
#include "util/source_dir.h"
#include "util/version.h"

namespace thaw::api {
namespace {

using nlohmann::json;

const std::string kJson = "Content-Type: application/json\r\n";

TEST(Server, RefusesBadRequestsWithAStatusAndAWholeSentence) {
  TestServer server;
  struct Case {
    int status;
    std::string method, target, body, headers, says;
  } cases[] = {
      {404, "GET", "/", "", "", "nothing at this path"},
      {404, "GET", "/v1/nothing", "", "", "openapi.yaml"},
      {404, "GET", "/v1/pods/nobody", "", "", "existing: web"},
      {404, "GET", "/v1/replicas?pod=nobody", "", "", "existing: web"},
      {405, "PUT", "/v1/pods", "", "", "use POST, GET"},
      {405, "GET", "/v1/pods/web/scale", "", "", "use POST"},
      {400, "GET", "/v1/pods?colour=red", "", "", "the query key 'colour' is unknown"},
      {400, "GET", "/v1/replicas?all=perhaps", "", "", "neither true nor false"},
      {400, "GET", "/v1/replicas?all=1&all=0", "", "", "given twice"},
      {400, "GET", "/v1/pods/%zz", "", "", "percent"},
      {400, "GET", "/v1/pods/%4", "", "", "percent"},
      {400, "GET", "/v1/pods/a%00b", "", "", "percent"},
      {400, "GET", "/v1/events?after=-1", "", "", "whole number from 0"},
      {400, "GET", "/v1/events", "", "Last-Event-ID: x\r\n", "no event's id"},
      {400, "GET", "/v1/replicas/web/logs?since=yesterday", "", "",
       "neither a time nor a duration"},
      {400, "GET", "/v1/replicas/web/logs?tail=-3", "", "", "whole number"},
      {415, "POST", "/v1/pods", "{}", "", "no Content-Type"},
      {415, "POST", "/v1/pods", "<a/>", "Content-Type: text/xml\r\n", "application/yaml"},
      {415, "POST", "/v1/pods/web/scale", "replicas: 1", "Content-Type: application/yaml\r\n",
       "send application/json"},
      {400, "POST", "/v1/pods/web/scale", "{", kJson, "JSON object"},
      {400, "POST", "/v1/pods/web/scale", "[]", kJson, "not an object"},
      {400, "POST", "/v1/pods/web/scale", "{}", kJson, "missing"},
      {400, "POST", "/v1/pods/web/scale", "{\"replicas\":1.5}", kJson, "1.5"},
      {400, "POST", "/v1/pods/web/scale", "{\"replicas\":-1}", kJson, "-1"},
      {400, "POST", "/v1/pods/web/scale", "{\"replicas\":\"2\"}", kJson, "whole number"},
      {400, "POST", "/v1/pods/web/scale", "{\"replicas\":1,\"x\":1}", kJson, "'x' is unknown"},
      {400, "POST", "/v1/pods/web/scale", "{\"replicas\":1,\"wait\":\"soon\"}", kJson, "duration"},
      {400, "POST", "/v1/pods/web/stop", "{\"now\":true}", kJson, "send no body"},
      {409, "DELETE", "/v1/pods/web", "", "", "use force"},
      {400, "POST", "/v1/images", "{}", kJson, "docker://"},
      {400, "POST", "/v1/images", "{\"reference\":\"bad\"}", kJson, "no transport"},
      {400, "POST", "/v1/replicas/web/exec", "{\"argv\":[]}", kJson, "argv"},
      {400, "POST", "/v1/replicas/web/exec", "{\"argv\":[1]}", kJson, "argv"},
      {426, "POST", "/v1/replicas/web/exec", "{\"argv\":[\"ls\"]}", kJson, "Upgrade: thaw-exec"},
      {404, "POST", "/v1/replicas/nobody/exec", "{\"argv\":[\"ls\"]}",
       kJson + "Upgrade: thaw-exec\r\n", "thaw ps -a"},
      {400, "POST", "/v1/pods", "{\"name\": 7", kJson, "request body"},
  };
  for (auto& one : cases) {
    SCOPED_TRACE(one.method + " " + one.target + " " + one.body);
    std::string answer = server.ask(one.method, one.target, one.body, one.headers);
    EXPECT_EQ(status_of(answer), one.status) << answer;
    json error = body_of(answer)["error"];
    EXPECT_NE(error["message"].get<std::string>().find(one.says), std::string::npos) << error;
    for (auto key : {"code", "action", "object", "cause", "remedy"}) {
      EXPECT_TRUE(error.contains(key)) << key;
    }
  }
  EXPECT_TRUE(server.backend.deployed.empty());
  EXPECT_EQ(server.backend.scaled_to, -1);
  EXPECT_NE(server.ask("PUT", "/v1/pods").find("Allow: POST, GET\r\n"), std::string::npos);
}

TEST(Server, RefusesWhatIsNoHttpOrTooBig) {
  TestServer server;
  EXPECT_EQ(status_of(server.raw("hello there\r\n\r\n")), 400);
  EXPECT_EQ(status_of(server.raw("GET / HTTP/1.1\r\nA: " + std::string(20'000, 'a') + "\r\n\r\n")),
            431);
  std::string big(1'200'000, ' ');
  EXPECT_EQ(status_of(server.ask("POST", "/v1/pods", big, kJson)), 413);
  EXPECT_EQ(status_of(server.raw("POST /v1/pods HTTP/1.1\r\nHost: x\r\n" + kJson +
                                 "Content-Length: 99999999999\r\n\r\n")),
            413);
  // Whoever shows it to the client goes down as many levels as it has.
  std::string deep = std::string(200'000, '[') + std::string(200'000, ']');
  EXPECT_EQ(status_of(server.ask("POST", "/v1/pods/web/scale", "{\"wait\": " + deep + "}", kJson)),
            400);
}

TEST(Server, NormalisesPaths) {
  TestServer server;
  for (auto target : {"/v1/pods/web", "//v1///pods/web/", "/v1/./pods/web", "/v1/x/../pods/web",
                      "/../v1/pods/%77eb", "/v1/x/%2e%2e/pods/web", "/v1/pods/web#top"}) {
    EXPECT_EQ(status_of(server.ask("GET", target)), 200) << target;
  }
  // An encoded slash belongs to the name.
  server.client->remove("/v1/images/" + encode("oci:/srv/images/python:3.12"));
  EXPECT_EQ(server.backend.removed_image, "oci:/srv/images/python:3.12");
}

TEST(Server, AnswersSeveralRequestsOnOneConnection) {
  TestServer server;
  std::string one = "GET /v1/version HTTP/1.1\r\nHost: localhost\r\n\r\n";
  std::string last = "GET /v1/nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
  std::string answers = server.raw(one + one + last);
  std::size_t count = 0, at = 0;
  while ((at = answers.find("HTTP/1.1 ", at)) != std::string::npos) ++count, ++at;
  EXPECT_EQ(count, 3u) << answers;
}

TEST(Server, KeepsSecretsAndShowsNone) {
  TestServer server;
  std::string value("\0\xffhunter2\n", 10);
  EXPECT_EQ(server.client->put("/v1/secrets/key", value)["created"], true);
  EXPECT_EQ(server.client->put("/v1/secrets/key", value)["created"], false);
  EXPECT_EQ(SealKey::read(server.directory + "/secrets.key")
                .unseal("key", read_file(server.directory + "/sealed/key")),
            value);
  EXPECT_EQ(server.client->get("/v1/secrets")[0]["name"], "key");
  EXPECT_EQ(server.ask("GET", "/v1/secrets").find("hunter2"), std::string::npos);
  for (const char* wrong : {"/v1/secrets/.x", "/v1/secrets/a%2fb", "/v1/secrets/x"})
    EXPECT_EQ(status_of(server.ask("PUT", wrong, wrong[12] == 'x' ? "" : "y")), 400) << wrong;
  EXPECT_EQ(status_of(server.ask("GET", "/v1/secrets/key")), 405);
  server.client->remove("/v1/secrets/key");
  EXPECT_EQ(status_of(server.ask("DELETE", "/v1/secrets/key")), 404);
}

TEST(Server, TakesASpecificationAsJsonOrYaml) {
  TestServer server;
  EXPECT_EQ(status_of(server.ask("POST", "/v1/pods", "name: a\nrootfs: /srv\ncommand: [x]\n",
                                 "Content-Type: application/yaml; charset=utf-8\r\n")),
            201);
  EXPECT_EQ(status_of(server.ask("POST", "/v1/pods?dry_run=true",
                                 R"({"name":"b","rootfs":"/srv","command":["x"]})", kJson)),
            200);
  ASSERT_EQ(server.backend.deployed.size(), 1u);
  EXPECT_EQ(server.backend.deployed[0].name, "a");
}

TEST(Server, PassesScaleAndWaitOn) {
  TestServer server;
  server.client->post("/v1/pods/web/scale", {{"replicas", 3}, {"wait", "1m30s"}});
  EXPECT_EQ(server.backend.scaled_to, 3);
  EXPECT_EQ(server.backend.waited_us, 90'000'000);
}

TEST(Server, StreamsImportsLineByLine) {
  TestServer server;
  std::vector<json> lines;
  auto import = [&](const std::string& reference) {
    lines.clear();
    server.client->stream("POST", "/v1/images", {{"reference", reference}},
                          [&](std::string_view line) {
                            lines.push_back(json::parse(line));
                            return true;
                          });
  };
  import("oci:/fine");
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[1]["progress"], "two");
  EXPECT_TRUE(lines[2].contains("image"));
  import("oci:/breaks");
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[1]["error"]["code"], "corrupt");
  EXPECT_THROW(import("bad"), Error);
}

TEST(Server, FollowsEventsFromWhereTheClientLeft) {
  TestServer server;
  std::vector<std::int64_t> ids;
  server.backend.add_event("replica.state", "web");  // 3
  server.client->events("/v1/events?follow=true&after=1&pod=web", [&](const json& event) {
    ids.push_back(event["id"]);
    return false;
  });
  EXPECT_EQ(ids, std::vector<std::int64_t>{3});

  Fd fd = server.connect();
  write_all(fd, "GET /v1/events?follow=1 HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: 2\r\n\r\n");
  std::string text;
  char block[4096];
  while (text.find("id: 4\n") == std::string::npos) {
    ssize_t count = ::recv(fd.get(), block, sizeof block, 0);
    ASSERT_GT(count, 0) << text;
    text.append(block, static_cast<std::size_t>(count));
    if (text.find("id: 3\n") != std::string::npos && server.backend.last_event_id() == 3) {
      server.backend.add_event("replica.state", "other");
    }
  }
  EXPECT_NE(text.find("Content-Type: text/event-stream"), std::string::npos);
  EXPECT_EQ(text.find("id: 2\n"), std::string::npos);
}

TEST(Server, DoesNotSpinWhileOnlyOtherPodsHaveEvents) {
  TestServer server;
  auto follower = std::async(std::launch::async, [&] {
    Client client(server.server->addresses()[0]);
    std::string last;
    client.events("/v1/events?follow=true&pod=web&after=1", [&](const json& event) {
      last = event["type"];
      return false;
    });
    return last;
  });
  for (int count = 0; count < 50; ++count) server.backend.add_event("noise", "other");
  server.backend.add_event("wanted", "web");
  EXPECT_EQ(follower.get(), "wanted");
  EXPECT_LE(server.backend.waits, 60);
}

TEST(Server, ReadsAndFollowsLogs) {
  TestServer server;
  std::string path = server.backend.log_file();
  write_file_atomic(path + ".1", "2026-01-01T00:00:00Z stdout F zero\n");
  write_file_atomic(path,
                    "2026-01-01T00:00:01.5Z stdout F one\n"
                    "2026-01-01T00:00:02Z stderr P tw\n2026-01-01T00:00:02Z stderr F o\n"
                    "damaged\n2026-01-01T00:00:03Z stdout F \xff three\n");
  auto texts = [&](const std::string& query) {
    std::string all;
    server.client->stream("GET", "/v1/replicas/web/logs" + query, nullptr,
                          [&](std::string_view line) {
                            all += json::parse(line)["text"].get<std::string>() + "|";
                            return true;
                          });
    return all;
  };
  EXPECT_EQ(texts(""), "zero|one|tw|o|\xef\xbf\xbd three|");
  EXPECT_EQ(texts("?tail=2"), "tw|o|\xef\xbf\xbd three|");
  EXPECT_EQ(texts("?tail=0"), "");
  EXPECT_EQ(texts("?since=2026-01-01T01:00:02%2B01:00"), "tw|o|\xef\xbf\xbd three|");

  std::string all;
  server.client->events("/v1/replicas/web/logs?follow=true&tail=1", [&](const json& entry) {
    std::string text = entry["text"];
    all += text + "|";
    if (text.ends_with("three")) {
      Fd log = Fd::open(path, O_WRONLY | O_APPEND);
      write_all(log, "2026-01-01T00:00:04Z stdout F four\n");
    } else if (text ==
               "four") {  // written to the old file after it was rotated away, then to the new one
      Fd log = Fd::open(path, O_WRONLY | O_APPEND);
      std::filesystem::rename(path, path + ".1");
      write_all(log, "2026-01-01T00:00:05Z stdout F five\n");
      write_file_atomic(path, "2026-01-01T00:00:06Z stdout F six\n");
    } else if (text == "six") {
      Fd log = Fd::open(path, O_WRONLY | O_APPEND);
      write_all(log, "2026-01-01T00:00:07Z stdout F seven\n");
      server.backend.end_replica();
    }
    return true;
  });  // returns by itself: the replica has ended
  EXPECT_EQ(all, "\xef\xbf\xbd three|four|five|six|seven|");
}

// Collects an exec session's frames until its last one.
struct ExecResult {
  std::string out, err;
  json end;
  bool failed = false;
};

ExecResult collect(ExecConnection& connection) {
  ExecResult result;
  FrameReader reader;
  reader.append(connection.received);
  for (;;) {
    while (auto frame = reader.next()) {
      if (frame->type == FrameType::kStdout) result.out += frame->payload;
      if (frame->type == FrameType::kStderr) result.err += frame->payload;
      if (frame->type == FrameType::kExit || frame->type == FrameType::kError) {
        result.end = json::parse(frame->payload);
        result.failed = frame->type == FrameType::kError;
        return result;
      }
    }
    char block[65536];
    ssize_t count = ::recv(connection.socket.get(), block, sizeof block, 0);
    if (count <= 0) {
      ADD_FAILURE() << "the session ended without a last frame";
      return result;
    }
    reader.append(std::string_view(block, static_cast<std::size_t>(count)));
  }
}

TEST(Exec, CarriesInputOutputAndExitCode) {
  TestServer server;
  auto connection = server.client->exec({"web", {"sh", "-c", "cat; echo oops >&2; exit 7"}});
  std::string big(3'000'000, 'x');  // more than any buffer on the way
  auto writer = std::async(std::launch::async, [&] {
    for (std::size_t at = 0; at < big.size(); at += 100'000) {
      write_all(connection.socket, encode_frame(FrameType::kStdin, big.substr(at, 100'000)));
    }
    write_all(connection.socket, encode_frame(FrameType::kStdinEof, ""));
  });
  auto result = collect(connection);
  writer.get();
  EXPECT_EQ(result.out.size(), big.size());
  EXPECT_EQ(result.err, "oops\n");
  EXPECT_EQ(result.end, (json{{"exit_code", 7}, {"signal", nullptr}}));
}

TEST(Exec, DeliversSignals) {
  TestServer server;
  auto connection = server.client->exec({"web", {"sleep", "1000"}});
  write_all(connection.socket, encode_frame(FrameType::kSignal, R"({"signal": 15})"));
  EXPECT_EQ(collect(connection).end, (json{{"exit_code", 143}, {"signal", 15}}));
}

TEST(Exec, EndsWhenAChildKeepsTheOutputOpen) {
  TestServer server;
  auto connection = server.client->exec({"web", {"sh", "-c", "sleep 1000 & echo $!"}});
  auto result = collect(connection);
  EXPECT_EQ(result.end["exit_code"], 0);
  ::kill(std::stoi(result.out), SIGKILL);
}

TEST(Exec, EndsTheProcessWhenTheClientGoes) {
  TestServer server;
  auto connection = server.client->exec({"web", {"sleep", "1000"}});
  Fd process = Fd::pidfd(server.backend.exec_pid);
  connection.socket.reset();
  EXPECT_TRUE(wait_readable(process.get(), Deadline::after_ms(10'000)));
}

TEST(Exec, RefusesNonsenseOnTheStream) {
  TestServer server;
  for (const std::string& frame :
       {std::string("\x63\0\0\0\0", 5), std::string("\1\x7f\0\0\0", 5),
        encode_frame(FrameType::kExit, "{}"), encode_frame(FrameType::kSignal, "[]")}) {
    auto connection = server.client->exec({"web", {"sleep", "1000"}});
    write_all(connection.socket, frame);
    auto result = collect(connection);
    EXPECT_TRUE(result.failed);
    EXPECT_EQ(result.end["error"]["code"], "invalid");
  }
}

TEST(Server, RefusesConnectionsAboveTheLimit) {
  TestServer server(1);
  Fd first = server.connect();
  write_all(first, "GET /v1/version HTTP/1.1\r\nHost: localhost\r\n\r\n");
  char byte;
  ASSERT_EQ(::recv(first.get(), &byte, 1, 0), 1);  // served, and kept open
  std::string answer = server.raw("");
  EXPECT_EQ(status_of(answer), 503) << answer;
  EXPECT_NE(answer.find("limit"), std::string::npos);
}

TEST(Server, OneAddressDoesNotShutOutAnother) {
  TestServer server(2);
  std::vector<Fd> silent;
  for (int i = 0; i < 4; ++i) silent.push_back(server.connect(1));
  std::string request = "GET /v1/version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
  EXPECT_EQ(status_of(server.raw("", 1)), 503);
  EXPECT_EQ(status_of(server.raw(request)), 200);
}

TEST(Server, KeepsWebPagesOutOfTheTcpPort) {
  TestServer server;
  auto ask = [&](const std::string& headers) {
    return status_of(
        server.raw("GET /v1/version HTTP/1.1\r\nConnection: close\r\n" + headers + "\r\n", 1));
  };
  std::string port = std::to_string(server.server->addresses()[1].port);
  EXPECT_EQ(ask("Host: 127.0.0.1:" + port + "\r\n"), 200);
  EXPECT_EQ(ask("Host: localhost\r\n"), 200);
  EXPECT_EQ(ask("Host: evil.example:" + port + "\r\n"), 403);
  EXPECT_EQ(ask("Host: 127.0.0.1\r\nOrigin: https://evil.example\r\n"), 403);
  Client client(server.server->addresses()[1]);
  EXPECT_EQ(client.get("/v1/version")["version"], kVersion);
}

TEST(Server, StopEndsStreamsAndIdleConnections) {
  TestServer server;
  Fd idle = server.connect(), stream = server.connect();
  write_all(stream, "GET /v1/events?follow=1 HTTP/1.1\r\nHost: localhost\r\n\r\n");
  char byte;
  ASSERT_EQ(::recv(stream.get(), &byte, 1, 0), 1);
  server.server->stop();
  EXPECT_NO_THROW(read_all(idle));
  EXPECT_NO_THROW(read_all(stream));
  EXPECT_FALSE(exists(server.directory + "/thaw.sock"));
}

TEST(Listen, SocketFileIsForRootAndItsGroup) {
  TestServer server;
  struct stat info;
  ASSERT_EQ(::stat((server.directory + "/thaw.sock").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0660u);
  EXPECT_EQ(info.st_uid, 0u);
}

TEST(Listen, ReplacesAStaleSocketAndRespectsALivingOne) {
  TestServer server;
  Address address = server.server->addresses()[0];
  try {
    listen_on(address);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kConflict);
    EXPECT_THAT(error.what(), testing::HasSubstr("another daemon answers there"));
  }
  Address stale = parse_address("unix:" + server.directory + "/stale.sock", "test");
  listen_on(stale).reset();
  EXPECT_TRUE(listen_on(stale));
  Address file = parse_address("unix:" + server.directory + "/file", "test");
  write_file_atomic(file.path, "mine");
  EXPECT_THROW(listen_on(file), Error);
  EXPECT_EQ(read_file(file.path), "mine");
}

TEST(Listen, RefusesAddressesThatOthersCanReach) {
  for (auto text : {"tcp:0.0.0.0:0", "tcp:[::]:0", "tcp:192.0.2.1:0"}) {
    Address address = parse_address(text, "test");
    try {
      listen_on(address);
      FAIL() << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kInvalid);
      EXPECT_THAT(error.what(), testing::HasSubstr("without TLS"));
    }
  }
}

TEST(Addresses, AreReadInAllForms) {
  for (auto text : {"unix:/run/x.sock", "unix:///run/x.sock", "/run/x.sock"}) {
    EXPECT_EQ(parse_address(text, "test").text(), "unix:/run/x.sock");
  }
  EXPECT_EQ(parse_address("tcp://localhost:70", "test").text(), "tcp:localhost:70");
  EXPECT_EQ(parse_address("tcp:[::1]:70", "test").text(), "tcp:[::1]:70");
  for (auto text : {"", "http://x", "unix:", "unix:x.sock", "tcp:", "tcp:host", "tcp::70",
                    "tcp:host:99999", "tcp:host:7x", "tcp:host:"}) {
    EXPECT_THROW(parse_address(text, "--host"), Error) << text;
  }
}

TEST(Client, TellsHowToStartADaemon) {
  Client client(parse_address("unix:/nowhere/thaw.sock", "test"));
  try {
    client.get("/v1/version");
    FAIL();
  } catch (const Unreachable& error) {
    EXPECT_STREQ(
        error.what(),
        "cannot reach the thaw daemon at 'unix:/nowhere/thaw.sock': no such file; start it "
        "with `thaw daemon` (as root), or `systemctl start thaw`, or point "
        "--host/THAW_HOST at a running one");
  }
}

TEST(Client, PassesTheDaemonsErrorOn) {
  TestServer server;
  try {
    server.client->get("/v1/pods/nobody");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kNotFound);
    EXPECT_STREQ(error.what(),
                 "cannot find pod 'nobody': there is none of this name; existing: web");
  }
}

TEST(Version, IsTheBuildSystems) {
  std::string text = read_file(THAW_SOURCE_DIR "/CMakeLists.txt");
  EXPECT_THAT(text, testing::HasSubstr("project(thaw VERSION " + std::string(kVersion) + " "));
}

}  // namespace
}  // namespace thaw::api
