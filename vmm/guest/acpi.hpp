// What the guest reads from the ACPI tables: the CPUs, and how to power off (ACPI 6.5, chapters 4, 5 and 7).
//
// Nothing in the tables is trusted: lengths are checked against what is mapped, checksums are verified, loops are
// bounded.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>

namespace vmm::guest {

/// The most CPUs that the guest uses. An xAPIC can address 255, IDs 0 to 254.
inline constexpr std::size_t kMaxCpus = 254;

/// Local APIC IDs of CPUs, each once.
struct CpuList {
    std::array<std::uint32_t, kMaxCpus> apic_ids{};
    std::size_t count = 0;
    /// How many more CPUs there were.
    std::size_t left_out = 0;

    constexpr void add(std::uint32_t apic_id) noexcept {
        for (std::size_t i = 0; i < count; ++i) {
            if (apic_ids[i] == apic_id) {
                return;
            }
        }
        if (count == apic_ids.size()) {
            ++left_out;
            return;
        }
        apic_ids[count] = apic_id;
        ++count;
    }
};

/// One register to write in order to power off.
struct PowerRegister {
    enum class Space : std::uint8_t { kNone, kPort, kMemory };
    Space space = Space::kNone;
    std::uint64_t address = 0;
};

/// How to enter the soft-off state S5.
struct PowerOff {
    /// Hardware-reduced ACPI: an 8-bit sleep control register. Otherwise the 16-bit PM1a and PM1b control registers.
    bool hardware_reduced = false;
    std::array<PowerRegister, 2> registers{};
    /// The SLP_TYP values for the two registers.
    std::array<std::uint8_t, 2> sleep_types{};
    /// The value for the first register, one byte wide, if a device tree gives one. It is written as it is.
    std::optional<std::uint8_t> plain_value;
};

struct Acpi {
    /// The CPUs that are enabled, in the order of the MADT.
    CpuList cpus;
    PowerOff power_off;
    /// Why `cpus` is empty, or nothing.
    std::string_view cpus_missing;
    /// Why `power_off` has no register, or nothing.
    std::string_view power_off_missing;
};

namespace detail {

using Bytes = std::span<const std::byte>;

/// A larger length in a table is not believed.
inline constexpr std::uint32_t kMaxTableBytes = 1U << 20;
inline constexpr std::size_t kTableHeaderBytes = 36;

/// Reads a little-endian integer; nothing if it passes the end.
template <typename T>
[[nodiscard]] inline std::optional<T> load(Bytes bytes, std::size_t offset) noexcept {
    if (offset > bytes.size() || bytes.size() - offset < sizeof(T)) {
        return std::nullopt;
    }
    T value;
    std::memcpy(&value, bytes.data() + offset, sizeof(T));
    return value;
}

[[nodiscard]] constexpr bool sums_to_zero(Bytes bytes) noexcept {
    unsigned sum = 0;
    for (const std::byte b : bytes) {
        sum += std::to_integer<unsigned>(b);
    }
    return sum % 256 == 0;
}

[[nodiscard]] constexpr bool starts_with(Bytes bytes, std::string_view text) noexcept {
    if (bytes.size() < text.size()) {
        return false;
    }
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (bytes[i] != static_cast<std::byte>(text[i])) {
            return false;
        }
    }
    return true;
}

/// The whole table at `address`, if it has that signature and its length and checksum are right.
template <typename Memory>
[[nodiscard]] Bytes table_at(const Memory& memory, std::uint64_t address, std::string_view signature) noexcept {
    const Bytes header = memory.view(address, kTableHeaderBytes);
    const auto length = load<std::uint32_t>(header, 4);
    if (!length || *length < kTableHeaderBytes || *length > kMaxTableBytes || !starts_with(header, signature)) {
        return {};
    }
    const Bytes table = memory.view(address, *length);
    return sums_to_zero(table) ? table : Bytes{};
}

/// The root table: the XSDT if there is one, else the RSDT.
struct RootTable {
    Bytes table;
    std::size_t entry_bytes = 0;
};

template <typename Memory>
[[nodiscard]] RootTable root_table(const Memory& memory, std::uint64_t rsdp_address) noexcept {
    const Bytes rsdp = memory.view(rsdp_address, 20);
    if (!starts_with(rsdp, "RSD PTR ") || !sums_to_zero(rsdp)) {
        return {};
    }
    if (std::to_integer<unsigned>(rsdp[15]) >= 2) { // Revision 2: an XSDT, and a checksum over all 36 bytes.
        const Bytes extended = memory.view(rsdp_address, 36);
        const auto xsdt = load<std::uint64_t>(extended, 24);
        if (xsdt && *xsdt != 0 && sums_to_zero(extended)) {
            return {table_at(memory, *xsdt, "XSDT"), 8};
        }
    }
    return {table_at(memory, load<std::uint32_t>(rsdp, 16).value_or(0), "RSDT"), 4};
}

template <typename Memory>
[[nodiscard]] Bytes find_table(const Memory& memory, RootTable root, std::string_view signature) noexcept {
    for (std::size_t offset = kTableHeaderBytes; root.table.size() >= offset + root.entry_bytes;
         offset += root.entry_bytes) {
        const std::uint64_t address = root.entry_bytes == 8 ? load<std::uint64_t>(root.table, offset).value_or(0)
                                                            : load<std::uint32_t>(root.table, offset).value_or(0);
        if (const Bytes table = table_at(memory, address, signature); !table.empty()) {
            return table;
        }
    }
    return {};
}

/// The enabled CPUs of a MADT (5.2.12): local APIC (type 0) and local x2APIC (type 9) structures.
[[nodiscard]] inline CpuList cpus_of(Bytes madt) noexcept {
    constexpr std::size_t kFirstEntry = 44;
    constexpr std::uint32_t kEnabled = 1;
    CpuList cpus;
    std::size_t offset = kFirstEntry;
    while (offset + 2 <= madt.size()) {
        const auto type = std::to_integer<unsigned>(madt[offset]);
        const auto length = std::to_integer<std::size_t>(madt[offset + 1]);
        if (length < 2 || length > madt.size() - offset) {
            break;
        }
        const Bytes entry = madt.subspan(offset, length);
        if (type == 0 && (load<std::uint32_t>(entry, 4).value_or(0) & kEnabled) != 0) {
            cpus.add(std::to_integer<std::uint32_t>(entry[3]));
        } else if (type == 9 && (load<std::uint32_t>(entry, 8).value_or(0) & kEnabled) != 0) {
            cpus.add(load<std::uint32_t>(entry, 4).value_or(0));
        }
        offset += length;
    }
    return cpus;
}

/// The register in a generic address structure (5.2.3.2), if it is a port or memory.
[[nodiscard]] inline PowerRegister generic_address(Bytes table, std::size_t offset) noexcept {
    const auto space = load<std::uint8_t>(table, offset);
    const auto address = load<std::uint64_t>(table, offset + 4);
    if (!space || !address || *address == 0) {
        return {};
    }
    if (*space == 0) {
        return {PowerRegister::Space::kMemory, *address};
    }
    if (*space == 1 && *address <= UINT16_MAX) {
        return {PowerRegister::Space::kPort, *address};
    }
    return {};
}

/// A PM1 control block: the extended field if it is filled in, else the older one, which is a port.
[[nodiscard]] inline PowerRegister pm1_control(Bytes fadt, std::size_t extended_offset, std::size_t offset) noexcept {
    const PowerRegister extended = generic_address(fadt, extended_offset);
    const auto port = load<std::uint32_t>(fadt, offset).value_or(0);
    if (extended.space != PowerRegister::Space::kNone || port == 0 || port > UINT16_MAX) {
        return extended;
    }
    return {PowerRegister::Space::kPort, port};
}

/// An integer in AML, if it is small enough to be a SLP_TYP: ZeroOp, OneOp, or BytePrefix and a byte. It is removed
/// from `aml`.
[[nodiscard]] inline std::optional<std::uint8_t> small_integer(Bytes& aml) noexcept {
    const auto first = load<std::uint8_t>(aml, 0);
    const auto second = load<std::uint8_t>(aml, 1);
    if (first && *first <= 1) {
        aml = aml.subspan(1);
        return first;
    }
    if (first && *first == 0x0a && second && *second <= 7) {
        aml = aml.subspan(2);
        return second;
    }
    return std::nullopt;
}

/// Finds the SLP_TYP values of S5 in a DSDT, without interpreting it: NameOp, an optional root prefix, "_S5_",
/// PackageOp, a package length of one to four bytes, the number of elements, and the elements.
[[nodiscard]] inline std::optional<std::array<std::uint8_t, 2>> find_s5(Bytes dsdt) noexcept {
    constexpr std::byte kNameOp{0x08};
    constexpr std::byte kRootPrefix{0x5c};
    constexpr std::byte kPackageOp{0x12};
    for (std::size_t i = kTableHeaderBytes + 1; i + 5 < dsdt.size(); ++i) {
        const std::size_t before = dsdt[i - 1] == kRootPrefix ? 2 : 1;
        if (!starts_with(dsdt.subspan(i), "_S5_") || dsdt[i - before] != kNameOp || dsdt[i + 4] != kPackageOp) {
            continue;
        }
        // The top two bits of a package length count the bytes that follow it.
        const std::size_t elements = i + 5 + 1 + std::to_integer<std::size_t>(dsdt[i + 5] >> 6) + 1;
        Bytes rest = elements < dsdt.size() ? dsdt.subspan(elements) : Bytes{};
        const auto first = small_integer(rest);
        if (!first) {
            return std::nullopt;
        }
        return std::array{*first, small_integer(rest).value_or(0)};
    }
    return std::nullopt;
}

/// How a FADT (5.2.9) says to power off.
template <typename Memory>
[[nodiscard]] PowerOff power_off_of(const Memory& memory, Bytes fadt) noexcept {
    constexpr std::uint32_t kHardwareReduced = 1U << 20;
    // If no DSDT names the sleep types, these are the ones of VMMs with hardware-reduced ACPI, and of emulated PCs.
    constexpr std::array<std::uint8_t, 2> kReducedSleepTypes{5, 0};
    constexpr std::array<std::uint8_t, 2> kPm1SleepTypes{0, 0};

    PowerOff power_off;
    power_off.hardware_reduced = (load<std::uint32_t>(fadt, 112).value_or(0) & kHardwareReduced) != 0;
    if (power_off.hardware_reduced) {
        power_off.registers[0] = generic_address(fadt, 244);
    } else {
        power_off.registers[0] = pm1_control(fadt, 172, 64);
        power_off.registers[1] = pm1_control(fadt, 184, 68);
    }
    Bytes dsdt = table_at(memory, load<std::uint64_t>(fadt, 140).value_or(0), "DSDT");
    if (dsdt.empty()) {
        dsdt = table_at(memory, load<std::uint32_t>(fadt, 40).value_or(0), "DSDT");
    }
    power_off.sleep_types = find_s5(dsdt).value_or(power_off.hardware_reduced ? kReducedSleepTypes : kPm1SleepTypes);
    return power_off;
}

/// Finds the RSDP at the place where firmware of PCs puts it: on a 16-byte boundary of the last 128 KiB below 1 MiB
/// (5.2.5.1).
template <typename Memory>
[[nodiscard]] std::uint64_t scan_for_rsdp(const Memory& memory) noexcept {
    for (std::uint64_t address = 0xe0000; address < 0x100000; address += 16) {
        const Bytes rsdp = memory.view(address, 20);
        if (starts_with(rsdp, "RSD PTR ") && sums_to_zero(rsdp)) {
            return address;
        }
    }
    return 0;
}

} // namespace detail

