#include "devices/pci/function.hpp"

#include <algorithm>
#include <cstddef>

namespace vmm::devices::pci {

void Function::read(std::uint64_t /*offset*/, std::span<std::byte> data) noexcept {
    std::ranges::fill(data, std::byte{0xff});
}

void Function::write(std::uint64_t /*offset*/, std::span<const std::byte> /*data*/) noexcept {}

} // namespace vmm::devices::pci
