#include "loader/aml.hpp"

#include <algorithm>
#include <array>
#include <cassert>
#include <concepts>
#include <limits>

#include "loader/little_endian.hpp"

namespace vmm::loader::aml {
namespace {

/// The opcodes that we use (ACPI 6.3, 20.3).
enum Op : std::uint8_t {
    kZeroOp = 0x00,
    kOneOp = 0x01,
    kNameOp = 0x08,
    kBytePrefix = 0x0a,
    kWordPrefix = 0x0b,
    kDwordPrefix = 0x0c,
    kStringPrefix = 0x0d,
    kQwordPrefix = 0x0e,
    kScopeOp = 0x10,
    kBufferOp = 0x11,
    kPackageOp = 0x12,
    kMethodOp = 0x14,
    kExtendedPrefix = 0x5b,
    kDualNamePrefix = 0x2e,
    kMultiNamePrefix = 0x2f,
    kLocal0Op = 0x60,
    kArgument0Op = 0x68,
    kStoreOp = 0x70,
    kAndOp = 0x7b,
    kOrOp = 0x7d,
    kNotifyOp = 0x86,
    kCreateDwordFieldOp = 0x8a,
    kLequalOp = 0x93,
    kIfOp = 0xa0,
    kElseOp = 0xa1,
    kReturnOp = 0xa4,
    // The opcodes below follow kExtendedPrefix.
    kRegionOp = 0x80,
    kFieldOp = 0x81,
    kDeviceOp = 0x82,
};

constexpr std::size_t kSegmentBytes = 4; // of a name

template <std::unsigned_integral T>
void append(Term& term, T value) {
    append_little_endian(term, value);
}
void append(Term& term, Op op) {
    append_little_endian(term, static_cast<std::uint8_t>(op));
}
void append(Term& term, const Term& other) {
    term.insert(term.end(), other.begin(), other.end());
}
void append(Term& term, std::string_view text) {
    for (const char c : text) {
        append(term, static_cast<std::uint8_t>(c));
    }
}

Term joined(std::span<const Term> terms) {
    Term all;
    for (const Term& term : terms) {
        append(all, term);
    }
    return all;
}

template <std::unsigned_integral T>
Term prefixed(Op prefix, std::uint64_t value) {
    Term term;
    append(term, prefix);
    append(term, static_cast<T>(value));
    return term;
}

/// PkgLength: the length of `content_bytes` and of the PkgLength itself. A length of up to 63 takes one byte. A larger
/// one has the number of further bytes in bits 7-6 of the first byte, and the low four bits of the length in its bits
/// 3-0 (ACPI 6.3, 20.2.4).
Term package_length(std::size_t content_bytes) {
    Term term;
    if (content_bytes + 1 < 64) {
        append(term, static_cast<std::uint8_t>(content_bytes + 1));
        return term;
    }
    unsigned further_bytes = 1;
    while (content_bytes + 1 + further_bytes >= std::size_t{1} << (4 + 8 * further_bytes)) {
        ++further_bytes;
    }
    assert(further_bytes <= 3);
    std::size_t length = content_bytes + 1 + further_bytes;
    append(term, static_cast<std::uint8_t>(further_bytes << 6U | (length & 0xfU)));
    length >>= 4U;
    for (unsigned i = 0; i < further_bytes; ++i, length >>= 8U) {
        append(term, static_cast<std::uint8_t>(length & 0xffU));
    }
    return term;
}

/// Encodes a name: segments with dots between them, each of up to four characters, which are padded with underscores. A
/// leading backslash means the root.
Term name_string(std::string_view name) {
    Term term;
    if (name.starts_with('\\')) {
        append(term, name.substr(0, 1));
        name.remove_prefix(1);
    }
    Term segments;
    std::uint8_t count = 0;
    while (!name.empty()) {
        const std::string_view segment = name.substr(0, name.find('.'));
        assert(!segment.empty() && segment.size() <= kSegmentBytes);
        append(segments, segment);
        append(segments, std::string_view{"____"}.substr(segment.size()));
        name.remove_prefix(std::min(name.size(), segment.size() + 1));
        ++count;
    }
    assert(count > 0);
    if (count == 2) {
        append(term, kDualNamePrefix);
    } else if (count > 2) {
        append(term, kMultiNamePrefix);
        append(term, count);
    }
    append(term, segments);
    return term;
}

/// Returns `head`, the length of `content`, and `content`.
Term enclosed(Term head, const Term& content) {
    append(head, package_length(content.size()));
    append(head, content);
    return head;
}

Term opcode(Op op) {
    Term term;
    append(term, op);
    return term;
}

/// The value of a digit of an EISA id.
std::uint32_t hex_digit(char c) {
    assert((c >= '0' && c <= '9') || (c >= 'A' && c <= 'F'));
    return static_cast<std::uint32_t>(c <= '9' ? c - '0' : c - 'A' + 10);
}

} // namespace

Term integer(std::uint64_t value) {
    if (value <= 1) {
        return opcode(value == 0 ? kZeroOp : kOneOp);
    }
    if (value <= std::numeric_limits<std::uint8_t>::max()) {
        return prefixed<std::uint8_t>(kBytePrefix, value);
    }
    if (value <= std::numeric_limits<std::uint16_t>::max()) {
        return prefixed<std::uint16_t>(kWordPrefix, value);
    }
    if (value <= std::numeric_limits<std::uint32_t>::max()) {
        return prefixed<std::uint32_t>(kDwordPrefix, value);
    }
    return prefixed<std::uint64_t>(kQwordPrefix, value);
}

Term string(std::string_view text) {
    Term term = opcode(kStringPrefix);
    append(term, text);
    append(term, std::uint8_t{0});
    return term;
}

Term eisa_id(std::string_view id) {
    assert(id.size() == 7);
    // Five bits for each letter, four for each digit, the most significant byte first (ACPI 6.3, 19.3.4).
    std::uint32_t value = 0;
    for (const char letter : id.substr(0, 3)) {
        assert(letter >= 'A' && letter <= 'Z');
        value = value << 5U | static_cast<std::uint32_t>(letter - '@');
    }
    for (const char digit : id.substr(3)) {
        value = value << 4U | hex_digit(digit);
    }
    return prefixed<std::uint32_t>(kDwordPrefix, __builtin_bswap32(value));
}

Term package(std::span<const Term> elements) {
    assert(elements.size() <= std::numeric_limits<std::uint8_t>::max());
    Term content;
    append(content, static_cast<std::uint8_t>(elements.size()));
    append(content, joined(elements));
    return enclosed(opcode(kPackageOp), content);
}

Term name(std::string_view name, const Term& value) {
    Term term = opcode(kNameOp);
    append(term, name_string(name));
    append(term, value);
    return term;
}

Term scope(std::string_view path, std::span<const Term> terms) {
    Term content = name_string(path);
    append(content, joined(terms));
    return enclosed(opcode(kScopeOp), content);
}

Term method(std::string_view name, unsigned arguments, std::span<const Term> terms) {
    constexpr unsigned kMostArguments = 7;
    assert(arguments <= kMostArguments);
    Term content = name_string(name);
    append(content, static_cast<std::uint8_t>(arguments));
    append(content, joined(terms));
    return enclosed(opcode(kMethodOp), content);
}

Term buffer(std::span<const std::byte> bytes) {
    Term content = integer(bytes.size());
    content.insert(content.end(), bytes.begin(), bytes.end());
    return enclosed(opcode(kBufferOp), content);
}

Term uuid(std::string_view text) {
    // The position of each byte in the text. The first three fields are little-endian (ACPI 6.3, 19.6.142).
    constexpr std::array<std::size_t, 16> kPlaces{6, 4, 2, 0, 11, 9, 16, 14, 19, 21, 24, 26, 28, 30, 32, 34};
    constexpr std::size_t kCharacters = 36;
    assert(text.size() == kCharacters);
    Term bytes;
    for (const std::size_t place : kPlaces) {
        append(bytes, static_cast<std::uint8_t>(hex_digit(text[place]) << 4U | hex_digit(text[place + 1])));
    }
    return buffer(bytes);
}

Term port_region(std::string_view name, std::uint16_t first_port, std::uint8_t bytes) {
    constexpr std::uint8_t kSystemIo = 1;
    Term term = opcode(kExtendedPrefix);
    append(term, kRegionOp);
    append(term, name_string(name));
    append(term, kSystemIo);
    append(term, integer(first_port));
    append(term, integer(bytes));
    return term;
}

Term double_word_fields(std::string_view region, std::span<const std::string_view> names) {
    constexpr std::uint8_t kDoubleWordAccess = 3; // the rest of the flags: no lock, and other bits are preserved
    constexpr std::uint8_t kBits = 32;            // as a PkgLength of one byte
    Term content = name_string(region);
    append(content, kDoubleWordAccess);
    for (const std::string_view name : names) {
        append(content, name_string(name));
        append(content, kBits);
    }
    Term head = opcode(kExtendedPrefix);
    append(head, kFieldOp);
    return enclosed(head, content);
}

Term argument(unsigned number) {
    assert(number <= 6);
    Term term;
    append(term, static_cast<std::uint8_t>(kArgument0Op + number));
    return term;
}

Term local(unsigned number) {
    assert(number <= 7);
    Term term;
    append(term, static_cast<std::uint8_t>(kLocal0Op + number));
    return term;
}

Term reference(std::string_view name) {
    return name_string(name);
}

Term if_true(const Term& condition, std::span<const Term> terms) {
    Term content = condition;
    append(content, joined(terms));
    return enclosed(opcode(kIfOp), content);
}

Term otherwise(std::span<const Term> terms) {
    return enclosed(opcode(kElseOp), joined(terms));
}

Term equal(const Term& left, const Term& right) {
    Term term = opcode(kLequalOp);
    append(term, left);
    append(term, right);
    return term;
}

namespace {

/// An operation on two values, whose result is not stored.
Term operation(Op op, const Term& left, const Term& right) {
    Term term = opcode(op);
    append(term, left);
    append(term, right);
    append(term, std::uint8_t{0}); // NullName
    return term;
}

} // namespace

Term bits_of_both(const Term& left, const Term& right) {
    return operation(kAndOp, left, right);
}

Term bits_of_either(const Term& left, const Term& right) {
    return operation(kOrOp, left, right);
}

Term store(const Term& value, const Term& to) {
    Term term = opcode(kStoreOp);
    append(term, value);
    append(term, to);
    return term;
}

Term double_word_of(const Term& buffer, std::uint8_t offset, std::string_view name) {
    Term term = opcode(kCreateDwordFieldOp);
    append(term, buffer);
    append(term, integer(offset));
    append(term, name_string(name));
    return term;
}

Term result(const Term& value) {
    Term term = opcode(kReturnOp);
    append(term, value);
    return term;
}

Term notify(std::string_view object, std::uint8_t value) {
    Term term = opcode(kNotifyOp);
    append(term, name_string(object));
    append(term, integer(value));
    return term;
}

Term device(std::string_view name, std::span<const Term> terms) {
    Term content = name_string(name);
    append(content, joined(terms));
    Term head = opcode(kExtendedPrefix);
    append(head, kDeviceOp);
    return enclosed(head, content);
}

Term resource_template(std::span<const Term> descriptors) {
    constexpr std::uint8_t kEndTag = 0x79;
    Term resources = joined(descriptors);
    append(resources, kEndTag);
    append(resources, std::uint8_t{0}); // no checksum (ACPI 6.3, 6.4.2.9)
    Term content = integer(resources.size());
    append(content, resources);
    return enclosed(opcode(kBufferOp), content);
}

Term io_ports(std::uint16_t first_port, std::uint8_t count) {
    constexpr std::uint8_t kIoPort = 0x47;   // small item 8, 7 bytes (ACPI 6.3, 6.4.2.5)
    constexpr std::uint8_t kDecode16 = 0x01; // all 16 address lines
    Term term;
    append(term, kIoPort);
    append(term, kDecode16);
    append(term, first_port);      // lowest base
    append(term, first_port);      // highest base
    append(term, std::uint8_t{0}); // alignment: the base is fixed
    append(term, count);
    return term;
}

namespace {

/// Address space descriptors (ACPI 6.3, 6.4.3.5) with granularity 0, so that both ends are fixed.
template <std::unsigned_integral Value>
Term address_space(std::uint8_t item, std::uint8_t type, std::uint8_t type_flags, Value first, Value last) {
    constexpr std::uint8_t kFixedAtBothEnds = 0x0c; // produced here, and decoded positively
    constexpr std::size_t kHeadBytes = 3;
    Term term;
    append(term, item);
    append(term, static_cast<std::uint16_t>(kHeadBytes + 5 * sizeof(Value)));
    append(term, type);
    append(term, kFixedAtBothEnds);
    append(term, type_flags);
    append(term, Value{0}); // granularity
    append(term, first);
    append(term, last);
    append(term, Value{0}); // translation
    append(term, static_cast<Value>(last - first + 1));
    return term;
}

constexpr std::uint8_t kWordItem = 0x88;
constexpr std::uint8_t kDoubleWordItem = 0x87;
constexpr std::uint8_t kMemoryType = 0;
constexpr std::uint8_t kPortType = 1;
constexpr std::uint8_t kBusNumberType = 2;

} // namespace

Term bus_numbers(std::uint16_t first, std::uint16_t last) {
    return address_space<std::uint16_t>(kWordItem, kBusNumberType, 0, first, last);
}

Term bridged_ports(std::uint16_t first, std::uint16_t last) {
    constexpr std::uint8_t kEntireRange = 0x03;
    return address_space<std::uint16_t>(kWordItem, kPortType, kEntireRange, first, last);
}

Term bridged_memory(std::uint32_t first, std::uint32_t last) {
    constexpr std::uint8_t kWritable = 0x01;
    return address_space<std::uint32_t>(kDoubleWordItem, kMemoryType, kWritable, first, last);
}

Term memory32_fixed(std::uint32_t base, std::uint32_t size) {
    constexpr std::uint8_t kMemory32Fixed = 0x86; // large item 6 (ACPI 6.3, 6.4.3.4)
    constexpr std::uint8_t kReadWrite = 0x01;
    Term term;
    append(term, kMemory32Fixed);
    append(term, std::uint16_t{9});
    append(term, kReadWrite);
    append(term, base);
    append(term, size);
    return term;
}

Term interrupt(std::uint32_t gsi, bool level_triggered) {
    constexpr std::uint8_t kExtendedInterrupt = 0x89; // large item 9 (ACPI 6.3, 6.4.3.6)
    constexpr std::uint8_t kConsumer = 1U << 0U;
    constexpr std::uint8_t kEdge = 1U << 1U; // bits 2 and 3 are clear: active high, exclusive
    Term term;
    append(term, kExtendedInterrupt);
    append(term, std::uint16_t{6});
    append(term, static_cast<std::uint8_t>(level_triggered ? kConsumer : kConsumer | kEdge));
    append(term, std::uint8_t{1}); // one interrupt follows
    append(term, gsi);
    return term;
}

} // namespace vmm::loader::aml
