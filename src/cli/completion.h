// Shell completion scripts and man pages, made from the command tree.
#pragma once

#include <map>
#include <string>

#include "cli/command.h"

namespace thaw::cli {

// "bash", "zsh" or "fish"; kInvalid otherwise.
std::string completion_script(const Command& root, const std::string& shell);
// File name ("thaw-ls.1") to its roff text.
std::map<std::string, std::string> man_pages(const Command& root);

// Visits every command that is not hidden, root first, with its full name ("thaw checkpoint ls").
void for_each_command(const Command& root,
                      const std::function<void(const std::string& name, const Command&)>& visit);

}  // namespace thaw::cli
