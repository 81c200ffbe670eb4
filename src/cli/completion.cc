#include "cli/completion.h"

#include <filesystem>

#include "util/error.h"
#include "util/file.h"

namespace thaw::cli {
namespace {

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::size_t start = 0;
  for (std::size_t end; start <= text.size(); start = end + 1) {
    end = std::min(text.find(separator, start), text.size());
    if (end > start) parts.push_back(text.substr(start, end - start));
  }
  return parts;
}

std::string shell_quoted(const std::string& text) {
  std::string result = "'";
  for (char c : text) result += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return result + "'";
}

std::vector<Option> options_of(const Command& command) {
  std::vector<Option> options = command.options;
  options.push_back(
      {"--host", "ADDRESS", static_cast<std::string*>(nullptr), "The daemon to talk to"});
  options.push_back({"-h,--help", "", static_cast<bool*>(nullptr), "Show help"});
  return options;
}

// The shell command that lists what `complete` stands for; empty for words, files and nothing.
std::string lister(const std::string& complete) {
  if (complete == "@pod") return "thaw ls -q 2>/dev/null";
  if (complete == "@replica") return "thaw ps -q 2>/dev/null; thaw ls -q 2>/dev/null";
  if (complete == "@checkpoint") return "thaw checkpoint ls -q 2>/dev/null";
  if (complete == "@image") return "thaw image ls -q 2>/dev/null";
  return "";
}

// What bash and zsh do to complete a value: set `values`, or `kind`. Empty when anything may stand
// there.
std::string assignment(const std::string& complete) {
  std::string from = lister(complete);
  if (!from.empty()) return "values=$(" + from + ")";
  if (complete == "@directory") return "kind=directories";
  if (complete == "@file") return "kind=files";
  return complete.empty() ? "" : "values=" + shell_quoted(complete);
}

struct Shape {
  std::string known;    // "thaw ls" | "thaw ps" …: names that go one command deeper
  std::string values;   // case lines: after an option that takes a value
  std::string words;    // case lines: sub-commands and options of a command
  std::string listers;  // case lines: values of a command's positionals
};

Shape shape_of(const Command& root) {
  Shape shape;
  for_each_command(root, [&](const std::string& name, const Command& command) {
    std::string words;
    for (auto& child : command.commands) {
      if (child.hidden) continue;
      words += child.name + " ";
      shape.known += (shape.known.empty() ? "" : " | ") + shell_quoted(name + " " + child.name);
    }
    for (auto& option : options_of(command)) {
      for (auto& spelling : split(option.names, ',')) {
        words += spelling + " ";
        if (option.value.empty()) continue;
        std::string action = assignment(option.complete);
        if (action.empty()) action = "kind=nothing";
        shape.values += "    " + shell_quoted(name + " " + spelling) + ") " + action + " ;;\n";
      }
    }
    words.pop_back();
    shape.words += "    " + shell_quoted(name) + ") offers=" + shell_quoted(words) + " ;;\n";
    if (command.positionals.empty()) return;
    std::string action = assignment(command.positionals[0].complete);
    if (!action.empty()) shape.listers += "    " + shell_quoted(name) + ") " + action + " ;;\n";
  });
  return shape;
}

constexpr const char* kBash = R"(# bash completion of thaw; made by `thaw completion bash`
_thaw() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
  local node=thaw offers='' values='' kind='' i
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    if [[ ${COMP_WORDS[i]} == -- ]]; then
      COMPREPLY=($(compgen -f -- "$cur"))
      return
    fi
    case "$node ${COMP_WORDS[i]}" in
    {known}) node="$node ${COMP_WORDS[i]}" ;;
    esac
  done
  case "$node $prev" in
{values}  esac
  if [[ -z $values && -z $kind ]]; then
    case "$node" in
{words}    esac
    if [[ $cur != -* ]]; then
      case "$node" in
{listers}      esac
    fi
  fi
  case "$kind" in
  files) COMPREPLY=($(compgen -f -W "$offers" -- "$cur")) ;;
  directories) COMPREPLY=($(compgen -d -- "$cur")) ;;
  nothing) ;;
  *) COMPREPLY=($(compgen -W "$offers $values" -- "$cur")) ;;
  esac
}
complete -o filenames -F _thaw thaw
)";

constexpr const char* kZsh = R"(#compdef thaw
# zsh completion of thaw; made by `thaw completion zsh`
_thaw() {
  local cur=${words[CURRENT]} prev=${words[CURRENT-1]} node=thaw kind='' values='' offers='' i
  for ((i = 2; i < CURRENT; i++)); do
    if [[ ${words[i]} == -- ]]; then
      _files
      return
    fi
    case "$node ${words[i]}" in
    {known}) node="$node ${words[i]}" ;;
    esac
  done
  case "$node $prev" in
{values}  esac
  if [[ -z $values && -z $kind ]]; then
    case "$node" in
{words}    esac
    if [[ $cur != -* ]]; then
      case "$node" in
{listers}      esac
    fi
  fi
  case "$kind" in
  files) _files ;;
  directories) _files -/ ;;
  esac
  [[ $kind == nothing ]] || compadd -- ${=offers} ${=values}
}
if [[ $funcstack[1] == _thaw ]]; then
  _thaw "$@"
