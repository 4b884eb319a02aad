#include "vmm/cli/snapshot_options.hpp"

#include <string>

#include "prefault/options.hpp"
#include "vmm/cli/given.hpp"

namespace vmm {

std::vector<Option> snapshot_options() {
    using Action = SnapshotCommand::Action;
    std::vector<Option> rows{
        choice<Action>("ACTION", {Action::kInfo, Action::kVerify}, "What to do with the snapshot",
                       [](Given& given, Action action) { given.snapshot.action = action; })
            .required(),
        file("DIR", "Its directory", [](Given& given, const std::string& path) { given.snapshot.directory = path; })
            .required(),
        flag("--json", "Print the answer as JSON", [](Given& given, bool json) { given.snapshot.json = json; }),
        number("--workers", {1, prefault::kMaxWorkers}, "Of verify: threads that read",
               [](Given& given, unsigned workers) { given.snapshot.workers = workers; })
            .with_standard("the CPUs it may use"),
    };
    for (Option& row : rows) {
        row.places = {Place::kSnapshotCommand};
    }
    return rows;
}

} // namespace vmm
