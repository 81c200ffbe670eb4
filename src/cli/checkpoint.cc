#include "cli/command.h"
#include "cli/listing.h"
#include "cli/progress.h"
#include "util/clock.h"
#include "util/file.h"

namespace thaw::cli {
namespace {

struct Options {
  Listing listing;
  bool json = false, all = false;
  std::string pod, id;
  std::vector<std::string> ids;
};

int list(Context& context, const Options& options) {
  auto checkpoints =
      context.client().get(api::with_query("/v1/checkpoints", {{"pod", options.pod}}));
  return show_listing(context, options.listing, checkpoints, "id", [&] {
    Table table({"CHECKPOINT", "POD", "STATUS", "SIZE", "MEMORY", "ON DISK", "FREEZE", "DUMP",
                 "RESTORES", "AGE", "REASON"});
    std::int64_t now = wall_us();
    // When the next dump is tried stands with the newest that failed.
    std::map<std::string, std::int64_t> next_try;
    for (auto& pod : context.client().get("/v1/pods"))
      if (const auto& backoff = pod.at("checkpoint").at("backoff"); !backoff.is_null())
        next_try[pod.at("name")] = backoff.at("until_us");
    for (auto& row : checkpoints) {
      std::string reason = text_of(row.at("reason"), "");
      if (auto next = next_try.extract(row.at("pod").get<std::string>());
          next && next.mapped() > now)
        reason += fmt::format("{}the next dump is tried in {}", reason.empty() ? "" : "; ",
                              span(next.mapped() - now));
      table.add(
          {row.at("id"), row.at("pod"), row.at("status"), format_bytes(row.at("bytes")),
           format_bytes(row.at("memory_bytes")),
           format_bytes(row.at("stored_bytes")) + (row.at("compressed").get<bool>() ? " zstd" : ""),
           span(row.at("freeze_us")), span(row.at("dump_us")), row.at("restores").dump(),
           age(row.at("created_us"), now), std::move(reason)});
    }
    return table;
  });
}

int create(Context& context, const Options& options) {
  auto client = context.client();
  nlohmann::json checkpoint;
  {
    EventProgress progress(context, options.pod, context.progress() ? newest_event(client) : 0);
    checkpoint = client.post("/v1/pods/" + api::encode(options.pod) + "/checkpoint");
  }
  if (options.json) {
    print_json(checkpoint);
  } else {
    print_line(checkpoint.at("id").get<std::string>());
  }
  return kOk;
}

int remove(Context& context, const Options& options) {
  auto client = context.client();
  int result = kOk;
  for (auto& id : options.ids) {
    try {
      client.remove("/v1/checkpoints/" + api::encode(id));
      print_line(id);
    } catch (const Error& error) {
      print_error("thaw: " + std::string(error.what()));
      if (result == kOk) result = exit_code_of(error);
    }
  }
  return result;
}

int compress(Context& context, const Options& options) {
  auto client = context.client();
  int result = kOk;
  for (auto& id : options.ids) {
    try {
      auto row = client.post("/v1/checkpoints/" + api::encode(id) + "/compress");
      print_line(fmt::format("{} {}", id, format_bytes(row.at("stored_bytes"))));
    } catch (const Error& error) {
      print_error("thaw: " + std::string(error.what()));
      if (result == kOk) result = exit_code_of(error);
    }
  }
  return result;
}

int verify(Context& context, const Options& options) {
  auto client = context.client();
  std::vector<std::string> ids = options.ids;
  if (options.all)
    for (auto& row : client.get("/v1/checkpoints"))
      if (row.at("status") == "available") ids.push_back(row.at("id"));
  if (ids.empty() && !options.all)
    throw Error(Code::kInvalid, "verify", "checkpoints", "none is named", "give ids, or --all");
  int result = kOk;
  for (auto& id : ids) {
    try {
      client.post("/v1/checkpoints/" + api::encode(id) + "/verify");
      print_line(id);
    } catch (const Error& error) {
      print_error("thaw: " + std::string(error.what()));
      if (result == kOk) result = exit_code_of(error);
    }
  }
  return result;
}

}  // namespace

Command checkpoint_command() {
  auto options = std::make_shared<Options>();
  Command ls{"ls", "List checkpoints, newest first", ""};
  ls.options = listing_options(options->listing, "ids");
  ls.options.push_back({"--pod", "NAME", &options->pod, "Only of this pod", "@pod"});
  ls.run = [options](Context& context) { return list(context, *options); };

  Command create_command{"create", "Checkpoint a ready replica of a pod now",
                         "The replica serves on; its traffic is held while it is frozen."};
  create_command.options = {{"--json", "", &options->json, "Print the checkpoint as JSON"}};
  create_command.positionals = {{"POD", &options->pod, "The pod", true, "@pod"}};
  create_command.run = [options](Context& context) { return create(context, *options); };

  Command inspect{"inspect", "Show a checkpoint and its manifest as JSON", ""};
  inspect.positionals = {{"ID", &options->id, "An id or its beginning", true, "@checkpoint"}};
  inspect.run = [options](Context& context) {
    print_json(context.client().get("/v1/checkpoints/" + api::encode(options->id)));
    return static_cast<int>(kOk);
  };

  Command rm{"rm", "Remove checkpoints", "Replicas that started from one run on."};
  rm.positionals = {{"ID", &options->ids, "Ids or their beginnings", true, "@checkpoint"}};
  rm.run = [options](Context& context) { return remove(context, *options); };

  Command verify_command{
      "verify", "Read checkpoints whole and compare their digests",
      "Prints those that are right. One that is broken is not offered any more. "
      "The daemon does so by itself, once a week (`thaw daemon --verify-every`)."};
  verify_command.options = {{"--all", "", &options->all, "All that are available"}};
  verify_command.positionals = {
      {"ID", &options->ids, "Ids or their beginnings", false, "@checkpoint"}};
  verify_command.run = [options](Context& context) { return verify(context, *options); };

  Command compress_command{
      "compress", "Compress the memory of checkpoints that nothing uses",
      "Prints what each takes on the disk then. The next start from one inflates it first. The "
      "daemon does so by itself (`thaw daemon --checkpoint-compress-after`)."};
  compress_command.positionals = {
      {"ID", &options->ids, "Ids or their beginnings", true, "@checkpoint"}};
  compress_command.run = [options](Context& context) { return compress(context, *options); };

  Command retry{"retry", "Forget failed dumps and restores of a pod",
                "A dump that failed is tried again after a minute, two, four, up to six hours; "
                "this ends the waiting. A new version of the pod does the same."};
  retry.positionals = {{"POD", &options->pod, "The pod", true, "@pod"}};
  retry.run = [options](Context& context) {
    auto pod = context.client().post("/v1/pods/" + api::encode(options->pod) + "/checkpoint/retry");
    print_line(pod.at("name").get<std::string>());
    return static_cast<int>(kOk);
  };

  Command command{"checkpoint", "List, create, inspect, verify, compress and remove checkpoints",
                  ""};
  command.commands = {ls, create_command, inspect, verify_command, compress_command, rm, retry};
  return command;
}

}  // namespace thaw::cli
