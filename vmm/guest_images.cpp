#include "vmm/guest_images.hpp"

#include <cassert>

#include "kvm/error.hpp"
#include "loader/acpi.hpp"
#include "loader/device_tree.hpp"
#include "loader/reset_vector.hpp"
#include "vmm/guest/guest_image.hpp"

namespace vmm {

namespace {

void write_reserved(const GuestMemory& memory, GuestAddress address, std::span<const std::byte> bytes) {
    [[maybe_unused]] const bool written = memory.copy_in(address, bytes);
    assert(written);
}

std::vector<std::byte> write_device_tree(const GuestMemory& memory, const loader::Hardware& hardware,
                                         const loader::DeviceTreeBoot& boot) {
    std::vector<std::byte> tree = loader::build_device_tree(hardware, boot);
    const auto setup_data = loader::build_setup_dtb(tree);
    assert(setup_data.size() <= memory_map::kDeviceTree.size);
    write_reserved(memory, memory_map::kDeviceTree.base, setup_data);
    return tree;
}

} // namespace

GuestFiles GuestFiles::open(const Config& config) {
    using loader::ImageFile;
    ImageFile kernel = config.kernel_path.empty() ? ImageFile::from_bytes("the built-in guest", builtin_guest_image())
                                                  : ImageFile(config.kernel_path);
    GuestFiles files{loader::Kernel::parse(std::move(kernel)), std::nullopt};
    if (config.hardware != HardwareDescription::kAcpi &&
        files.kernel.device_tree_hand_over() == loader::DeviceTreeHandOver::none) {
        throw Error("cannot tell " + files.kernel.name() +
                    " of its hardware by a device tree (--hardware=" + std::string(to_string(config.hardware)) +
                    "): it is a PVH kernel other than Linux, and PVH hands no tree over (use a bzImage or a vmlinux of "
                    "Linux with CONFIG_OF, or --hardware=acpi)");
    }
    if (!config.initrd_path.empty()) {
        files.initrd.emplace(config.initrd_path);
    }
    return files;
}

BootPlan::BootPlan(std::uint64_t memory_bytes, HardwareDescription hardware)
    : memory_map_(memory_map::guest_memory_map(memory_bytes)), hardware_(hardware) {}

loader::BootLayout BootPlan::layout() const {
    return {.zero_page = memory_map::kZeroPage,
            .command_line = memory_map::kCommandLine,
            .start_info = memory_map::kStartInfo,
            .gdt = memory_map::kGdt,
            .page_tables = memory_map::kBootPageTables,
            .rsdp = hardware_ != HardwareDescription::kFdt ? std::optional(memory_map::kAcpiTables.base) : std::nullopt,
            .setup_data =
                hardware_ != HardwareDescription::kAcpi ? std::optional(memory_map::kDeviceTree.base) : std::nullopt,
            .memory_map = memory_map_};
}

LoadedGuest load_guest(const GuestMemory& memory, const GuestFiles& files, std::string_view command_line,
                       const loader::Hardware& hardware, const loader::BootLayout& layout) {
    LoadedGuest loaded{
        loader::load_boot_images(memory, {files.kernel, files.initrd ? &*files.initrd : nullptr, command_line}, layout),
        {}};
    if (layout.rsdp) {
        const auto tables = loader::build_acpi_tables(hardware, *layout.rsdp);
        assert(tables.size() <= memory_map::kAcpiTables.size);
        write_reserved(memory, *layout.rsdp, tables);
    }
    if (layout.setup_data) {
        loaded.device_tree =
            write_device_tree(memory, hardware, {layout.memory_map, command_line, loaded.entry.initrd});
    }
    write_reserved(memory, loader::kResetVector, loader::build_reset_vector(hardware.reset_port, hardware.reset_value));
    return loaded;
}

} // namespace vmm
