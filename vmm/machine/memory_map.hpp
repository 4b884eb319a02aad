// The one table of guest-physical addresses, I/O ports, interrupt lines and memslots.
//
//   0x0000'0000   RAM                   boot information, see below
//   0x0009'fc00   reserved              what a PC keeps for BIOS data and video; backed by memory all the same
//   0x000c'0000   reserved              the device tree
//   0x000d'f000   in no map             the generation identifier
//   0x000e'0000   reserved              ACPI tables, where guests that scan for them look
//   0x000f'fff0   reserved              the reset vector's stand-in
//   0x0010'0000   RAM                   up to 3 GiB
//   0xc000'0000   hole                  devices and KVM's own pages; begins on a 1 GiB boundary so that RAM below it
//                                       can be mapped in 1 GiB pages
//   0x1'0000'0000 RAM                   the rest; above it, at a multiple of 2 GiB, what the guest can be given later
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "kvm/host/guest_address.hpp"
#include "loader/memory_map_entry.hpp"

namespace vmm::memory_map {

// Boot information, in RAM below 1 MiB.
inline constexpr GuestAddress kGdt{0x500};
inline constexpr GuestAddress kBootPageTables{0x1000};
inline constexpr GuestAddress kZeroPage{0x7000};
inline constexpr GuestRange kStartInfo{GuestAddress{0x8000}, 0x1000};
inline constexpr GuestRange kCommandLine{GuestAddress{0x10000}, 0x10000};
inline constexpr GuestRange kLowRam{GuestAddress{0}, 0x9fc00};
inline constexpr GuestRange kDeviceTree{GuestAddress{0xc0000}, 0x1f000}; ///< with the header from the boot protocol
/// A page of its own, as the specification of the generation identifier wants. The guest's memory map does not contain
/// it: Linux lets no driver claim memory below 1 MiB that is called reserved, and the driver that finds the identifier
/// by a device tree must claim it. Guests do not look for an extension ROM at the address of the identifier, whose
/// bytes are random.
inline constexpr GuestRange kGenerationIdPage{GuestAddress{0xdf000}, 0x1000};
inline constexpr GuestRange kGenerationId{GuestAddress{to_integer(kGenerationIdPage.base) + 16}, 16};
inline constexpr GuestRange kAcpiTables{GuestAddress{0xe0000}, 0x1f000};
inline constexpr GuestAddress kHighRamStart{0x100000};

// The hole below 4 GiB.
inline constexpr GuestRange kHole{GuestAddress{3 * kGiB}, kGiB};
inline constexpr GuestRange kScratchWindow{GuestAddress{0xe0000000}, 256 * kMiB};
inline constexpr GuestRange kVirtioWindow{GuestAddress{0xd0000000}, 0x20000}; ///< one page of registers a device
inline constexpr GuestAddress kPowerRegisters{0xd0020000};                    ///< those of kAcpiPowerPort, once more
inline constexpr GuestRange kPciEcam{GuestAddress{0xd0100000}, kMiB};         ///< configuration spaces of bus 0
inline constexpr GuestRange kPciWindow{GuestAddress{0xd1000000}, 16 * kMiB};  ///< registers of PCI functions
inline constexpr GuestAddress kIoApic{0xfec00000};
inline constexpr GuestAddress kLocalApic{0xfee00000};
inline constexpr GuestAddress kRealModePages{0xfeffc000}; ///< four pages for KVM, see kvm::Vm::reserve_real_mode_pages

// I/O ports. KVM itself answers for the PICs (0x20, 0xa0, 0x4d0), the PIT (0x40-0x43) and the speaker (0x61).
inline constexpr std::uint16_t kI8042Port = 0x60;
inline constexpr std::uint16_t kRtcPort = 0x70;
inline constexpr std::uint16_t kSystemControlPort = 0x92;
inline constexpr std::uint16_t kCom1Port = 0x3f8;
inline constexpr std::uint16_t kAcpiPowerPort = 0x600;
inline constexpr std::uint16_t kResetControlPorts = 0xcf8; ///< the register itself is at 0xcf9
inline constexpr std::uint16_t kPciHotplugPorts = 0x620;
inline constexpr std::uint16_t kPciConfigPorts = 0xcf8; ///< with PCI, eight ports, which have that register, too

// Interrupt lines (GSIs).
inline constexpr std::uint32_t kCom1Gsi = 4;
inline constexpr std::uint32_t kPowerButtonGsi = 9;
inline constexpr std::uint32_t kGenerationIdGsi = 13; ///< a PC's coprocessor, whose errors are exceptions today
/// One line for each virtio device. They are not shared, because they are edge-triggered. These are the 24 inputs of
/// the I/O APIC without those that have fixed uses (timer, keyboard, cascade, COM1, clock, power button, generation
/// identifier).
inline constexpr std::array<std::uint32_t, 17> kVirtioGsis{5,  6,  7,  10, 11, 12, 14, 15, 16,
                                                           17, 18, 19, 20, 21, 22, 23, 3};

/// The lines that the pins of PCI functions share, level-triggered. With PCI no virtio device has a line of its own.
/// The last inputs stay free with PCI and without it, for devices of embedding programs.
inline constexpr std::array<std::uint32_t, 4> kPciPinGsis{16, 17, 18, 19};
inline constexpr std::uint32_t kPciHotplugGsi = 15; ///< a device comes or goes

// Memslots: one for each region of RAM from 0 on, and the scratch slot of the prefault.
inline constexpr std::uint32_t kScratchMemslot = 16;

/// The most RAM that a guest can have. The scratch slot's page tables fit in their window up to this size.
inline constexpr std::uint64_t kMaxMemoryBytes = 16 * kTiB;

/// A running guest can be given more memory up to this distance above its first RAM.
inline constexpr std::uint64_t kRoomForMoreMemory = 512 * kGiB;
/// The end of all RAM.
inline constexpr std::uint64_t kMaxAddressBytes = 32 * kTiB;

/// The ranges of `memory_bytes` of RAM: below the hole, and the rest from 4 GiB on.
[[nodiscard]] std::vector<GuestRange> ram_layout(std::uint64_t memory_bytes);

/// The memory map that the guest is given for `memory_bytes` of RAM. It reserves the PCI configuration spaces in
/// memory, because otherwise Linux does not use them.
[[nodiscard]] std::vector<loader::MemoryMapEntry> guest_memory_map(std::uint64_t memory_bytes, bool has_pci);

/// The end of the highest RAM, but at least 4 GiB.
[[nodiscard]] std::uint64_t address_space_bytes(std::uint64_t memory_bytes);

/// The alignment of memory that the guest is given while it runs (virtio-mem). Linux takes memory in blocks of 128 MiB
/// to 2 GiB, and leaves out incomplete blocks.
inline constexpr std::uint64_t kPluggableAlignment = 2 * kGiB;
/// The range of `pluggable_bytes` of such memory. It is not RAM before the guest has plugged it.
[[nodiscard]] GuestRange pluggable_range(std::uint64_t memory_bytes, std::uint64_t pluggable_bytes);

/// The end of all memory that a guest of `memory_bytes` can be given, but at least 4 GiB. The guest has at most
/// `max_bytes` (0: it gets no more).
[[nodiscard]] std::uint64_t whole_address_space_bytes(std::uint64_t memory_bytes, std::uint64_t max_bytes);
/// The end of the room in which further memory can be added to such a guest (Machine::add_memory()).
[[nodiscard]] std::uint64_t end_of_room(std::uint64_t memory_bytes, std::uint64_t max_bytes);

} // namespace vmm::memory_map
