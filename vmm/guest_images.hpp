// Everything that lies in guest memory when the first vCPU starts.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/guest_memory.hpp"
#include "loader/acpi.hpp"
#include "loader/boot_images.hpp"
#include "loader/image_file.hpp"
#include "loader/kernel.hpp"
#include "vmm/config.hpp"

namespace vmm {

/// The files a guest boots from: opened and checked, nothing loaded.
struct GuestFiles {
    loader::Kernel kernel;
    std::optional<loader::ImageFile> initrd;

    /// Throws Error: a file is missing, is not a kernel, is damaged.
    static GuestFiles open(const Config& config);
};

/// What the guest is told of its memory, and where its boot information lies.
class BootPlan {
  public:
    explicit BootPlan(std::uint64_t memory_bytes);
    [[nodiscard]] loader::BootLayout layout() const;

  private:
    std::vector<loader::MemoryMapEntry> memory_map_;
};

/// Writes kernel, initrd, command line, boot information, ACPI tables and reset vector. Throws Error where something
/// does not fit.
[[nodiscard]] loader::BootEntry load_guest(const GuestMemory& memory, const GuestFiles& files,
                                           std::string_view command_line, const loader::AcpiConfig& acpi,
                                           const loader::BootLayout& layout);

} // namespace vmm
