// Handmade correct kernel files. Tests damage them.
#pragma once

#include <elf.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "kvm/host/error.hpp"
#include "kvm/host/guest_memory.hpp"
#include "loader/image_file.hpp"
#include "loader/kernel.hpp"

namespace vmm::loader::testing {

/// The message of the vmm::Error that `action` throws, or "" if it throws nothing.
template <typename Action>
std::string error_of(Action action) {
    try {
        static_cast<void>(action());
    } catch (const Error& error) {
        return error.what();
    }
    return {};
}

[[nodiscard]] inline bool mentions(const std::string& text, std::string_view part) {
    return text.find(part) != std::string::npos;
}

/// `count` bytes that are neither zero nor all the same.
[[nodiscard]] inline std::vector<std::byte> pattern(std::size_t count) {
    std::vector<std::byte> bytes(count);
    for (std::size_t i = 0; i < count; ++i) {
        bytes[i] = static_cast<std::byte>(1 + i % 251);
    }
    return bytes;
}

[[nodiscard]] inline std::vector<std::byte> bytes_of(std::string_view text) {
    const auto bytes = std::as_bytes(std::span{text});
    return {bytes.begin(), bytes.end()};
}

template <typename T>
void append_object(std::vector<std::byte>& bytes, const T& object) {
    static_assert(std::is_trivially_copyable_v<T>);
    const auto raw = std::as_bytes(std::span{&object, 1});
    bytes.insert(bytes.end(), raw.begin(), raw.end());
}

[[nodiscard]] inline GuestMemory guest_memory(std::uint64_t size) {
    const GuestRange range{GuestAddress{0}, size};
    return {std::span{&range, 1}, PageSize::k4K};
}

/// An ELF file: header, program headers, then `content`, which starts at file offset kContentOffset.
struct TestElf {
    static constexpr std::uint64_t kContentOffset = 0x200;
    static constexpr std::uint64_t kAddress = 0x100000; // of the one segment
    static constexpr std::uint64_t kFileBytes = 64;     // of it
    static constexpr std::uint64_t kMemoryBytes = 8192; // of it
    static constexpr std::uint64_t kEntry = kAddress + 16;
    static constexpr std::uint64_t kPvhEntry = kAddress + 32;

    Elf64_Ehdr header{};
    std::vector<Elf64_Phdr> program_headers;
    std::vector<std::byte> content;

