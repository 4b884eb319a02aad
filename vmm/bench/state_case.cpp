#include "vmm/bench/state_case.hpp"

#include <algorithm>

namespace vmm::bench {

std::string_view to_string(Scenario scenario) noexcept {
    switch (scenario) {
    case Scenario::kPause:
        return "pause";
    case Scenario::kSnapshot:
        return "snapshot";
    case Scenario::kCold:
        return "cold start";
    case Scenario::kBareRead:
        return "bare read";
    case Scenario::kRestore:
        return "restore";
    case Scenario::kPasses:
        return "passes";
    case Scenario::kClones:
        return "clones";
    }
    return "";
}

std::string to_string(const StateCase& each) {
    std::string text(to_string(each.scenario));
    if (each.mode) {
        text += ' ';
        text += vmm::to_string(*each.mode);
    }
    text += ", ";
    text += vmm::to_string(each.page_size);
    return text + " pages";
}

bool is_before_snapshot(Scenario scenario) noexcept {
    return scenario == Scenario::kPause || scenario == Scenario::kSnapshot;
}

bool comes_back_full(RestoreMode mode) noexcept {
    return mode == RestoreMode::kFull;
}

bool can_restore(RestoreMode mode, PageSize page_size) noexcept {
    switch (mode) {
    case RestoreMode::kFull:
        return true;
    case RestoreMode::kCow:
        return !is_from_pool(page_size);
    case RestoreMode::kLazy:
        return page_size != PageSize::k1G;
    }
    return true;
}

PageSize saved_page_size(const std::vector<PageSize>& page_sizes) noexcept {
    const bool has_thp = std::ranges::find(page_sizes, PageSize::kThp) != page_sizes.end();
    return has_thp ? PageSize::kThp : page_sizes.front();
}

std::vector<StateCase> state_cases(const std::vector<PageSize>& page_sizes, const std::vector<RestoreMode>& modes) {
    const PageSize saved = saved_page_size(page_sizes);
    std::vector<StateCase> cases;
    const auto add_restores = [&](Scenario scenario, PageSize page_size, auto is_wanted) {
        for (const RestoreMode mode : modes) {
            if (is_wanted(mode) && can_restore(mode, page_size)) {
                cases.push_back({scenario, page_size, mode});
            }
        }
    };
    for (const Scenario scenario : {Scenario::kPause, Scenario::kSnapshot}) {
        cases.push_back({scenario, saved});
    }
    for (const PageSize page_size : page_sizes) {
        cases.push_back({Scenario::kCold, page_size});
        cases.push_back({Scenario::kBareRead, page_size});
        add_restores(Scenario::kRestore, page_size, [](RestoreMode /*any*/) { return true; });
        add_restores(Scenario::kPasses, page_size, comes_back_full);
    }
    add_restores(Scenario::kClones, saved, [](RestoreMode mode) { return !comes_back_full(mode); });
    return cases;
}

} // namespace vmm::bench
