#include "api/workspace.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <sstream>

#include "util/error.h"

namespace thaw::api {
namespace {

[[noreturn]] void none(const char* what, const std::string& name) {
  throw Error(Code::kNotFound, std::string("find ") + what, name,
              "there is none of this name in the workspace", "see `thaw ls` and `thaw ps -a`");
}

[[noreturn]] void refuse(const std::string& what) {
  throw Error(Code::kDenied, "answer", what, "it is the machine's, and the token is a workspace's",
              "ask who runs the machine");
}

bool part_of_name(char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-'; }

void replace_name(std::string& text, const std::string& name, const std::string& with) {
  for (std::size_t at = 0; (at = text.find(name, at)) != std::string::npos;) {
    std::size_t end = at + name.size();
    bool whole = (at == 0 || !part_of_name(text[at - 1])) &&
                 (end == text.size() || !part_of_name(text[end]));
    if (whole) text.replace(at, name.size(), with);
    at += whole ? with.size() : 1;
  }
}

class Inside final : public Backend {
 public:
  Inside(Backend& all, const Token& token)
      : all_(all),
        prefix_(token.workspace + std::string(state::kWorkspaceMark)),
        folders_(token.folders) {}

  pods::DeployResult deploy(const state::PodSpec& given) override {
    state::PodSpec spec = given;
    spec.name = full(spec.name);
    for (std::string& link : spec.links) link = full(link);
    check_host(spec);
    return told([&] {
      pods::DeployResult result = all_.deploy(spec);
      local(result.pod);
      for (std::string& text : result.warnings) text = local_text(text);
      return result;
    });
  }
  std::vector<pods::PodView> pods() override {
    return mine(all_.pods(), [](auto& pod) { return pod.row.name; });
  }
  pods::PodView pod(const std::string& name) override {
    return of_pod(name, [&](const std::string& pod) { return all_.pod(pod); });
  }
  pods::PodView scale(const std::string& name, std::optional<int> replicas,
                      std::int64_t wait_us) override {
    return of_pod(name, [&](const std::string& pod) { return all_.scale(pod, replicas, wait_us); });
  }
  void stop(const std::string& name) override {
    require_pod(name);
    told([&] { all_.stop(full(name)); });
  }
  void remove(const std::string& name, bool force) override {
    require_pod(name);
    told([&] { all_.remove(full(name), force); });
  }
  pods::PodView retry_checkpoint(const std::string& name) override {
    return of_pod(name, [&](const std::string& pod) { return all_.retry_checkpoint(pod); });
  }
  state::CheckpointRow create_checkpoint(const std::string& name) override {
    require_pod(name);
    return told([&] {
      state::CheckpointRow row = all_.create_checkpoint(full(name));
      local(row);
      return row;
    });
  }

  std::vector<state::ReplicaRow> replicas(const std::string& pod, bool all) override {
    return mine(all_.replicas(pod.empty() ? "" : full(pod), all),
                [](auto& row) { return row.pod; });
  }
  state::ReplicaRow replica(const std::string& text) override {
    state::ReplicaRow row = find_replica(text);
    local(row);
    return row;
  }
  void stop_replica(const std::string& text) override {
    std::string id = find_replica(text).id;
    told([&] { all_.stop_replica(id); });
  }
  std::string log_path(const std::string& text) override {
    return all_.log_path(find_replica(text).id);
  }
  pods::ExecStream exec(const std::string& text, const std::vector<std::string>& argv,
                        bool terminal, int rows, int columns) override {
    std::string id = find_replica(text).id;
    return told([&] { return all_.exec(id, argv, terminal, rows, columns); });
  }

  std::vector<state::CheckpointRow> checkpoints(const std::string& pod) override {
    return mine(all_.checkpoints(pod.empty() ? "" : full(pod)), [](auto& row) { return row.pod; });
  }
  state::CheckpointRow checkpoint(const std::string& text) override {
    return by_id(checkpoints(""), text, "checkpoint");
  }
  nlohmann::json inspect_checkpoint(const std::string& text) override {
    nlohmann::json manifest = all_.inspect_checkpoint(checkpoint(text).id);
    if (manifest.contains("pod")) manifest["pod"] = local_text(manifest["pod"]);
    return manifest;
  }
  state::CheckpointRow verify_checkpoint(const std::string& text) override {
    std::string id = checkpoint(text).id;
    return told([&] {
      state::CheckpointRow row = all_.verify_checkpoint(id);
      local(row);
      return row;
    });
  }
  state::CheckpointRow compress_checkpoint(const std::string& text) override {
    std::string id = checkpoint(text).id;
    return told([&] {
      state::CheckpointRow row = all_.compress_checkpoint(id);
      local(row);
      return row;
    });
  }
  void remove_checkpoint(const std::string& text) override {
    std::string id = checkpoint(text).id;
    told([&] { all_.remove_checkpoint(id); });
  }

  // Images are the machine's. Of those a workspace sees what its pods run.
  std::vector<state::ImageRow> images() override {
    std::set<std::string> used;
    for (const auto& pod : pods()) used.insert(pod.spec.image);
    std::vector<state::ImageRow> rows = all_.images();
    std::erase_if(rows, [&](const auto& row) { return !used.count(row.reference); });
    return rows;
  }
  state::ImageRow import_image(const std::string& reference,
                               const std::function<void(const std::string&)>&) override {
    refuse("import of " + reference);
  }
  void remove_image(const std::string& id) override { refuse("removal of image " + id); }
  // Its secrets are W--NAME, as its pods are.
  bool put_secret(const std::string& name, std::string_view value) override {
    return told([&] { return all_.put_secret(full(name), value); });
  }
  std::vector<pods::SecretRow> secrets() override {
    std::vector<pods::SecretRow> rows = all_.secrets();
    std::erase_if(rows, [&](const auto& row) { return !is_mine(row.name); });
    for (auto& row : rows) local_name(row.name);
    return rows;
  }
  void remove_secret(const std::string& name) override {
    told([&] { all_.remove_secret(full(name)); });
  }
  std::vector<pods::CheckResult> doctor() override { refuse("doctor"); }
  Tokens& tokens() override { refuse("tokens"); }
  // Only the samples of its pods.
  std::string metrics() override {
    std::istringstream lines(all_.metrics());
    std::string found, label = "{pod=\"" + prefix_, comments, family;
    for (std::string line; std::getline(lines, line);) {
      if (line.starts_with("#")) {
        std::string name = line.substr(7, line.find(' ', 7) - 7);
        if (name != std::exchange(family, name)) comments.clear();
        comments += line + "\n";
      } else if (auto at = line.find(label); at != std::string::npos) {
        line.erase(at + 6, prefix_.size());
        found += std::exchange(comments, "") + line + "\n";
      }
    }
    return found;
  }

  std::vector<state::EventRow> events(std::int64_t after, int limit,
                                      const std::string& pod) override {
    constexpr int kPage = 1000;
    std::vector<state::EventRow> found;
    for (;;) {
      auto rows = all_.events(after, kPage, pod.empty() ? "" : full(pod));
      bool last = rows.size() < kPage;
      if (!rows.empty()) after = rows.back().id;
      for (auto& row : mine(std::move(rows), [](auto& event) { return event.pod; })) {
        if (static_cast<int>(found.size()) == limit) return found;
        found.push_back(std::move(row));
      }
      if (last) return found;
    }
  }
  std::int64_t last_event_id() override { return all_.last_event_id(); }
  bool wait_events(std::int64_t after, std::int64_t timeout_us) override {
    return all_.wait_events(after, timeout_us);
  }

 private:
  std::string full(const std::string& name) const { return prefix_ + name; }
  bool is_mine(const std::string& pod) const { return pod.starts_with(prefix_); }

  // Texts name pods in words: ours by their short names, others not at all.
  std::string local_text(std::string text) {
    std::vector<std::string> names;
    for (const auto& pod : all_.pods()) names.push_back(pod.row.name);
    for (const std::string& name : names)
      if (!is_mine(name)) replace_name(text, name, "(another pod)");
    for (std::size_t at; (at = text.find(prefix_)) != std::string::npos;)
      text.erase(at, prefix_.size());
    return text;
  }
  void local_name(std::string& name) const {
    if (is_mine(name)) name.erase(0, prefix_.size());
  }
  void local(pods::PodView& pod) {
    local_name(pod.row.name);
    local_name(pod.spec.name);
    for (std::string& link : pod.spec.links) local_name(link);
    for (auto& secret : pod.spec.secrets) local_name(secret.secret);
  }
  void local(state::ReplicaRow& row) { local_name(row.pod); }
  void local(state::CheckpointRow& row) { local_name(row.pod); }
  void local(state::EventRow& row) {
    local_name(row.pod);
    for (std::size_t at; (at = row.message.find(prefix_)) != std::string::npos;)
      row.message.erase(at, prefix_.size());
  }

  template <typename Row, typename Pod>
  std::vector<Row> mine(std::vector<Row> rows, Pod pod_of) {
    std::erase_if(rows, [&](const Row& row) { return !is_mine(pod_of(row)); });
    for (Row& row : rows) local(row);
    return rows;
  }

  template <typename Work>
  std::invoke_result_t<Work> told(Work work) {
    try {
      return work();
    } catch (const Error& error) {
      throw Error(error.code(), error.action(), local_text(error.object()),
                  local_text(error.cause()), local_text(error.remedy()));
    }
  }

  void require_pod(const std::string& name) {
    auto rows = all_.pods();
    if (std::none_of(rows.begin(), rows.end(),
                     [&](const auto& pod) { return pod.row.name == full(name); }))
      none("pod", name);
  }
  template <typename Work>
  pods::PodView of_pod(const std::string& name, Work work) {
    require_pod(name);
    return told([&] {
      pods::PodView view = work(full(name));
      local(view);
      return view;
    });
  }

  template <typename Row>
  Row by_id(const std::vector<Row>& rows, const std::string& text, const char* what) {
    const Row* found = nullptr;
    for (const Row& row : rows) {
      if (row.id == text) return row;
      if (text.empty() || !row.id.starts_with(text)) continue;
      if (found)
        throw Error(Code::kInvalid, std::string("find ") + what, text, "more than one begins so",
                    "give more of its id");
      found = &row;
    }
    if (!found) none(what, text);
    return *found;
  }
  // As the controller does, of ours alone: a pod's name means its newest running one.
  state::ReplicaRow find_replica(const std::string& text) {
    for (const auto& pod : all_.pods())
      if (pod.row.name == full(text)) return all_.replica(pod.row.name);
    auto rows = all_.replicas("", true);
    std::erase_if(rows, [&](const auto& row) { return !is_mine(row.pod); });
    return by_id(rows, text, "replica");
  }

  // Of the host's files a workspace gets what lies in its folders, and only to read: what it cannot
  // change cannot be made to lead elsewhere after it was looked at.
  std::string allowed(const std::string& path, const std::string& what) {
    std::error_code error;
    std::string real = std::filesystem::canonical(path, error);
    for (const std::string& folder : folders_)
      if (!error && (real == folder || real.starts_with(folder + "/"))) return real;
    throw Error(Code::kDenied, "use " + what, path,
                folders_.empty()
                    ? "this token may use no files of the host"
                    : "it is in none of the folders of the host that this token may use",
                "ask who runs the machine for a token with --folder");
  }
  void check_host(state::PodSpec& spec) {
    if (!spec.rootfs.empty()) spec.rootfs = allowed(spec.rootfs, "rootfs");
    for (auto& secret : spec.secrets)
      if (secret.secret.empty())
        secret.file = allowed(secret.file, "secret");
      else
        secret.secret = full(secret.secret);
    for (auto& mount : spec.mounts) {
      if (!mount.readonly)
        throw Error(Code::kDenied, "mount", mount.source,
                    "a token of a workspace mounts the host's files to read only",
                    "write `readonly: true`");
      mount.source = allowed(mount.source, "mount");
    }
    if (spec.image.empty() || spec.image.starts_with("docker://")) return;
    std::size_t colon = spec.image.find(':');
    std::string transport = spec.image.substr(0, colon), rest = spec.image.substr(colon + 1);
    std::string path = transport == "dir" ? rest : rest.substr(0, rest.find(':'));
    for (const char* known : {"oci", "oci-archive", "docker-archive", "dir"})
      if (transport == known) {
        spec.image = transport + ":" + allowed(path, "image") + rest.substr(path.size());
        return;
      }
    throw Error(Code::kDenied, "use image", spec.image,
                "a token of a workspace takes images from registries, or from its folders",
                "write docker://…");
  }

  Backend& all_;
  std::string prefix_;
  std::vector<std::string> folders_;
};

}  // namespace

std::unique_ptr<Backend> inside_workspace(Backend& backend, const Token& token) {
  return std::make_unique<Inside>(backend, token);
}

}  // namespace thaw::api