/// Reads the tables to which the RSDP leads. If `rsdp_address` is 0, it searches for the RSDP. `memory.view(address,
/// size)` returns these bytes as a span, or an empty span unless all of them are readable.
template <typename Memory>
[[nodiscard]] Acpi read_acpi(const Memory& memory, std::uint64_t rsdp_address) noexcept {
    Acpi acpi;
    if (rsdp_address == 0) {
        rsdp_address = detail::scan_for_rsdp(memory);
    }
    const detail::RootTable root = rsdp_address == 0 ? detail::RootTable{} : detail::root_table(memory, rsdp_address);
    if (root.table.empty()) {
        acpi.cpus_missing = rsdp_address == 0 ? "no-rsdp" : "bad-rsdp-or-root-table";
        acpi.power_off_missing = acpi.cpus_missing;
        return acpi;
    }
    if (const detail::Bytes madt = detail::find_table(memory, root, "APIC"); !madt.empty()) {
        acpi.cpus = detail::cpus_of(madt);
    }
    if (acpi.cpus.count == 0) {
        acpi.cpus_missing = "no-madt-with-enabled-cpus";
    }
    if (const detail::Bytes fadt = detail::find_table(memory, root, "FACP"); !fadt.empty()) {
        acpi.power_off = detail::power_off_of(memory, fadt);
    }
    if (acpi.power_off.registers[0].space == PowerRegister::Space::kNone) {
        acpi.power_off_missing = "no-fadt-with-a-register";
    }
    return acpi;
}

} // namespace vmm::guest
