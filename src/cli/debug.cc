// For whoever takes Thaw apart.
#include "cli/command.h"
#include "util/fault.h"

namespace thaw::cli {
namespace {

int faults(Context& context, bool json) {
  auto list = nlohmann::json::array();
  for (const FaultStep& step : kFaultSteps)
    list.push_back({{"name", step.name}, {"where", step.where}, {"victims", step.victims}});
  if (json) {
    print_json(list);
    return kOk;
  }
  Table table({"STEP", "VICTIMS", "WHERE"});
  for (const auto& step : list) table.add({step.at("name"), step.at("victims"), step.at("where")});
  table.print(context);
  return kOk;
}

}  // namespace

Command debug_command() {
  auto json = std::make_shared<bool>(false);
  Command faults_command{"faults", "List the steps at which THAW_FAULT can let something die",
                         "THAW_FAULT=STEP[:VICTIM] in the environment of `thaw daemon`; see "
                         "docs/faults.md."};
  faults_command.options = {{"--json", "", json.get(), "Print a JSON array"}};
  faults_command.run = [json](Context& context) { return faults(context, *json); };
  Command command{"debug", "Take Thaw apart", ""};
  command.commands = {faults_command};
  command.hidden = true;
  return command;
}

}  // namespace thaw::cli
