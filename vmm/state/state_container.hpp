// The format of a state file: named sections of bytes, with checksums.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace vmm {

/// A part of a state file.
struct StateSection {
    std::string name; ///< 1 to 24 bytes of a-z, 0-9, '-' and '_'
    std::uint32_t version = 1;
    bool is_required = true; ///< whether a reader that does not know the section must refuse the file
    std::vector<std::byte> content;

    friend bool operator==(const StateSection&, const StateSection&) = default;
};

/// The sections of a state file, and the version of this program that wrote it.
struct StateContainer {
    std::string writer; ///< for messages: at most 24 bytes of ASCII
    std::vector<StateSection> sections;

    friend bool operator==(const StateContainer&, const StateContainer&) = default;
};

// All numbers are in little-endian order.
//
//   0   8    magic: "VMMSTATE"
//   8   4    version of the format: 1
//   12  4    architecture, as an ELF file has it (e_machine): 62, x86-64
//   16  8    bytes of the whole file
//   24  4    number of sections
//   28  4    0
//   32  24   writer, filled up with zeros
//   56  8    0
//   64       the sections, one after the other:
//            0   24   name, filled up with zeros
//            24  4    version
//            28  4    flags: bit 0, required
//            32  8    bytes of the content
//            40  4    CRC-32C of the content
//            44  4    0
//            48       the content
//   end-4 4  CRC-32C of all before it
namespace state_container {

inline constexpr std::size_t kHeaderBytes = 64;
inline constexpr std::size_t kSectionHeaderBytes = 48;
inline constexpr std::size_t kMostNameBytes = 24;
inline constexpr std::size_t kMostSections = 64;
inline constexpr std::uint32_t kFormatVersion = 1;

} // namespace state_container

/// Throws Error if the sections together are larger than a state may be (kMostStateBytes).
[[nodiscard]] std::vector<std::byte> pack_sections(const StateContainer& container);

/// Returns the sections in `bytes`, which need not be trusted. The sections have different names. Throws Error if
/// `bytes` are no state file, are of another format or architecture, are truncated, or are damaged. If a section is
/// damaged, the error names it.
[[nodiscard]] StateContainer unpack_sections(std::span<const std::byte> bytes);

} // namespace vmm
