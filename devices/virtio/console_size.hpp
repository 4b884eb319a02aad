// The size of the terminal behind a console.
#pragma once

#include <cstdint>

namespace vmm::devices::virtio {

/// The size of a terminal, in characters.
struct ConsoleSize {
    std::uint16_t columns = 0;
    std::uint16_t rows = 0;

    friend bool operator==(const ConsoleSize&, const ConsoleSize&) = default;
};

} // namespace vmm::devices::virtio
