// One ACPI table: its header, its fields, its checksum.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "loader/little_endian.hpp"

namespace vmm::loader {

/// The maker of the tables; it is also in the RSDP. Six characters.
inline constexpr std::string_view kAcpiOemId = "VMM   ";

/// The byte that makes the sum zero if it is added to the sum over `bytes` (ACPI 6.3, 5.2.6).
[[nodiscard]] std::byte acpi_checksum(std::span<const std::byte> bytes) noexcept;

/// Builds one table. Fields are added in the order of the specification.
class AcpiTable {
  public:
    /// Starts with the header that every table has (ACPI 6.3, 5.2.6). `signature` must have four characters.
    AcpiTable(std::string_view signature, std::uint8_t revision);

    /// Appends one field.
    template <typename T>
    AcpiTable& put(T value) {
        append_little_endian(bytes_, value);
        return *this;
    }
    /// Appends `count` zero bytes, for fields that are reserved or not used.
    AcpiTable& put_zeros(std::size_t count);
    AcpiTable& put_bytes(std::span<const std::byte> bytes);
    /// Appends a Generic Address Structure: a byte-wide register at an I/O port (ACPI 6.3, 5.2.3.2).
    AcpiTable& put_io_register(std::uint16_t port);

    [[nodiscard]] std::size_t size() const noexcept { return bytes_.size(); }
    /// The table with its length and checksum.
    [[nodiscard]] std::vector<std::byte> finish() &&;

  private:
    std::vector<std::byte> bytes_;
};

} // namespace vmm::loader
