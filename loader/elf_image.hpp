// A kernel that is an ELF executable, e.g. Linux' vmlinux.
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

/// What a PT_LOAD header describes: `file_bytes` from `file_offset` on, and zeros for the rest of `range`.
struct ElfSegment {
    GuestRange range; ///< not empty; does not wrap
    std::uint64_t file_offset = 0;
    std::uint64_t file_bytes = 0; ///< at most range.size
};

/// Holds the loadable parts of an x86 ELF executable of 64 or 32 bits, and its entry point (System V ABI, chapters 4
/// and 5). It uses physical addresses, not virtual ones, because a kernel is entered before it has its own page tables.
class ElfImage {
  public:
    /// A file with more program headers than this is not a kernel: vmlinux has five.
    static constexpr unsigned kMaxProgramHeaders = 64;
    /// Notes longer than this are refused: those of vmlinux are some hundred bytes.
    static constexpr std::uint64_t kMaxNoteBytes = kMiB;

    /// True if the file starts like an ELF file.
    [[nodiscard]] static bool recognises(const ImageFile& file);
    /// Checks every header. Throws Error if the file is damaged or is not an x86 kernel.
    [[nodiscard]] static ElfImage parse(const ImageFile& file);

    /// `pvh` if the file has the note XEN_ELFNOTE_PHYS32_ENTRY, else `linux64` or `linux32` by its class.
    [[nodiscard]] EntryProtocol protocol() const noexcept { return protocol_; }
    [[nodiscard]] GuestAddress entry() const noexcept { return entry_; }

    /// True if a note (owner "vmm", type 1) says that the kernel can run on page tables whose address is in the word
    /// `tables=ADDRESS` of its command line (docs/prefault.md).
    [[nodiscard]] bool takes_page_tables() const noexcept { return takes_page_tables_; }
    /// True if a note (owner "vmm", type 2) says that the kernel reads the device tree whose address is in the word
    /// `fdt=ADDRESS` of its command line (docs/devices.md).
    [[nodiscard]] bool takes_device_tree_address() const noexcept { return takes_device_tree_address_; }
    /// The linux64 entry of a kernel with a PVH note, if it has one. Notes of Linux' own (owner "Linux") show that the
    /// file is a vmlinux, and a vmlinux has that entry in its ELF header.
    [[nodiscard]] std::optional<GuestAddress> linux64_entry() const noexcept { return linux64_entry_; }

    /// Loads from `file`, which must be the one that was parsed. Throws Error as Kernel::load() does.
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
