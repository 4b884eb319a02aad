// A Linux kernel in the format that distributions ship: a bzImage, usually called vmlinuz.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvm/host/guest_address.hpp"
#include "kvm/host/guest_memory.hpp"
#include "loader/image_file.hpp"
#include "loader/loaded_kernel.hpp"
#include "loader/placement.hpp"

namespace vmm::loader {

/// A bzImage of boot protocol 2.02 or later (Documentation/arch/x86/boot.rst; Linux 2.4). Only its protected-mode part
/// is loaded, which decompresses the kernel in place. It is entered in 64-bit mode if it has an entry point for that
/// (2.12, Linux 3.8), and otherwise by the 32-bit protocol.
class BzImage {
  public:
    /// True if the file has the magic "HdrS" at the place where a bzImage has it.
    [[nodiscard]] static bool recognises(const ImageFile& file);
    /// Checks the setup header. Throws Error if it is damaged, or the kernel is too old.
    [[nodiscard]] static BzImage parse(const ImageFile& file);

    /// linux64 or linux32.
    [[nodiscard]] EntryProtocol protocol() const noexcept { return protocol_; }
    /// True if the kernel reads the list of setup_data, which can hold a device tree: since protocol 2.09.
    [[nodiscard]] bool takes_setup_data() const noexcept { return takes_setup_data_; }
    /// The setup header as in the file, from 0x1f1 on.
    [[nodiscard]] std::span<const std::byte> setup_header() const noexcept { return setup_header_; }
    /// The longest command line, in bytes, without the terminating NUL.
    [[nodiscard]] std::uint64_t max_command_line_bytes() const noexcept { return max_command_line_bytes_; }
    /// No byte of the initrd may lie at or above this address. At most 4 GiB.
    [[nodiscard]] GuestAddress initrd_limit() const noexcept { return initrd_limit_; }

    /// Loads the kernel at its preferred address. If that is taken and the kernel is relocatable, loads it at the
    /// lowest free address above. Claims all the memory that decompression needs. `file` must be the one that was
    /// parsed. Throws Error as Kernel::load() does.
    [[nodiscard]] LoadedKernel load(const ImageFile& file, const GuestMemory& memory, Placement& placement) const;

  private:
    /// The offset of the first instruction in the protected-mode part.
    [[nodiscard]] std::uint64_t entry_offset() const noexcept;

    std::vector<std::byte> setup_header_;
    EntryProtocol protocol_ = EntryProtocol::kLinux64;
    bool takes_setup_data_ = false;
    std::uint64_t max_command_line_bytes_ = 0;
    GuestAddress initrd_limit_{};
    std::uint64_t file_offset_ = 0;  // of the protected-mode part
    std::uint64_t file_bytes_ = 0;   // its length
    std::uint64_t memory_bytes_ = 0; // what the kernel needs until it knows its memory map; at least file_bytes_
    GuestAddress preferred_address_{};
    std::uint64_t alignment_ = 0; // a power of two, or 0 if the kernel is not relocatable
};

} // namespace vmm::loader
