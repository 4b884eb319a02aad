// Everything that lies in guest memory when the first vCPU starts.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/host/guest_memory.hpp"
#include "loader/hardware.hpp"
#include "loader/image_file.hpp"
#include "loader/kernel.hpp"
#include "loader/x86/boot_images.hpp"
#include "loader/x86/boot_params.hpp"
#include "vmm/config.hpp"
#include "vmm/machine/memory_map.hpp"

namespace vmm {

/// The files that a guest boots from. They are opened and checked, and nothing is loaded.
struct GuestFiles {
    loader::Kernel kernel;
    std::optional<loader::ImageFile> initrd;

    /// `stop_fd` becomes readable when a stop is requested; that ends the wait for a pipe. It is a loan, and negative
    /// if there is none. Throws Error if a file is missing, is not a kernel, or is damaged, or if the kernel cannot be
    /// told of the hardware as `config.hardware` says. Throws StoppedError.
    static GuestFiles open(const Config& config, int stop_fd = -1);
};

/// The memory map that the guest is given, and the places of its boot information.
class BootPlan {
  public:
    BootPlan(std::uint64_t memory_bytes, HardwareDescription hardware, bool has_pci);
    [[nodiscard]] loader::BootLayout layout() const;

  private:
    std::vector<loader::MemoryMapEntry> memory_map_;
    HardwareDescription hardware_;
};

/// The address of the device tree, if there is one.
inline constexpr GuestAddress kDeviceTreeAddress{to_integer(memory_map::kDeviceTree.base) +
                                                 loader::kSetupDataHeaderBytes};

struct LoadedGuest {
    loader::BootEntry entry;
    std::vector<std::byte> device_tree; ///< a copy; empty: the guest has none
};

/// Writes the kernel, the initrd, the command line, the boot information and the reset vector. It describes `hardware`
/// in the way that `layout` asks for. Throws Error if something does not fit.
[[nodiscard]] LoadedGuest load_guest(const GuestMemory& memory, const GuestFiles& files, std::string_view command_line,
                                     const loader::Hardware& hardware, const loader::BootLayout& layout);

} // namespace vmm
