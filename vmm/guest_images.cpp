#include "vmm/guest_images.hpp"

#include <cassert>

#include "loader/reset_vector.hpp"
#include "vmm/guest/guest_image.hpp"
#include "vmm/memory_map.hpp"

namespace vmm {

GuestFiles GuestFiles::open(const Config& config) {
    using loader::ImageFile;
    ImageFile kernel = config.kernel_path.empty() ? ImageFile::from_bytes("the built-in guest", builtin_guest_image())
                                                  : ImageFile(config.kernel_path);
    GuestFiles files{loader::Kernel::parse(std::move(kernel)), std::nullopt};
    if (!config.initrd_path.empty()) {
        files.initrd.emplace(config.initrd_path);
    }
    return files;
}

BootPlan::BootPlan(std::uint64_t memory_bytes) : memory_map_(memory_map::guest_memory_map(memory_bytes)) {}

loader::BootLayout BootPlan::layout() const {
    return {.zero_page = memory_map::kZeroPage,
            .command_line = memory_map::kCommandLine,
            .start_info = memory_map::kStartInfo,
            .gdt = memory_map::kGdt,
            .page_tables = memory_map::kBootPageTables,
            .rsdp = memory_map::kAcpiTables.base,
            .memory_map = memory_map_};
}

loader::BootEntry load_guest(const GuestMemory& memory, const GuestFiles& files, std::string_view command_line,
                             const loader::AcpiConfig& acpi, const loader::BootLayout& layout) {
    const loader::BootEntry entry =
        loader::load_boot_images(memory, {files.kernel, files.initrd ? &*files.initrd : nullptr, command_line}, layout);
    const auto tables = loader::build_acpi_tables(acpi);
    assert(tables.size() <= memory_map::kAcpiTables.size);
    [[maybe_unused]] bool written = memory.copy_in(acpi.base, tables);
    assert(written);
    const auto reset_vector = loader::build_reset_vector(acpi.reset_port, acpi.reset_value);
    written = memory.copy_in(loader::kResetVector, reset_vector);
    assert(written);
    return entry;
}

} // namespace vmm
