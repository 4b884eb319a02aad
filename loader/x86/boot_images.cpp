#include "loader/x86/boot_images.hpp"

#include <algorithm>
#include <cassert>
#include <string>
#include <vector>

#include "kvm/host/error.hpp"
#include "loader/placement.hpp"
#include "loader/x86/boot_params.hpp"
#include "loader/x86/entry_tables.hpp"
#include "loader/x86/pvh_start_info.hpp"

namespace vmm::loader {
namespace {

Placement placement_in_ram(std::span<const MemoryMapEntry> map) {
    std::vector<GuestRange> ram;
    for (const MemoryMapEntry& entry : map) {
        if (entry.kind == MemoryKind::kRam) {
            ram.push_back(entry.range);
        }
    }
    return Placement{ram};
}

void claim_boot_information(Placement& placement, const BootLayout& layout) {
    placement.claim({layout.zero_page, kZeroPageBytes}, "the zero page");
    placement.claim(layout.command_line, "the command line");
    placement.claim(layout.start_info, "the PVH start info");
    placement.claim({layout.gdt, sizeof(BootGdt)}, "the boot GDT");
    placement.claim({layout.page_tables, kIdentityMapBytes}, "the boot page tables");
}

/// Writes to a range that has been claimed before, and so is RAM.
void write_claimed(const GuestMemory& memory, GuestAddress address, std::span<const std::byte> bytes) {
    const bool is_ram = memory.copy_in(address, bytes);
    assert(is_ram);
    static_cast<void>(is_ram);
}

void write_command_line(const GuestMemory& memory, const BootImages& images, GuestRange room) {
    const std::string_view text = images.command_line;
    assert(room.size != 0);
    const std::uint64_t limit = std::min(images.kernel.max_command_line_bytes(), room.size - 1);
    if (text.size() > limit) {
        throw Error("the kernel command line has " + std::to_string(text.size()) + " bytes, but " +
                    images.kernel.name() + " takes " + std::to_string(limit) + " at most: shorten it");
    }
    if (text.find('\0') != std::string_view::npos) {
        throw Error("the kernel command line has a NUL character in it: remove it");
    }
    std::vector<std::byte> bytes(text.size() + 1);
    std::copy_n(std::as_bytes(std::span{text}).begin(), text.size(), bytes.begin());
    write_claimed(memory, room.base, bytes);
}

GuestRange load_initrd(const GuestMemory& memory, Placement& placement, const ImageFile& initrd, GuestAddress limit) {
    if (initrd.size() == 0) {
        throw Error("cannot use " + initrd.name() + " as the initrd: it is empty");
    }
    const auto base = placement.find_below(initrd.size(), kSmallPageBytes, limit);
    if (!base) {
        throw Error("the initrd " + initrd.name() + " has " + format_bytes(initrd.size()) +
                    ", but the largest free piece of guest memory below " + to_string(limit) + " has " +
                    format_bytes(placement.largest_free_below(limit)) +
                    ": give the guest more memory (Config::memory_bytes)");
    }
    const GuestRange range{*base, initrd.size()};
    placement.claim(range, "the initrd " + initrd.name());
    initrd.read_into(memory, range.base, 0, range.size);
    return range;
}

void write_linux(const GuestMemory& memory, const BootInfo& info, const BootLayout& layout, const Kernel& kernel,
                 GuestAddress kernel_base) {
    const bool is_64_bit = kernel.protocol() == EntryProtocol::kLinux64;
    write_claimed(memory, layout.zero_page, build_zero_page(info, kernel.setup_header(), kernel_base));
    const BootGdt gdt = build_boot_gdt(is_64_bit ? CodeSize::k64Bit : CodeSize::k32Bit);
    write_claimed(memory, layout.gdt, std::as_bytes(std::span{gdt}));
    if (is_64_bit) {
        write_claimed(memory, layout.page_tables, build_identity_map(layout.page_tables));
    }
}

void write_pvh(const GuestMemory& memory, const BootInfo& info, const BootLayout& layout) {
    const std::vector<std::byte> start_info = build_pvh_start_info(info, layout.start_info.base);
    assert(start_info.size() <= layout.start_info.size);
    write_claimed(memory, layout.start_info.base, start_info);
}

} // namespace

BootEntry load_boot_images(const GuestMemory& memory, const BootImages& images, const BootLayout& layout) {
    Placement placement = placement_in_ram(layout.memory_map);
    claim_boot_information(placement, layout);
    write_command_line(memory, images, layout.command_line);

    const LoadedKernel kernel = images.kernel.load(memory, placement);
    const auto linux64_entry = layout.setup_data ? images.kernel.linux64_entry() : std::nullopt;
    BootEntry entry{.protocol = linux64_entry ? EntryProtocol::kLinux64 : images.kernel.protocol(),
                    .entry = linux64_entry.value_or(kernel.entry),
                    .argument = layout.zero_page,
                    .kernel = kernel.range,
                    .initrd = std::nullopt};
    if (images.initrd != nullptr) {
        entry.initrd = load_initrd(memory, placement, *images.initrd, images.kernel.initrd_limit());
    }

    const BootInfo info{.command_line = layout.command_line.base,
                        .initrd = entry.initrd,
                        .rsdp = layout.rsdp,
                        .setup_data = layout.setup_data,
                        .memory_map = layout.memory_map};
    switch (entry.protocol) {
    case EntryProtocol::kLinux64:
    case EntryProtocol::kLinux32:
        write_linux(memory, info, layout, images.kernel, kernel.range.base);
        break;
    case EntryProtocol::kPvh:
        write_pvh(memory, info, layout);
        entry.argument = layout.start_info.base;
        break;
    }
    return entry;
}

} // namespace vmm::loader
