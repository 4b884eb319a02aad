#include "kvm/host/guest_address.hpp"

#include <array>
#include <cinttypes>
#include <cstdio>

namespace vmm {

std::string to_string(GuestAddress address) {
    std::array<char, 24> text{};
    std::snprintf(text.data(), text.size(), "0x%" PRIx64, to_integer(address));
    return text.data();
}

std::string to_string(GuestRange range) {
    if (range.size == 0) {
        return to_string(range.base) + " (empty)";
    }
    const auto last = checked_add(range.base, range.size - 1);
    return to_string(range.base) + "-" + (last ? to_string(*last) : std::string("(beyond 2^64)"));
}

std::string format_bytes(std::uint64_t bytes) {
    struct Unit {
        std::uint64_t bytes;
        const char* name;
    };
    static constexpr std::array kUnits{Unit{kTiB, "TiB"}, Unit{kGiB, "GiB"}, Unit{kMiB, "MiB"}, Unit{kKiB, "KiB"}};
    std::array<char, 40> text{};
    for (const Unit& unit : kUnits) {
        if (bytes < unit.bytes) {
            continue;
        }
        if (bytes % unit.bytes == 0) {
            std::snprintf(text.data(), text.size(), "%" PRIu64 " %s", bytes / unit.bytes, unit.name);
        } else {
            std::snprintf(text.data(), text.size(), "%.2f %s",
                          static_cast<double>(bytes) / static_cast<double>(unit.bytes), unit.name);
        }
        return text.data();
    }
    std::snprintf(text.data(), text.size(), "%" PRIu64 " bytes", bytes);
    return text.data();
}

} // namespace vmm
