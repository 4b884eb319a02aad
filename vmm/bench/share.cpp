#include "vmm/bench/share.hpp"

#include <charconv>
#include <cstddef>
#include <system_error>

namespace vmm::bench {

std::string to_string(const Share& share) {
    return std::to_string(share.index) + "/" + std::to_string(share.of);
}

std::optional<Share> parse_share(std::string_view text) {
    const std::size_t slash = text.find('/');
    if (slash == std::string_view::npos) {
        return std::nullopt;
    }
    const auto number = [](std::string_view word) -> std::optional<unsigned> {
        unsigned value = 0;
        const auto [rest, error] = std::from_chars(word.data(), word.data() + word.size(), value);
        return error == std::errc{} && rest == word.data() + word.size() && value >= 1 && value <= Share::kMostShares
                   ? std::optional(value)
                   : std::nullopt;
    };
    const auto index = number(text.substr(0, slash));
    const auto of = number(text.substr(slash + 1));
    return index && of && *index <= *of ? std::optional(Share{*index, *of}) : std::nullopt;
}

std::vector<Cell> cells_of_share(const std::vector<Cell>& all, const Share& share) {
    std::vector<Cell> cells;
    for (std::size_t i = share.index - 1; i < all.size(); i += share.of) {
        cells.push_back(all[i]);
    }
    return cells;
}

} // namespace vmm::bench
