#include "vmm/cli/options.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include "vmm/cli/bench_options.hpp"
#include "vmm/cli/control_options.hpp"
#include "vmm/cli/pool_options.hpp"
#include "vmm/cli/run_options.hpp"
#include "vmm/cli/snapshot_options.hpp"

namespace vmm {

std::span<const Option> options() {
    static const std::vector<Option> kTable = [] {
        std::vector<Option> rows = run_options();
        for (auto* const part : {control_options, snapshot_options, pool_options, bench_options}) {
            for (Option& row : part()) {
                rows.push_back(std::move(row));
            }
        }
        return rows;
    }();
    return kTable;
}

const Option* find_option(Place place, std::string_view long_name) {
    const auto table = options();
    const auto found = std::ranges::find_if(table, [&](const Option& option) {
        return option.is_allowed(place) && !long_name.empty() && option.long_name() == long_name;
    });
    return found != table.end() ? &*found : nullptr;
}

} // namespace vmm
