// The command line as data: what the parser, the shell completions and the man pages are all made
// from. One file a verb makes its Command; nothing here knows CLI11.
#pragma once

#include <functional>
#include <string>
#include <variant>
#include <vector>

#include "cli/context.h"

namespace thaw::cli {

// Where a parsed value goes. The pointed-to variable belongs to the options struct that the
// command's `run` holds.
using Target = std::variant<bool*, std::string*, std::vector<std::string>*>;

struct Option {
  std::string names;  // "-f,--follow"
  std::string value;  // placeholder in the help; empty for a flag
  Target target;
  std::string help;
  std::string complete =
      {};  // words "a b c", or one of: @pod @replica @checkpoint @image @file @directory
};

struct Positional {
  std::string name;  // placeholder
  Target target;
  std::string help;
  bool required = true;
  std::string complete = {};
};

struct Command {
  std::string name;
  std::string summary;      // one line
  std::string description;  // more, for the man page; may be empty
  std::vector<std::string> examples = {};
  std::vector<Option> options = {};
  std::vector<Positional> positionals = {};
  std::vector<std::string>* rest = nullptr;  // what follows "--" goes here; null: nothing may
  std::string rest_name = {};
  std::function<int(Context&)> run = {};  // returns the exit code; throws Error
  std::vector<Command> commands = {};
  bool hidden = false;
};

// The whole tree, root first: `thaw` itself.
Command thaw_command();

// One file each.
Command daemon_command();
Command deploy_command();
Command serve_command();
Command init_command();
Command ls_command();
Command ps_command();
Command logs_command();
Command exec_command();
Command scale_command();
Command stop_command();
Command rm_command();
Command events_command();
Command checkpoint_command();
Command image_command();
Command doctor_command();
Command version_command();
Command schema_command();
Command completion_command();
Command docs_command();
Command debug_command();
Command secret_command();
Command token_command();
Command trace_command();

}  // namespace thaw::cli
