// A kernel file in any format that we can boot.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "kvm/host/guest_address.hpp"
#include "kvm/host/guest_memory.hpp"
#include "loader/elf_image.hpp"
#include "loader/image_file.hpp"
#include "loader/loaded_kernel.hpp"
#include "loader/placement.hpp"
#include "loader/x86/bzimage.hpp"

namespace vmm::loader {

/// How a kernel receives a device tree.
enum class DeviceTreeHandOver {
    kNone,        ///< not at all
    kSetupData,   ///< SETUP_DTB in the list that begins in the zero page; needs linux64 or linux32
    kCommandLine, ///< the word fdt=ADDRESS
};

/// A kernel file that has been read and checked. Nothing of it is in guest memory yet.
///
/// Threads: const after construction, except for close_file().
class Kernel {
  public:
    /// Recognises an ELF vmlinux or a bzImage by its content. Throws Error if the file is neither, is damaged, or is a
    /// kernel that cannot run here; the message says what the file looks like.
    static Kernel parse(ImageFile file);

    /// The file's name, for messages.
    [[nodiscard]] const std::string& name() const noexcept { return file_.name(); }
    /// How the kernel wants to be entered. A vmlinux with a PVH note is entered by PVH.
    [[nodiscard]] EntryProtocol protocol() const noexcept;
    /// "bzImage", "32-bit bzImage", "ELF vmlinux", "32-bit ELF vmlinux" or "ELF vmlinux with PVH entry", for messages
    /// and reports.
    [[nodiscard]] std::string_view format_name() const noexcept;
    /// True if the kernel declares that it can run on given page tables (ElfImage::takes_page_tables).
    [[nodiscard]] bool takes_page_tables() const noexcept;
    [[nodiscard]] DeviceTreeHandOver device_tree_hand_over() const noexcept;
    /// The linux64 entry of a kernel whose protocol() is PVH, if it has one.
    [[nodiscard]] std::optional<GuestAddress> linux64_entry() const noexcept;
    /// The longest command line that the kernel reads, in bytes, without the terminating NUL.
    [[nodiscard]] std::uint64_t max_command_line_bytes() const noexcept;
    /// No byte of the initrd may lie at or above this address. At most 4 GiB.
    [[nodiscard]] GuestAddress initrd_limit() const noexcept;
    /// The bytes of a bzImage's setup header, which belong at 0x1f1 of the zero page. Empty for an ELF kernel.
    [[nodiscard]] std::span<const std::byte> setup_header() const noexcept;

    /// Claims the kernel's place in `placement` (which must hold no more than what `memory` has) and reads the kernel
    /// to that place. Throws Error if the place is taken or is not RAM, or the file cannot be read.
    [[nodiscard]] LoadedKernel load(const GuestMemory& memory, Placement& placement) const;

    /// Closes the file when the kernel is in guest memory. load() must not be called any more.
    void close_file() { file_ = ImageFile(file_.name(), nullptr); }

  private:
    using Image = std::variant<ElfImage, BzImage>;
    Kernel(ImageFile file, Image image) noexcept;

    ImageFile file_;
    Image image_;
};

} // namespace vmm::loader
