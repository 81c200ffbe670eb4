#include "cli/completion.h"
#include "util/version.h"

namespace thaw::cli {
namespace {

// roff: a backslash and a leading dot or quote mean something, and a plain hyphen becomes a dash.
std::string escaped(const std::string& text) {
  std::string result;
  for (char c : text) {
    if (c == '\\') {
      result += "\\e";
    } else if (c == '-') {
      result += "\\-";
    } else {
      if ((c == '.' || c == '\'') && (result.empty() || result.back() == '\n')) result += "\\&";
      result += c;
    }
  }
  return result;
}

std::string dashed(std::string name) {
  std::replace(name.begin(), name.end(), ' ', '-');
  return name;
}

std::string upper(std::string text) {
  for (char& c : text) c = c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
  return text;
}

std::string spellings(const Option& option) {
  std::string text;
  std::string names = option.names + ",";
  for (std::size_t start = 0, end; (end = names.find(',', start)) != std::string::npos;
       start = end + 1) {
    text += (text.empty() ? "\\fB" : ", \\fB") + escaped(names.substr(start, end - start)) + "\\fR";
  }
  return option.value.empty() ? text : text + " \\fI" + escaped(option.value) + "\\fR";
}

std::string synopsis(const std::string& name, const Command& command) {
  std::string text = "\\fB" + escaped(name) + "\\fR";
  if (!command.commands.empty()) return text + " \\fICOMMAND\\fR ...";
  text += " [\\fIoptions\\fR]";
  for (auto& positional : command.positionals) {
    bool many = std::holds_alternative<std::vector<std::string>*>(positional.target);
    std::string one = "\\fI" + positional.name + "\\fR" + (many ? " ..." : "");
    text += positional.required ? " " + one : " [" + one + "]";
  }
  if (command.rest) text += " [\\fB\\-\\-\\fR \\fI" + escaped(command.rest_name) + "\\fR]";
  return text;
}

std::string options_text(const Command& command) {
  std::string text;
  for (auto& positional : command.positionals) {
    text += ".TP\n\\fI" + positional.name + "\\fR\n" + escaped(positional.help) + ".\n";
  }
  for (auto& option : command.options) {
    text += ".TP\n" + spellings(option) + "\n" + escaped(option.help) + ".\n";
  }
  return text;
}

std::string examples_text(const Command& command) {
  if (command.examples.empty()) return "";
  std::string text = ".SH EXAMPLES\n.nf\n";
  for (auto& example : command.examples) text += escaped(example) + "\n";
  return text + ".fi\n";
}

std::string header(const std::string& name, const std::string& summary) {
  return ".\\\" Made by `thaw docs`; do not edit.\n.TH " + upper(dashed(name)) + " 1 \"\" \"thaw " +
         std::string(kVersion) + "\" \"Thaw Manual\"\n.SH NAME\n" + escaped(dashed(name)) +
         " \\- " + escaped(summary) + "\n";
}

constexpr const char* kEnds = R"(.SH ENVIRONMENT
.TP
\fBTHAW_HOST\fR
The daemon's address, as \fB\-\-host\fR.
.TP
\fBTHAW_TOKEN\fR, \fBTHAW_CA\fR
Over TLS: the token to show, and a file of certificates to trust (the system's).
.TP
\fBNO_COLOR\fR
When set and not empty, no colors.
.SH EXIT STATUS
0 done; 1 failed; 2 wrong usage or an invalid request; 3 no daemon answers; 4 not found; 5 conflict with the present state;
6 timed out; 130 interrupted. \fBthaw exec\fR ends with the program's own exit code.
)";

}  // namespace

std::map<std::string, std::string> man_pages(const Command& root) {
  std::map<std::string, std::string> pages;
  std::string commands, also;
  for (auto& child : root.commands) {
    if (child.hidden) continue;
    std::string name = root.name + " " + child.name;
    commands += ".TP\n\\fB" + escaped(child.name) + "\\fR\n" + escaped(child.summary) + ".\n";
    also += (also.empty() ? ".BR " : ",\n.BR ") + dashed(name) + " (1)";

    std::string page = header(name, child.summary) + ".SH SYNOPSIS\n";
    for (auto& verb : child.commands) page += synopsis(name + " " + verb.name, verb) + "\n.br\n";
    if (child.commands.empty()) page += synopsis(name, child) + "\n";
    if (!child.description.empty()) page += ".SH DESCRIPTION\n" + escaped(child.description) + "\n";
    if (child.commands.empty()) {
      std::string options = options_text(child);
      if (!options.empty()) page += ".SH OPTIONS\n" + options;
      page += examples_text(child);
    } else {
      page += ".SH COMMANDS\n";
      for (auto& verb : child.commands) {
        page += ".SS " + escaped(verb.name) + "\n" + escaped(verb.summary) + ".\n" +
                escaped(verb.description) + (verb.description.empty() ? "" : "\n") +
                options_text(verb);
      }
    }
    page += ".SH SEE ALSO\n.BR thaw (1)\n";
    pages[dashed(name) + ".1"] = page;
  }
  pages["thaw.1"] =
      header(root.name, "pods that start warm") + ".SH SYNOPSIS\n" + synopsis(root.name, root) +
      "\n.SH DESCRIPTION\n" + escaped(root.description) + "\n.SH COMMANDS\n" + commands +
      ".SH OPTIONS\n.TP\n\\fB\\-\\-host\\fR \\fIADDRESS\\fR\nThe daemon: unix:PATH or "
      "tls:HOST:PORT (unix:/var/lib/thaw/thaw.sock).\n.TP\n\\fB\\-\\-version\\fR\nShow the "
      "version.\n.TP\n\\fB\\-h\\fR, \\fB\\-\\-help\\fR\nShow help; of every command too.\n" +
      examples_text(root) + kEnds + ".SH SEE ALSO\n" + also + "\n";
  return pages;
}

}  // namespace thaw::cli
