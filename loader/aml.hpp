// ACPI Machine Language: the small part of it that states which devices there are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "kvm/host/guest_address.hpp"

/// Each function gives the bytes of one term; terms are put together by passing them to the next function (ACPI 6.3,
/// chapter 20, and 6.4 for the resource descriptors). Names are written as they are in ASL.
namespace vmm::loader::aml {

using Term = std::vector<std::byte>;

/// An integer in its shortest form.
[[nodiscard]] Term integer(std::uint64_t value);
/// A string without NUL or non-ASCII characters.
[[nodiscard]] Term string(std::string_view text);
/// The integer that stands for an EISA id: three capitals and four hex digits, e.g. "PNP0501".
[[nodiscard]] Term eisa_id(std::string_view id);
/// Package () { elements }. At most 255.
[[nodiscard]] Term package(std::span<const Term> elements);
/// Name (name, value).
[[nodiscard]] Term name(std::string_view name, const Term& value);
/// Scope (path) { terms }.
[[nodiscard]] Term scope(std::string_view path, std::span<const Term> terms);
/// Method (name, arguments) { terms }, which takes 0 to 7 arguments and is not serialized.
[[nodiscard]] Term method(std::string_view name, unsigned arguments, std::span<const Term> terms);
/// Notify (object, value).
[[nodiscard]] Term notify(std::string_view object, std::uint8_t value);
/// Device (name) { terms }.
[[nodiscard]] Term device(std::string_view name, std::span<const Term> terms);

/// ResourceTemplate () { descriptors }: what _CRS is.
[[nodiscard]] Term resource_template(std::span<const Term> descriptors);
/// IO (Decode16, first_port, first_port, 0, count): for resource_template only, as the two below.
[[nodiscard]] Term io_ports(std::uint16_t first_port, std::uint8_t count);
/// Memory32Fixed (ReadWrite, base, size).
[[nodiscard]] Term memory32_fixed(std::uint32_t base, std::uint32_t size);
/// Interrupt (ResourceConsumer, Edge or Level, ActiveHigh, Exclusive) { gsi }.
[[nodiscard]] Term interrupt(std::uint32_t gsi, bool level_triggered);

} // namespace vmm::loader::aml
