#include "loader/kernel.hpp"

#include <utility>

#include "loader/foreign_image.hpp"

namespace vmm::loader {
namespace {

/// COMMAND_LINE_SIZE of Linux on x86, minus the NUL. An ELF kernel does not state its own limit.
constexpr std::uint64_t kElfCommandLineBytes = 2047;

} // namespace

Kernel::Kernel(ImageFile file, Image image) noexcept : file_(std::move(file)), image_(std::move(image)) {}

Kernel Kernel::parse(ImageFile file) {
    if (ElfImage::recognises(file)) {
        ElfImage image = ElfImage::parse(file);
        return {std::move(file), std::move(image)};
    }
    if (BzImage::recognises(file)) {
        BzImage image = BzImage::parse(file);
        return {std::move(file), std::move(image)};
    }
    const ForeignImage foreign = describe_foreign_image(file);
    refuse_kernel(file, "it is " + foreign.what, foreign.advice);
}

EntryProtocol Kernel::protocol() const noexcept {
    const auto* const elf = std::get_if<ElfImage>(&image_);
    return elf != nullptr ? elf->protocol() : std::get_if<BzImage>(&image_)->protocol();
}

bool Kernel::takes_page_tables() const noexcept {
    const auto* const elf = std::get_if<ElfImage>(&image_);
    return elf != nullptr && elf->takes_page_tables();
}

DeviceTreeHandOver Kernel::device_tree_hand_over() const noexcept {
    if (const auto* const bzimage = std::get_if<BzImage>(&image_)) {
        return bzimage->takes_setup_data() ? DeviceTreeHandOver::kSetupData : DeviceTreeHandOver::kNone;
    }
    if (protocol() == EntryProtocol::kLinux64 || linux64_entry()) {
        return DeviceTreeHandOver::kSetupData;
    }
    const auto* const elf = std::get_if<ElfImage>(&image_);
    if (elf != nullptr && elf->takes_device_tree_address()) {
        return DeviceTreeHandOver::kCommandLine;
    }
    // A vmlinux that is entered by linux32 gets a zero page of protocol 2.12, which has the list of setup_data.
    return protocol() == EntryProtocol::kLinux32 ? DeviceTreeHandOver::kSetupData : DeviceTreeHandOver::kNone;
}

std::optional<GuestAddress> Kernel::linux64_entry() const noexcept {
    const auto* const elf = std::get_if<ElfImage>(&image_);
    return elf != nullptr ? elf->linux64_entry() : std::nullopt;
}

std::string_view Kernel::format_name() const noexcept {
    if (std::holds_alternative<BzImage>(image_)) {
        return protocol() == EntryProtocol::kLinux32 ? "32-bit bzImage" : "bzImage";
    }
    switch (protocol()) {
    case EntryProtocol::kPvh:
        return "ELF vmlinux with PVH entry";
    case EntryProtocol::kLinux32:
        return "32-bit ELF vmlinux";
    case EntryProtocol::kLinux64:
        break;
    }
    return "ELF vmlinux";
}

std::uint64_t Kernel::max_command_line_bytes() const noexcept {
    const auto* bzimage = std::get_if<BzImage>(&image_);
    return bzimage != nullptr ? bzimage->max_command_line_bytes() : kElfCommandLineBytes;
}

GuestAddress Kernel::initrd_limit() const noexcept {
    const auto* bzimage = std::get_if<BzImage>(&image_);
    return bzimage != nullptr ? bzimage->initrd_limit() : GuestAddress{4 * kGiB};
}

std::span<const std::byte> Kernel::setup_header() const noexcept {
    const auto* bzimage = std::get_if<BzImage>(&image_);
    return bzimage != nullptr ? bzimage->setup_header() : std::span<const std::byte>{};
}

LoadedKernel Kernel::load(const GuestMemory& memory, Placement& placement) const {
    return std::visit([&](const auto& image) { return image.load(file_, memory, placement); }, image_);
}

} // namespace vmm::loader
