// Kernel files: they are parsed, and loaded at the addresses that they name.

#include <array>
#include <optional>
#include <span>

#include "fuzz/require.hpp"
#include "fuzz/targets.hpp"
#include "kvm/host/error.hpp"
#include "kvm/host/guest_memory.hpp"
#include "loader/image_file.hpp"
#include "loader/kernel.hpp"
#include "loader/placement.hpp"
#include "loader/x86/boot_images.hpp"

namespace vmm::fuzz {

namespace {

constexpr std::array kRam{GuestRange{GuestAddress{0}, 8 * kMiB}};

/// All steps with a kernel up to its first instruction, with ACPI tables and with a device tree.
void boot(const loader::Kernel& kernel, const GuestMemory& memory) {
    constexpr std::array kMap{
        loader::MemoryMapEntry{{GuestAddress{0}, 0xa0000}, loader::MemoryKind::kRam},
        loader::MemoryMapEntry{{GuestAddress{kMiB}, 7 * kMiB}, loader::MemoryKind::kRam},
    };
    loader::BootLayout layout{.zero_page = GuestAddress{0x7000},
                              .command_line = {GuestAddress{0x20000}, 4096},
                              .start_info = {GuestAddress{0x6000}, 4096},
                              .gdt = GuestAddress{0x500},
                              .page_tables = GuestAddress{0x9000},
                              .rsdp = GuestAddress{0xe0000},
                              .memory_map = kMap};
    static const loader::ImageFile kInitrd =
        loader::ImageFile::from_bytes("initrd", std::as_bytes(std::span("initrd")));
    for (const auto setup_data : {std::optional<GuestAddress>{}, std::optional(GuestAddress{0xc0000})}) {
        layout.setup_data = setup_data;
        if (setup_data && kernel.device_tree_hand_over() == loader::DeviceTreeHandOver::kNone) {
            continue;
        }
        try {
            const loader::BootEntry entry =
                loader::load_boot_images(memory, {kernel, &kInitrd, "console=ttyS0"}, layout);
            require(memory.at(entry.kernel).has_value(), "a kernel is where there is no memory");
            require(entry.initrd && memory.at(*entry.initrd), "an initrd is where there is no memory");
        } catch (const Error& error) {
            require(error.what()[0] != '\0', "a kernel is refused without a word");
        }
    }
}

} // namespace

void kernel(Bytes file) {
    static const GuestMemory kMemory(kRam, PageSize::k4K);
    try {
        const loader::Kernel kernel = loader::Kernel::parse(loader::ImageFile::from_bytes("fuzz", file));
        require(!kernel.format_name().empty(), "a kernel has no format");
        boot(kernel, kMemory);
        loader::Placement placement(kRam);
        const loader::LoadedKernel loaded = kernel.load(kMemory, placement);
        require(kMemory.at(loaded.range).has_value(), "a kernel was loaded to where there is no memory");
        require(!placement.is_free(loaded.range), "the place of a kernel is still free");
    } catch (const Error& error) {
        require(error.what()[0] != '\0', "a kernel is refused without a word");
    }
}

} // namespace vmm::fuzz
