// Kernel files: parsed, and loaded where they want to be.

#include <array>

#include "fuzz/require.hpp"
#include "fuzz/targets.hpp"
#include "kvm/error.hpp"
#include "kvm/guest_memory.hpp"
#include "loader/image_file.hpp"
#include "loader/kernel.hpp"
#include "loader/placement.hpp"

namespace vmm::fuzz {

void kernel(Bytes file) {
    constexpr std::array kRam{GuestRange{GuestAddress{0}, 8 * kMiB}};
    static const GuestMemory memory(kRam, PageSize::k4K);
    try {
        const loader::Kernel kernel = loader::Kernel::parse(loader::ImageFile::from_bytes("fuzz", file));
        loader::Placement placement(kRam);
        const loader::LoadedKernel loaded = kernel.load(memory, placement);
        require(memory.at(loaded.range).has_value(), "a kernel was loaded to where there is no memory");
        require(!placement.is_free(loaded.range), "the place of a kernel is still free");
    } catch (const Error& error) {
        require(error.what()[0] != '\0', "a kernel is refused without a word");
    }
}

} // namespace vmm::fuzz
