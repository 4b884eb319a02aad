#include "loader/acpi_table.hpp"

#include <cassert>
#include <utility>

namespace vmm::loader {
namespace {

constexpr std::size_t kLengthOffset = 4;
constexpr std::size_t kChecksumOffset = 9;
constexpr std::size_t kHeaderBytes = 36;

constexpr std::string_view kOemTableId = "VMM     ";
constexpr std::string_view kCreatorId = "VMM ";
constexpr std::uint32_t kOurRevision = 1;

std::span<const std::byte> as_bytes(std::string_view text) {
    return std::as_bytes(std::span{text});
}

} // namespace

std::byte acpi_checksum(std::span<const std::byte> bytes) noexcept {
    unsigned sum = 0;
    for (const std::byte byte : bytes) {
        sum += std::to_integer<unsigned>(byte);
    }
    return static_cast<std::byte>(0x100U - (sum & 0xffU));
}

AcpiTable::AcpiTable(std::string_view signature, std::uint8_t revision) {
    assert(signature.size() == 4);
    put_bytes(as_bytes(signature));
    put(std::uint32_t{0}); // the length, filled in later
    put(revision);
    put(std::uint8_t{0}); // the checksum, filled in later
    put_bytes(as_bytes(kAcpiOemId));
    put_bytes(as_bytes(kOemTableId));
    put(kOurRevision);
    put_bytes(as_bytes(kCreatorId));
    put(kOurRevision);
    assert(size() == kHeaderBytes);
}

AcpiTable& AcpiTable::put_zeros(std::size_t count) {
    bytes_.resize(bytes_.size() + count);
    return *this;
}

AcpiTable& AcpiTable::put_bytes(std::span<const std::byte> bytes) {
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    return *this;
}

AcpiTable& AcpiTable::put_io_register(std::uint16_t port) {
    constexpr std::uint8_t kSystemIo = 1;
    constexpr std::uint8_t kRegisterBits = 8;
    constexpr std::uint8_t kByteAccess = 1;
    put(kSystemIo);
    put(kRegisterBits);
    put(std::uint8_t{0}); // bit offset
    put(kByteAccess);
    return put(std::uint64_t{port});
}

std::vector<std::byte> AcpiTable::finish() && {
    const auto length = to_little_endian(static_cast<std::uint32_t>(bytes_.size()));
    for (std::size_t i = 0; i < length.size(); ++i) {
        bytes_[kLengthOffset + i] = length[i];
    }
    bytes_[kChecksumOffset] = acpi_checksum(bytes_);
    return std::move(bytes_);
}

} // namespace vmm::loader
