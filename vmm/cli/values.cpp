#include "vmm/cli/values.hpp"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <map>
#include <string>

namespace vmm {

std::optional<std::uint64_t> parse_size(std::string_view text) {
    std::uint64_t number = 0;
    const char* const end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(text.data(), end, number);
    if (error != std::errc{}) {
        return std::nullopt;
    }
    std::string unit(rest, end);
    std::ranges::transform(unit, unit.begin(), [](unsigned char c) { return std::toupper(c); });
    static const std::map<std::string, std::uint64_t> kUnits{
        {"", 1}, {"K", kKiB}, {"M", kMiB}, {"G", kGiB}, {"T", kTiB}};
    for (const std::string_view ending : {"IB", "B"}) {
        if (unit.size() == ending.size() + 1 && unit.ends_with(ending)) {
            unit.resize(1);
        }
    }
    const auto factor = kUnits.find(unit);
    if (factor == kUnits.end() || number > UINT64_MAX / factor->second) {
        return std::nullopt;
    }
    return number * factor->second;
}

std::string size_text(std::uint64_t bytes) {
    std::string unit;
    for (const char* const larger : {"K", "M", "G", "T"}) {
        if (bytes == 0 || bytes % kKiB != 0) {
            break;
        }
        bytes /= kKiB;
        unit = larger;
    }
    return std::to_string(bytes) + unit;
}

namespace {

/// "0" to "1G", also "0x100000".
std::optional<std::uint64_t> parse_address(std::string_view text) {
    if (text.starts_with("0x") || text.starts_with("0X")) {
        std::uint64_t number = 0;
        const char* const end = text.data() + text.size();
        const auto [rest, error] = std::from_chars(text.data() + 2, end, number, 16);
        return error == std::errc{} && rest == end ? std::optional(number) : std::nullopt;
    }
    return parse_size(text);
}

} // namespace

std::optional<std::vector<GuestRange>> parse_ranges(std::string_view text) {
    std::vector<GuestRange> ranges;
    for (std::size_t start = 0; start <= text.size();) {
        const std::size_t comma = std::min(text.find(',', start), text.size());
        const std::string_view item = text.substr(start, comma - start);
        const std::size_t dash = item.find('-');
        if (dash == std::string_view::npos) {
            return std::nullopt;
        }
        const auto first = parse_address(item.substr(0, dash));
        const auto end = parse_address(item.substr(dash + 1));
        if (!first || !end || *end <= *first) {
            return std::nullopt;
        }
        ranges.push_back({GuestAddress{*first}, *end - *first});
        start = comma + 1;
    }
    return ranges;
}

} // namespace vmm
