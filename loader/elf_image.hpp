// A kernel in the form of an ELF executable, e.g. Linux' vmlinux.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "kvm/host/guest_address.hpp"
#include "kvm/host/guest_memory.hpp"
#include "loader/image_file.hpp"
#include "loader/loaded_kernel.hpp"
#include "loader/placement.hpp"

namespace vmm::loader {

/// What a PT_LOAD header asks for: `file_bytes` from `file_offset` on, zeros for the rest of `range`.
struct ElfSegment {
    GuestRange range; ///< not empty, not wrapping
    std::uint64_t file_offset = 0;
    std::uint64_t file_bytes = 0; ///< at most range.size
};

/// The parts of an x86 ELF executable, 64-bit or 32-bit, that are loaded, and where it is entered (System V ABI,
/// chapters 4 and 5). Physical addresses count, not virtual ones: a kernel is entered before it has page tables of its
/// own.
class ElfImage {
  public:
    /// A file with more program headers than this is no kernel: vmlinux has five.
    static constexpr unsigned kMaxProgramHeaders = 64;
    /// Notes longer than this are refused: those of vmlinux are some hundred bytes.
    static constexpr std::uint64_t kMaxNoteBytes = kMiB;

    /// True if the file starts as an ELF file does.
    [[nodiscard]] static bool recognises(const ImageFile& file);
    /// Checks every header. Throws Error if the file is damaged or is no x86 kernel.
    [[nodiscard]] static ElfImage parse(const ImageFile& file);

    /// `pvh` if the file has the note XEN_ELFNOTE_PHYS32_ENTRY, else `linux64` or `linux32` by its class.
    [[nodiscard]] EntryProtocol protocol() const noexcept { return protocol_; }
    [[nodiscard]] GuestAddress entry() const noexcept { return entry_; }

    /// Whether a note (owner "vmm", type 1) says that the kernel runs on page tables it is given by the word
    /// `tables=ADDRESS` of its command line (docs/prefault.md).
    [[nodiscard]] bool takes_page_tables() const noexcept { return takes_page_tables_; }
    /// Whether a note (owner "vmm", type 2) says that the kernel reads the device tree whose address the word
    /// `fdt=ADDRESS` of its command line gives (docs/devices.md).
    [[nodiscard]] bool takes_device_tree_address() const noexcept { return takes_device_tree_address_; }
    /// Where a kernel with a PVH note is entered by `linux64` instead, if it can be: one that notes of Linux' own
    /// (owner "Linux") show to be a vmlinux has that protocol's entry in its ELF header.
    [[nodiscard]] std::optional<GuestAddress> linux64_entry() const noexcept { return linux64_entry_; }

    /// Loads from `file`, which must be the one that was parsed. Throws Error as Kernel::load.
    [[nodiscard]] LoadedKernel load(const ImageFile& file, const GuestMemory& memory, Placement& placement) const;

  private:
    std::vector<ElfSegment> segments_; // none is empty
    EntryProtocol protocol_ = EntryProtocol::kLinux64;
    GuestAddress entry_{};
    bool takes_page_tables_ = false;
    bool takes_device_tree_address_ = false;
    std::optional<GuestAddress> linux64_entry_;
};

} // namespace vmm::loader
