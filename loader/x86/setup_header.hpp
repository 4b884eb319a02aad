// The offsets of the fields of Linux' setup header. They are the same in a bzImage and in the zero page.
#pragma once

#include <cstddef>
#include <cstdint>

/// Offsets from the start of the file or of the zero page, in bytes. The comments give the widths of the fields
/// (Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header").
namespace vmm::loader::setup_header {

inline constexpr std::size_t kBegin = 0x1f1;
inline constexpr std::size_t kSetupSectors = 0x1f1;       // 1
inline constexpr std::size_t kSysSize = 0x1f4;            // 4, in 16 bytes
inline constexpr std::size_t kBootFlag = 0x1fe;           // 2
inline constexpr std::size_t kJumpOffset = 0x201;         // 1, from kMagic to the end of the header
inline constexpr std::size_t kMagic = 0x202;              // 4
inline constexpr std::size_t kVersion = 0x206;            // 2
inline constexpr std::size_t kTypeOfLoader = 0x210;       // 1
inline constexpr std::size_t kLoadFlags = 0x211;          // 1
inline constexpr std::size_t kCode32Start = 0x214;        // 4
inline constexpr std::size_t kRamdiskImage = 0x218;       // 4
inline constexpr std::size_t kRamdiskSize = 0x21c;        // 4
inline constexpr std::size_t kCommandLinePointer = 0x228; // 4
inline constexpr std::size_t kInitrdAddrMax = 0x22c;      // 4
inline constexpr std::size_t kKernelAlignment = 0x230;    // 4
inline constexpr std::size_t kRelocatableKernel = 0x234;  // 1
inline constexpr std::size_t kXLoadFlags = 0x236;         // 2
inline constexpr std::size_t kCommandLineSize = 0x238;    // 4
inline constexpr std::size_t kSetupData = 0x250;          // 8
inline constexpr std::size_t kPrefAddress = 0x258;        // 8
inline constexpr std::size_t kInitSize = 0x260;           // 4
inline constexpr std::size_t kEndOfProtocol212 = 0x268;
inline constexpr std::size_t kEndOfRoom = 0x290; // where other fields of the zero page follow

inline constexpr std::uint32_t kMagicValue = 0x53726448; // "HdrS"
inline constexpr std::uint16_t kBootFlagValue = 0xaa55;
inline constexpr std::uint8_t kLoadedHigh = 1U << 0U; // in kLoadFlags

} // namespace vmm::loader::setup_header