    [[nodiscard]] std::vector<std::byte> bytes() const {
        std::vector<std::byte> all;
        append_object(all, header);
        for (const Elf64_Phdr& program_header : program_headers) {
            append_object(all, program_header);
        }
        all.resize(kContentOffset);
        all.insert(all.end(), content.begin(), content.end());
        return all;
    }
    [[nodiscard]] ImageFile file() const { return ImageFile::from_bytes("test-vmlinux", bytes()); }
    /// The same file for 32-bit x86.
    [[nodiscard]] ImageFile file32() const {
        Elf32_Ehdr narrow{};
        std::memcpy(&narrow.e_ident, &header.e_ident, EI_NIDENT);
        narrow.e_ident[EI_CLASS] = ELFCLASS32;
        narrow.e_type = header.e_type;
        narrow.e_machine = EM_386;
        narrow.e_version = EV_CURRENT;
        narrow.e_entry = static_cast<Elf32_Addr>(header.e_entry);
        narrow.e_phoff = sizeof narrow;
        narrow.e_phentsize = sizeof(Elf32_Phdr);
        narrow.e_phnum = header.e_phnum;
        std::vector<std::byte> all;
        append_object(all, narrow);
        for (const Elf64_Phdr& wide : program_headers) {
            append_object(all, Elf32_Phdr{.p_type = wide.p_type,
                                          .p_offset = static_cast<Elf32_Off>(wide.p_offset),
                                          .p_vaddr = static_cast<Elf32_Addr>(wide.p_vaddr),
                                          .p_paddr = static_cast<Elf32_Addr>(wide.p_paddr),
                                          .p_filesz = static_cast<Elf32_Word>(wide.p_filesz),
                                          .p_memsz = static_cast<Elf32_Word>(wide.p_memsz),
                                          .p_flags = wide.p_flags,
                                          .p_align = static_cast<Elf32_Word>(wide.p_align)});
        }
        all.resize(kContentOffset);
        all.insert(all.end(), content.begin(), content.end());
        return ImageFile::from_bytes("test-vmlinux32", all);
    }
    [[nodiscard]] std::string parse_error() const {
        return error_of([this] { return Kernel::parse(file()); });
    }
};

/// One segment of kFileBytes bytes of `pattern` and zeros up to kMemoryBytes.
[[nodiscard]] inline TestElf make_elf() {
    TestElf elf;
    std::memcpy(&elf.header.e_ident, ELFMAG, SELFMAG);
    elf.header.e_ident[EI_CLASS] = ELFCLASS64;
    elf.header.e_ident[EI_DATA] = ELFDATA2LSB;
    elf.header.e_ident[EI_VERSION] = EV_CURRENT;
    elf.header.e_type = ET_EXEC;
    elf.header.e_machine = EM_X86_64;
    elf.header.e_version = EV_CURRENT;
    elf.header.e_entry = TestElf::kEntry;
    elf.header.e_phoff = sizeof(Elf64_Ehdr);
    elf.header.e_ehsize = sizeof(Elf64_Ehdr);
    elf.header.e_phentsize = sizeof(Elf64_Phdr);
    elf.header.e_phnum = 1;
    Elf64_Phdr segment{};
    segment.p_type = PT_LOAD;
    segment.p_flags = PF_R | PF_W | PF_X;
    segment.p_offset = TestElf::kContentOffset;
    segment.p_vaddr = 0xffffffff80000000 + TestElf::kAddress;
    segment.p_paddr = TestElf::kAddress;
    segment.p_filesz = TestElf::kFileBytes;
    segment.p_memsz = TestElf::kMemoryBytes;
    elf.program_headers.push_back(segment);
    elf.content = pattern(TestElf::kFileBytes);
    return elf;
}

/// One note, padded to `alignment`.
[[nodiscard]] inline std::vector<std::byte> make_note(std::string_view name, std::uint32_t type,
                                                      std::span<const std::byte> content, std::size_t alignment = 4) {
    const auto pad = [alignment](std::vector<std::byte>& bytes) {
        bytes.resize((bytes.size() + alignment - 1) / alignment * alignment);
    };
    std::vector<std::byte> bytes;
    append_object(bytes, static_cast<std::uint32_t>(name.size() + 1));
    append_object(bytes, static_cast<std::uint32_t>(content.size()));
    append_object(bytes, type);
    for (const char c : name) {
        append_object(bytes, c);
    }
    bytes.emplace_back();
    pad(bytes);
    bytes.insert(bytes.end(), content.begin(), content.end());
    pad(bytes);
    return bytes;
}

constexpr std::uint32_t kPvhNoteType = 18;

/// Appends `notes` to the content, and a PT_NOTE header for them.
inline void add_notes(TestElf& elf, const std::vector<std::byte>& notes, std::uint64_t alignment = 4) {
    Elf64_Phdr header{};
    header.p_type = PT_NOTE;
    header.p_offset = TestElf::kContentOffset + elf.content.size();
    header.p_filesz = notes.size();
    header.p_memsz = notes.size();
    header.p_align = alignment;
    elf.program_headers.push_back(header);
    elf.header.e_phnum = static_cast<Elf64_Half>(elf.program_headers.size());
    elf.content.insert(elf.content.end(), notes.begin(), notes.end());
}

/// Like make_elf, with a PVH note.
[[nodiscard]] inline TestElf make_pvh_elf() {
    TestElf elf = make_elf();
    add_notes(elf, make_note("Xen", kPvhNoteType, std::as_bytes(std::span{&TestElf::kPvhEntry, 1})));
    return elf;
}

/// A bzImage with the first bytes of an EFI stub, like those of distributions.
struct TestBzImage {
    static constexpr std::uint64_t kSetupSectors = 2;
    static constexpr std::uint64_t kPayloadOffset = (1 + kSetupSectors) * 512;
    static constexpr std::uint64_t kPayloadBytes = 4096;
    static constexpr std::uint64_t kPreferredAddress = 2 * kMiB;
    static constexpr std::uint32_t kInitBytes = kMiB;
    static constexpr std::uint32_t kAlignment = 64 * kKiB;
    static constexpr std::uint32_t kInitrdAddrMax = 0x37ffffff;

    std::vector<std::byte> bytes;

    template <typename T>
    void set(std::size_t offset, T value) {
        std::memcpy(bytes.data() + offset, &value, sizeof value);
    }
    [[nodiscard]] ImageFile file() const { return ImageFile::from_bytes("test-vmlinuz", bytes); }
    [[nodiscard]] std::string parse_error() const {
        return error_of([this] { return Kernel::parse(file()); });
    }
};

[[nodiscard]] inline TestBzImage make_bzimage() {
    TestBzImage image;
    image.bytes.resize(TestBzImage::kPayloadOffset);
    const auto payload = pattern(TestBzImage::kPayloadBytes);
    image.bytes.insert(image.bytes.end(), payload.begin(), payload.end());
    image.set(0, std::array{'M', 'Z'});
    image.set(0x1f1, static_cast<std::uint8_t>(TestBzImage::kSetupSectors));
    image.set(0x1f4, static_cast<std::uint32_t>(TestBzImage::kPayloadBytes / 16));
    image.set(0x1fe, std::uint16_t{0xaa55});
    image.set(0x200, std::uint8_t{0xeb});
    image.set(0x201, std::uint8_t{0x6a}); // up to 0x26c
    image.set(0x202, std::array{'H', 'd', 'r', 'S'});
    image.set(0x206, std::uint16_t{0x20f});
    image.set(0x211, std::uint8_t{0x01}); // LOADED_HIGH
    image.set(0x22c, TestBzImage::kInitrdAddrMax);
    image.set(0x230, TestBzImage::kAlignment);
    image.set(0x234, std::uint8_t{1});     // relocatable
    image.set(0x236, std::uint16_t{0x01}); // XLF_KERNEL_64
    image.set(0x238, std::uint32_t{2047});
    image.set(0x258, TestBzImage::kPreferredAddress);
    image.set(0x260, TestBzImage::kInitBytes);
    return image;
}

} // namespace vmm::loader::testing
