#include "loader/x86/reset_vector.hpp"

#include <algorithm>

namespace vmm::loader {

std::array<std::byte, 16> build_reset_vector(std::uint16_t port, std::uint8_t value) noexcept {
    const std::array<unsigned, 9> code = {
        0xba, port & 0xffU, static_cast<unsigned>(port) >> 8U, // mov dx, port
        0xb0, value,                                           // mov al, value
        0xee,                                                  // out dx, al
        0xf4,                                                  // hlt, in case the write does not end it
        0xeb, 0xfc,                                            // jmp to the out
    };
    std::array<std::byte, 16> bytes{};
    std::ranges::transform(code, bytes.begin(), [](unsigned byte) { return static_cast<std::byte>(byte); });
    return bytes;
}

} // namespace vmm::loader