else
  compdef _thaw thaw
fi
)";

std::string fish_values(const std::string& complete) {
  std::string from = lister(complete);
  if (!from.empty()) return " -a " + shell_quoted("(" + from + ")");
  return complete.empty() || complete.starts_with("@") ? "" : " -a " + shell_quoted(complete);
}

std::string fish(const Command& root) {
  std::string text =
      "# fish completion of thaw; made by `thaw completion fish`\n"
      "function __thaw_at\n"
      "    set -l node thaw\n"
      "    for word in (commandline -opc)[2..]\n"
      "        switch \"$node $word\"\n"
      "            case ";
  std::string known;
  for_each_command(root, [&](const std::string& name, const Command&) {
    if (name != "thaw") known += shell_quoted(name) + " ";
  });
  text += known +
          "\n                set node \"$node $word\"\n"
          "        end\n"
          "    end\n"
          "    test \"$node\" = \"$argv[1]\"\n"
          "end\n"
          "complete -c thaw -f\n";
  for_each_command(root, [&](const std::string& name, const Command& command) {
    std::string at = "complete -c thaw -n '__thaw_at \"" + name + "\"'";
    for (auto& child : command.commands) {
      if (!child.hidden)
        text += at + " -a " + child.name + " -d " + shell_quoted(child.summary) + "\n";
    }
    for (auto& option : options_of(command)) {
      std::string line = at;
      for (auto& spelling : split(option.names, ',')) {
        line +=
            spelling.starts_with("--") ? " -l " + spelling.substr(2) : " -s " + spelling.substr(1);
      }
      bool path = option.complete == "@file" || option.complete == "@directory";
      if (!option.value.empty()) line += path ? " -r -F" : " -x";
      text += line + fish_values(option.complete) + " -d " + shell_quoted(option.help) + "\n";
    }
    if (command.positionals.empty()) return;
    const std::string& complete = command.positionals[0].complete;
    if (!complete.empty())
      text += at + (complete == "@file" ? " -F" : fish_values(complete)) + "\n";
  });
  return text;
}

}  // namespace

void for_each_command(const Command& root,
                      const std::function<void(const std::string&, const Command&)>& visit) {
  std::function<void(const std::string&, const Command&)> walk = [&](const std::string& name,
                                                                     const Command& command) {
    if (command.hidden) return;
    visit(name, command);
    for (auto& child : command.commands) walk(name + " " + child.name, child);
  };
  walk(root.name, root);
}

std::string completion_script(const Command& root, const std::string& shell) {
  if (shell == "fish") return fish(root);
  if (shell != "bash" && shell != "zsh") {
    throw Error(Code::kInvalid, "complete for the shell", shell, "it is not known here",
                "give bash, zsh or fish");
  }
  Shape shape = shape_of(root);
  std::string script = shell == "bash" ? kBash : kZsh;
  for (auto& [name, value] : {std::pair{"{known}", &shape.known},
                              {"{values}", &shape.values},
                              {"{words}", &shape.words},
                              {"{listers}", &shape.listers}}) {
    script.replace(script.find(name), std::string_view(name).size(), *value);
  }
  return script;
}

Command completion_command() {
  auto shell = std::make_shared<std::string>();
  Command command{"completion", "Print a shell's completion script", ""};
  command.examples = {"source <(thaw completion bash)"};
  command.positionals = {{"SHELL", shell.get(), "bash, zsh or fish", true, "bash zsh fish"}};
  command.run = [shell](Context&) {
    print(completion_script(thaw_command(), *shell));
    return static_cast<int>(kOk);
  };
  return command;
}

Command docs_command() {
  auto directory = std::make_shared<std::string>();
  Command command{"docs", "Write man/ and completions/ below a directory", ""};
  command.hidden = true;
  command.positionals = {{"DIR", directory.get(), "Where", true, "@directory"}};
  command.run = [directory](Context&) {
    Command root = thaw_command();
    auto put = [&](const std::string& path, const std::string& text) {
      std::string file = *directory + "/" + path;
      make_directories(std::filesystem::path(file).parent_path());
      write_file_atomic(file, text, 0644);
    };
    for (auto& [name, text] : man_pages(root)) put("man/" + name, text);
    put("completions/thaw.bash", completion_script(root, "bash"));
    put("completions/_thaw", completion_script(root, "zsh"));
    put("completions/thaw.fish", completion_script(root, "fish"));
    return static_cast<int>(kOk);
  };
  return command;
}

}  // namespace thaw::cli
