#include "cli/parser.h"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>

#include "util/version.h"

namespace thaw::cli {
namespace {

constexpr const char* kGroup = "Options";

void add_option(CLI::App& app, const Option& option) {
  if (auto* flag = std::get_if<bool*>(&option.target)) {
    app.add_flag(option.names, **flag, option.help)->group(kGroup);
  } else if (auto* text = std::get_if<std::string*>(&option.target)) {
    app.add_option(option.names, **text, option.help)->option_text(option.value)->group(kGroup);
  } else {
    // One value an occurrence, or `-e A=1 file` would take the file too.
    app.add_option(option.names, *std::get<std::vector<std::string>*>(option.target), option.help)
        ->option_text(option.value)
        ->expected(1)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
        ->group(kGroup);
  }
}

void add_positional(CLI::App& app, const Positional& positional) {
  CLI::Option* option = nullptr;
  if (auto* text = std::get_if<std::string*>(&positional.target)) {
    option = app.add_option(positional.name, **text, positional.help);
  } else {
    option = app.add_option(
        positional.name, *std::get<std::vector<std::string>*>(positional.target), positional.help);
    option->expected(positional.required ? 1 : 0, 1'000'000);
  }
  option->option_text(" ");
  if (positional.required) option->required();
}

void build(CLI::App& app, const Command& command,
           std::map<const CLI::App*, const Command*>& index) {
  index[&app] = &command;
  app.set_help_flag("-h,--help", "Show this help")->group(kGroup);
  for (auto& option : command.options) add_option(app, option);
  for (auto& positional : command.positionals) add_positional(app, positional);
  app.fallthrough();
  if (!command.commands.empty()) app.require_subcommand(0, 1);
  std::string footer;
  for (auto& example : command.examples)
    footer += (footer.empty() ? "Examples:\n  " : "  ") + example + "\n";
  if (!footer.empty()) app.footer(footer);
  for (auto& child : command.commands) {
    CLI::App* sub = app.add_subcommand(child.name, child.summary);
    if (child.hidden) sub->group("");
    build(*sub, child, index);
  }
}

// CLI11's own usage line speaks of "(0x)" and knows nothing of what follows "--".
class Formatter : public CLI::Formatter {
 public:
  explicit Formatter(const std::map<const CLI::App*, const Command*>& index) : index_(index) {}
  std::string make_usage(const CLI::App* app, std::string name) const override {
    const Command& command = *index_.at(app);
    std::string text = "\nUsage: " + name;
    if (!command.commands.empty()) return text + " [OPTIONS] COMMAND ...\n";
    text += " [OPTIONS]";
    for (auto& positional : command.positionals) {
      bool many = std::holds_alternative<std::vector<std::string>*>(positional.target);
      std::string one = positional.name + (many ? "..." : "");
      text += positional.required ? " " + one : " [" + one + "]";
    }
    return command.rest ? text + " [-- " + command.rest_name + "]\n" : text + "\n";
  }

 private:
  const std::map<const CLI::App*, const Command*>& index_;
};

const CLI::App* deepest(const CLI::App* app) {
  for (auto subs = app->get_subcommands(); !subs.empty(); subs = app->get_subcommands())
    app = subs[0];
  return app;
}

std::string full_name(const CLI::App* app) {
  std::string name = app->get_name();
  for (app = app->get_parent(); app; app = app->get_parent()) name = app->get_name() + " " + name;
  return name;
}

std::string help_of(const CLI::App* app) {
  // CLI11 puts the command's own name behind the one it is given.
  return app->help(app->get_parent() ? full_name(app->get_parent()) : "");
}

}  // namespace

Parsed parse(const Command& root, Context& context, int argc, char** argv) {
  // What follows "--" belongs to the program that is run, untouched by option parsing.
  std::vector<std::string> words(argv + 1, argv + argc), rest;
  auto dashes = std::find(words.begin(), words.end(), "--");
  bool has_rest = dashes != words.end();
  if (has_rest) {
    rest.assign(dashes + 1, words.end());
    words.erase(dashes, words.end());
  }
  std::reverse(words.begin(), words.end());  // as CLI11 wants a vector

  CLI::App app(root.summary, root.name);
  app.option_defaults()->always_capture_default(false);
  app.set_version_flag("--version", "thaw " + std::string(kVersion), "Show the version")
      ->group(kGroup);
  app.add_option("--host", context.host, "The daemon: unix:PATH or tls:HOST:PORT (or THAW_HOST)")
      ->option_text("ADDRESS")
      ->group(kGroup);
  std::map<const CLI::App*, const Command*> index;
  app.formatter(std::make_shared<Formatter>(index));
  build(app, root, index);
  try {
    app.parse(words);
  } catch (const CLI::CallForVersion& version) {
    print_line(version.what());
    return {nullptr, kOk};
  } catch (const CLI::CallForHelp&) {
    print(help_of(deepest(&app)));
    return {nullptr, kOk};
  } catch (const CLI::ParseError& error) {
    print_error(fmt::format("thaw: {}; see `{} --help`", error.what(), full_name(deepest(&app))));
    return {nullptr, kUsage};
  }
  const CLI::App* chosen = deepest(&app);
  const Command* command = index.at(chosen);
  if (!command->run) {
    print_error(fmt::format("thaw: a command is missing; see `{} --help`", full_name(chosen)));
    return {nullptr, kUsage};
  }
  if (has_rest && !command->rest) {
    print_error(fmt::format("thaw: `{}` takes nothing after --", full_name(chosen)));
    return {nullptr, kUsage};
  }
  if (command->rest) *command->rest = std::move(rest);
  return {command, kOk};
}

}  // namespace thaw::cli
