#include "vmm/machine/guest_images.hpp"

#include <cassert>

#include "kvm/host/error.hpp"
#include "loader/acpi.hpp"
#include "loader/device_tree.hpp"
#include "loader/x86/reset_vector.hpp"
#include "vmm/guest/guest_image.hpp"

namespace vmm {

namespace {

void write_reserved(const GuestMemory& memory, GuestAddress address, std::span<const std::byte> bytes) {
    [[maybe_unused]] const bool written = memory.copy_in(address, bytes);
    assert(written);
}

/// Throws Error if `bytes` do not fit. Sizes depend on the host (its NUMA nodes), the kernel (its longest command line)
/// and the user.
void check_room(const std::string& what, std::size_t bytes, GuestRange room) {
    if (bytes > room.size) {
        throw Error("cannot give the guest " + what + " of " + format_bytes(bytes) + ": there is room for " +
                    format_bytes(room.size) + " (take a shorter command line, fewer vCPUs, or no Config::numa=split)");
    }
}

std::vector<std::byte> write_device_tree(const GuestMemory& memory, const loader::Hardware& hardware,
                                         const loader::DeviceTreeBoot& boot) {
    std::vector<std::byte> tree = loader::build_device_tree(hardware, boot);
    const auto setup_data = loader::build_setup_dtb(tree);
    check_room("the device tree", setup_data.size(), memory_map::kDeviceTree);
    write_reserved(memory, memory_map::kDeviceTree.base, setup_data);
    return tree;
}

} // namespace

namespace {

loader::ImageFile open_kernel(const Config& config, int stop_fd) {
    using loader::ImageFile;
    if (config.kernel_image) {
        return {"the kernel in memory", config.kernel_image};
    }
    return config.kernel_path.empty() ? ImageFile::from_bytes("the built-in guest", builtin_guest_image())
                                      : ImageFile(config.kernel_path, ImageFile::kMaxStreamBytes, stop_fd);
}

/// Throws Error if `kernel` has no way to get a device tree.
void check_takes_device_tree(const loader::Kernel& kernel, HardwareDescription hardware) {
    if (hardware == HardwareDescription::kAcpi || kernel.device_tree_hand_over() != loader::DeviceTreeHandOver::kNone) {
        return;
    }
    const std::string tried = "cannot tell " + kernel.name() + " of its hardware by a device tree (Config::hardware=" +
                              std::string(to_string(hardware)) + "): ";
    if (kernel.protocol() != loader::EntryProtocol::kPvh) {
        throw Error(tried + "its boot protocol is older than 2.09 (Linux 2.6.26), which brought the list that hands "
                            "trees over (take a newer kernel, or Config::hardware=acpi)");
    }
    throw Error(tried +
                "it is a PVH kernel other than Linux, and PVH hands no tree over (use a bzImage or a vmlinux of "
                "Linux with CONFIG_OF, or Config::hardware=acpi)");
}

} // namespace

GuestFiles GuestFiles::open(const Config& config, int stop_fd) {
    GuestFiles files{loader::Kernel::parse(open_kernel(config, stop_fd)), std::nullopt};
    check_takes_device_tree(files.kernel, config.hardware);
    if (config.initrd_image) {
        files.initrd.emplace("the initrd in memory", config.initrd_image);
    } else if (!config.initrd_path.empty()) {
        // A pipe may give more than fits.
        files.initrd.emplace(config.initrd_path, config.memory_bytes, stop_fd);
    }
    return files;
}

BootPlan::BootPlan(std::uint64_t memory_bytes, HardwareDescription hardware, bool has_pci)
    : memory_map_(memory_map::guest_memory_map(memory_bytes, has_pci)), hardware_(hardware) {}

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
        check_room("ACPI tables", tables.size(), memory_map::kAcpiTables);
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
