// A kernel file of any format we can boot.
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

/// How a kernel is told of a device tree.
enum class DeviceTreeHandOver {
    kNone,        ///< not at all
    kSetupData,   ///< SETUP_DTB in the list that begins in the zero page; it is entered by linux64 or linux32
    kCommandLine, ///< the word fdt=ADDRESS
};

/// A kernel file that has been read and checked; nothing of it is in guest memory yet.
///
/// Threads: const after construction, but for close_file().
class Kernel {
  public:
    /// Tells an ELF vmlinux from a bzImage by content. Throws Error if the file is neither, is damaged, or is a
    /// kernel that cannot run here; the message says what the file looks like.
    static Kernel parse(ImageFile file);

    /// The file's name, for messages.
    [[nodiscard]] const std::string& name() const noexcept { return file_.name(); }
    /// How the kernel wants to be entered. A vmlinux with a PVH note is entered by PVH.
    [[nodiscard]] EntryProtocol protocol() const noexcept;
    /// "bzImage", "32-bit bzImage", "ELF vmlinux", "32-bit ELF vmlinux" or "ELF vmlinux with PVH entry", for messages
    /// and reports.
    [[nodiscard]] std::string_view format_name() const noexcept;
    /// Whether the kernel declares that it runs on page tables it is given (ElfImage::takes_page_tables).
    [[nodiscard]] bool takes_page_tables() const noexcept;
    [[nodiscard]] DeviceTreeHandOver device_tree_hand_over() const noexcept;
    /// Where a kernel that by protocol() is entered by PVH is entered by linux64, if it can be.
    [[nodiscard]] std::optional<GuestAddress> linux64_entry() const noexcept;
    /// The longest command line the kernel reads, in bytes, without the terminating NUL.
    [[nodiscard]] std::uint64_t max_command_line_bytes() const noexcept;
    /// No byte of the initrd may lie at or above this address. At most 4 GiB.
    [[nodiscard]] GuestAddress initrd_limit() const noexcept;
    /// The bytes of a bzImage's setup header, which belong at 0x1f1 of the zero page; empty for an ELF kernel.
    [[nodiscard]] std::span<const std::byte> setup_header() const noexcept;

    /// Claims the kernel's place in `placement` (which must hold no more than what `memory` has) and reads it there.
    /// Throws Error if the place is taken or is not RAM, or the file cannot be read.
    [[nodiscard]] LoadedKernel load(const GuestMemory& memory, Placement& placement) const;

    /// Gives the file back; load() must not be called any more. For when the kernel is in guest memory.
    void close_file() { file_ = ImageFile(file_.name(), nullptr); }

  private:
    using Image = std::variant<ElfImage, BzImage>;
    Kernel(ImageFile file, Image image) noexcept;

    ImageFile file_;
    Image image_;
};

} // namespace vmm::loader
