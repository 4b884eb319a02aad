#include "vmm/machine/escape_keys.hpp"

namespace vmm {

EscapeKeys::Result EscapeKeys::filter(std::span<const std::byte> typed) {
    constexpr std::byte kPrefix{0x01}; // Ctrl-A
    Result result;
    for (const std::byte key : typed) {
        if (!prefix_seen_) {
            prefix_seen_ = key == kPrefix;
            if (!prefix_seen_) {
                result.for_guest.push_back(key);
            }
            continue;
        }
        prefix_seen_ = false;
        switch (static_cast<char>(key)) {
        case 'x':
        case 'X':
            result.stop = true;
            break;
        case 'h':
        case 'H':
        case '?':
            result.help = true;
            break;
        default:
            result.for_guest.push_back(kPrefix);
            if (key != kPrefix) {
                result.for_guest.push_back(key);
            }
        }
    }
    return result;
}

} // namespace vmm
