// ACPI Machine Language: the small part of it that describes devices.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "kvm/host/guest_address.hpp"

/// Each function returns the bytes of one term. Terms are combined by passing them to the next function (ACPI 6.3,
/// chapter 20, and 6.4 for the resource descriptors). Names are written as in ASL: "_CRS", "\\_SB.PCI0".
namespace vmm::loader::aml {

using Term = std::vector<std::byte>;

/// An integer in its shortest form.
[[nodiscard]] Term integer(std::uint64_t value);
/// A string without NUL or non-ASCII characters.
[[nodiscard]] Term string(std::string_view text);
/// The integer for an EISA id: three capital letters and four hex digits, e.g. "PNP0501".
[[nodiscard]] Term eisa_id(std::string_view id);
/// Package () { elements }, at most 255 elements.
[[nodiscard]] Term package(std::span<const Term> elements);
/// Name (name, value).
[[nodiscard]] Term name(std::string_view name, const Term& value);
/// Scope (path) { terms }.
[[nodiscard]] Term scope(std::string_view path, std::span<const Term> terms);
/// Method (name, arguments) { terms }, which takes 0 to 7 arguments and is not serialized.
[[nodiscard]] Term method(std::string_view name, unsigned arguments, std::span<const Term> terms);
/// A buffer of bytes.
[[nodiscard]] Term buffer(std::span<const std::byte> bytes);
/// ToUUID (text): 36 characters with capital digits, as in "33DB4D5B-1FF7-401C-9657-7441C03DD766".
[[nodiscard]] Term uuid(std::string_view text);
/// OperationRegion (name, SystemIO, first_port, bytes).
[[nodiscard]] Term port_region(std::string_view name, std::uint16_t first_port, std::uint8_t bytes);
/// Field (region, DWordAcc, NoLock, Preserve) { each of `names`, 32 bits wide, one after the other }.
[[nodiscard]] Term double_word_fields(std::string_view region, std::span<const std::string_view> names);

// The terms of a method.
/// Argument 0 to 6, or local variable 0 to 7.
[[nodiscard]] Term argument(unsigned number);
[[nodiscard]] Term local(unsigned number);
/// A reference to an object, or the call of a method without arguments.
[[nodiscard]] Term reference(std::string_view name);
/// If (condition) { terms }.
[[nodiscard]] Term if_true(const Term& condition, std::span<const Term> terms);
/// Else { terms }; it must follow if_true() directly.
[[nodiscard]] Term otherwise(std::span<const Term> terms);
/// LEqual (left, right).
[[nodiscard]] Term equal(const Term& left, const Term& right);
/// And (left, right), Or (left, right): their values.
[[nodiscard]] Term bits_of_both(const Term& left, const Term& right);
[[nodiscard]] Term bits_of_either(const Term& left, const Term& right);
/// Store (value, to).
[[nodiscard]] Term store(const Term& value, const Term& to);
/// CreateDWordField (buffer, offset, name).
[[nodiscard]] Term double_word_of(const Term& buffer, std::uint8_t offset, std::string_view name);
/// Return (value).
[[nodiscard]] Term result(const Term& value);

/// Notify (object, value).
[[nodiscard]] Term notify(std::string_view object, std::uint8_t value);
/// Device (name) { terms }.
[[nodiscard]] Term device(std::string_view name, std::span<const Term> terms);

/// ResourceTemplate () { descriptors }: the value of _CRS.
[[nodiscard]] Term resource_template(std::span<const Term> descriptors);
/// IO (Decode16, first_port, first_port, 0, count). This term and those below are for resource_template() only.
[[nodiscard]] Term io_ports(std::uint16_t first_port, std::uint8_t count);
/// WordBusNumber: the buses `first` to `last`, all decoded.
[[nodiscard]] Term bus_numbers(std::uint16_t first, std::uint16_t last);
/// WordIO, DWordMemory (not cacheable, writable): what a bridge passes on, from `first` to `last` inclusive.
[[nodiscard]] Term bridged_ports(std::uint16_t first, std::uint16_t last);
[[nodiscard]] Term bridged_memory(std::uint32_t first, std::uint32_t last);
/// Memory32Fixed (ReadWrite, base, size).
[[nodiscard]] Term memory32_fixed(std::uint32_t base, std::uint32_t size);
/// Interrupt (ResourceConsumer, Edge or Level, ActiveHigh, Exclusive) { gsi }.
[[nodiscard]] Term interrupt(std::uint32_t gsi, bool level_triggered);

} // namespace vmm::loader::aml
