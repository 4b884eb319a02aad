#include "vmm/cli/option_names.hpp"

#include <algorithm>
#include <array>
#include <cctype>

namespace vmm {

namespace {

struct OptionName {
    std::string_view member;
    std::string_view option;
};

constexpr std::string_view kPrefix = "Config::";

/// What stands behind kPrefix, and what the command says instead of both.
constexpr std::array kOptionNames{OptionName{"hardware", "--hardware"},
                                  OptionName{"memory_bytes", "-m"},
                                  OptionName{"nested=true", "--nested on"},
                                  OptionName{"nets.user", "--net user"},
                                  OptionName{"numa", "--numa"},
                                  OptionName{"numa.node", "--numa-node"},
                                  OptionName{"page_size", "--page-size"},
                                  OptionName{"pin", "--pin"},
                                  OptionName{"prefault.cpus", "--prefault-cpus"},
                                  OptionName{"prefault.method", "--prefault-method"},
                                  OptionName{"prefault.scope", "--prefault"},
                                  OptionName{"prefault.smm", "--prefault-smm"},
                                  OptionName{"prefault.workers", "--prefault-workers"},
                                  OptionName{"prefault_when", "--prefault-when"},
                                  OptionName{"reserve_huge_pages", "--reserve-hugepages"},
                                  OptionName{"vcpu_cpus", "--vcpu-cpus"}};

/// True if a name that ends where `rest` begins is not a part of a longer one: a point may end a sentence.
bool ends_here(std::string_view rest) {
    const auto is_of_name = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; };
    const bool goes_on =
        !rest.empty() && (is_of_name(rest[0]) || (rest[0] == '.' && rest.size() > 1 && is_of_name(rest[1])));
    return !goes_on;
}

} // namespace

std::string with_option_names(std::string_view text) {
    std::string result;
    while (!text.empty()) {
        const std::size_t at = std::min(text.find(kPrefix), text.size());
        result += text.substr(0, at);
        text.remove_prefix(at);
        const std::string_view name = text.substr(std::min(kPrefix.size(), text.size()));
        const auto* const found = std::ranges::find_if(kOptionNames, [name](const OptionName& known) {
            return name.starts_with(known.member) && ends_here(name.substr(known.member.size()));
        });
        if (found != kOptionNames.end()) {
            result += found->option;
            text = name.substr(found->member.size());
        } else if (!text.empty()) {
            result += kPrefix;
            text = name;
        }
    }
    return result;
}

} // namespace vmm
