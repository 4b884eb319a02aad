#include "vmm/guest/guest_image.hpp"

// guest_image.S
extern "C" const std::byte vmm_guest_image_begin[];
extern "C" const std::byte vmm_guest_image_end[];

namespace vmm {

std::span<const std::byte> builtin_guest_image() noexcept {
    return {vmm_guest_image_begin, vmm_guest_image_end};
}

} // namespace vmm
