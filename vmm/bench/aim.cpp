#include "vmm/bench/aim.hpp"

#include <string_view>
#include <utility>

#include "kvm/host/format.hpp"
#include "vmm/bench/json_parts.hpp"
#include "vmm/bench/table.hpp"

namespace vmm::bench {

namespace {

std::string times_text(double factor) {
    return factor >= 100 ? vmm::format("{:.0f}", factor) : vmm::format("{:.2f}", factor);
}

std::string aim_text(Aim::Kind kind, double value) {
    return kind == Aim::Kind::kRatio     ? times_text(value)
           : kind == Aim::Kind::kSeconds ? format_seconds(value)
                                         : format_count(value);
}

std::string aim_row(const Aim& aim) {
    std::string value = aim_text(aim.kind, aim.value.median);
    if (aim.value.least != aim.value.most) {
        value += vmm::format(" [{} .. {}]", aim_text(aim.kind, aim.value.least), aim_text(aim.kind, aim.value.most));
    }
    const std::string bound = (aim.wanted == Aim::Wanted::kAtLeast ? ">= " : "") + aim_text(aim.kind, aim.bound);
    return vmm::format("  {:<70} {:>27} {:>8}  {}\n", aim.name, value, bound, aim.is_met() ? "met" : "MISSED");
}

std::string_view unit_of(Aim::Kind kind) {
    return kind == Aim::Kind::kRatio ? "ratio" : kind == Aim::Kind::kSeconds ? "seconds" : "count";
}

} // namespace

void AimList::add(std::string name, Aim::Kind kind, const RoundValues& values, double bound, Aim::Wanted wanted) {
    std::vector<double> known;
    for (const auto& value : values) {
        if (value) {
            known.push_back(*value);
        }
    }
    if (!known.empty()) {
        aims_.push_back({std::move(name), kind, describe(known), bound, wanted});
    }
}

std::string aims_table(const std::vector<Aim>& aims) {
    std::string text = vmm::format("  {:<70} {:>27} {:>8}\n", "aim", "measured", "at most");
    for (const Aim& aim : aims) {
        text += aim_row(aim);
    }
    return text;
}

nlohmann::ordered_json to_json_parts(const std::vector<Aim>& aims) {
    auto json = nlohmann::ordered_json::array();
    for (const Aim& aim : aims) {
        json.push_back({{"name", aim.name},
                        {"unit", unit_of(aim.kind)},
                        {"bound", aim.bound},
                        {"wanted", aim.wanted == Aim::Wanted::kAtLeast ? "at least" : "at most"},
                        {"met", aim.is_met()},
                        {"statistics", to_json_parts(aim.value)}});
    }
    return json;
}

} // namespace vmm::bench
