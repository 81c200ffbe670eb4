#include "api/json.h"
#include "cli/command.h"
#include "cli/image_reference.h"
#include "cli/listing.h"
#include "util/clock.h"
#include "util/file.h"

namespace thaw::cli {
namespace {

struct Options {
  Listing listing;
  bool json = false;
  std::string reference;
  std::vector<std::string> ids;
};

int list(Context& context, const Options& options) {
  auto images = context.client().get("/v1/images");
  return show_listing(context, options.listing, images, "id", [&] {
    Table table({"IMAGE", "REFERENCE", "SIZE", "AGE"});
    std::int64_t now = wall_us();
    for (auto& row : images) {
      table.add({row.at("id").get<std::string>().substr(0, 12), row.at("reference"),
                 format_bytes(row.at("bytes")), age(row.at("created_us"), now)});
    }
    return table;
  });
}

}  // namespace

nlohmann::json import_image(Context& context, const std::string& reference) {
  auto client = context.client();
  nlohmann::json image;
  client.stream("POST", "/v1/images", {{"reference", absolute_reference(reference)}},
                [&](std::string_view line) {
                  auto entry = nlohmann::json::parse(line);
                  if (entry.contains("error")) throw api::from_error_json(entry);
                  if (entry.contains("image")) image = entry["image"];
                  if (entry.contains("progress") && context.progress()) {
                    print_error("  " + entry["progress"].get<std::string>());
                  }
                  return true;
                });
  if (image.is_null()) {
    throw Error(Code::kUnavailable, "import", reference, "the daemon ended before it was done",
                "try again");
  }
  return image;
}

namespace {

int import(Context& context, const Options& options) {
  auto image = import_image(context, options.reference);
  options.json ? print_json(image) : print_line(image.at("id").get<std::string>());
  return kOk;
}

int remove(Context& context, const Options& options) {
  auto client = context.client();
  int result = kOk;
  for (auto& id : options.ids) {
    try {
      client.remove("/v1/images/" + api::encode(absolute_reference(id)));
      print_line(id);
    } catch (const Error& error) {
      print_error("thaw: " + std::string(error.what()));
      if (result == kOk) result = exit_code_of(error);
    }
  }
  return result;
}

}  // namespace

std::string absolute_reference(const std::string& reference) {
  for (std::string_view transport : {"oci:", "oci-archive:", "docker-archive:", "dir:"}) {
    if (!reference.starts_with(transport)) continue;
    return std::string(transport) + absolute_path(reference.substr(transport.size()));
  }
  return reference;
}

Command image_command() {
  auto options = std::make_shared<Options>();
  Command ls{"ls", "List imported images", ""};
  ls.options = listing_options(options->listing, "ids");
  ls.run = [options](Context& context) { return list(context, *options); };

  Command import_command{
      "import", "Import an image into the store",
      "docker://, oci:, oci-archive:, docker-archive: and dir: references, as skopeo takes them."};
  import_command.examples = {"thaw image import docker://docker.io/library/python:3.12",
                             "thaw image import oci:./images/python:3.12"};
  import_command.options = {{"--json", "", &options->json, "Print the image as JSON"}};
  import_command.positionals = {{"REFERENCE", &options->reference, "The image", true, "@file"}};
  import_command.run = [options](Context& context) { return import(context, *options); };

  Command rm{"rm", "Remove images", ""};
  rm.positionals = {{"IMAGE", &options->ids, "Ids or references", true, "@image"}};
  rm.run = [options](Context& context) { return remove(context, *options); };

  Command command{"image", "List, import and remove images", ""};
  command.commands = {ls, import_command, rm};
  return command;
}

}  // namespace thaw::cli
