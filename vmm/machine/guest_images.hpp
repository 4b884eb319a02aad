// Everything that lies in guest memory when the first vCPU starts.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/host/guest_memory.hpp"
#include "loader/boot_images.hpp"
#include "loader/boot_params.hpp"
#include "loader/hardware.hpp"
#include "loader/image_file.hpp"
#include "loader/kernel.hpp"
#include "vmm/config.hpp"
#include "vmm/machine/memory_map.hpp"

namespace vmm {

/// The files a guest boots from: opened and checked, nothing loaded.
struct GuestFiles {
    loader::Kernel kernel;
    std::optional<loader::ImageFile> initrd;

    /// `stop_fd` is readable from a request to stop on, which ends the wait for a pipe; a loan that outlives this, and
    /// negative where there is none. Throws Error: a file is missing, is not a kernel, is damaged, or has no way to be
    /// told of the hardware as `config.hardware` says. Throws StoppedError.
    static GuestFiles open(const Config& config, int stop_fd = -1);
};

/// What the guest is told of its memory, and where its boot information lies.
class BootPlan {
  public:
    BootPlan(std::uint64_t memory_bytes, HardwareDescription hardware);
    [[nodiscard]] loader::BootLayout layout() const;

  private:
    std::vector<loader::MemoryMapEntry> memory_map_;
    HardwareDescription hardware_;
};

/// Where the device tree itself lies, if there is one.
inline constexpr GuestAddress kDeviceTreeAddress{to_integer(memory_map::kDeviceTree.base) +
                                                 loader::kSetupDataHeaderBytes};

struct LoadedGuest {
    loader::BootEntry entry;
    std::vector<std::byte> device_tree; ///< a copy; empty: the guest has none
};

/// Writes kernel, initrd, command line, boot information, what tells of `hardware` as `layout` wants it, and the reset
/// vector. Throws Error where something does not fit.
[[nodiscard]] LoadedGuest load_guest(const GuestMemory& memory, const GuestFiles& files, std::string_view command_line,
                                     const loader::Hardware& hardware, const loader::BootLayout& layout);

} // namespace vmm
