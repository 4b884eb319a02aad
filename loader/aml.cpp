#include "loader/aml.hpp"

#include <cassert>
#include <concepts>
#include <limits>

#include "loader/little_endian.hpp"

namespace vmm::loader::aml {
namespace {

/// The opcodes we use (ACPI 6.3, 20.3).
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
    kNotifyOp = 0x86,
    kDeviceOp = 0x82, // after kExtendedPrefix
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

/// PkgLength: the length of `content_bytes` and of the PkgLength itself. Up to 63 it is one byte. Beyond, the first
/// byte has the number of further bytes in bits 7-6 and the low four bits of the length in bits 3-0 (ACPI 6.3, 20.2.4).
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

/// A name of one segment: up to four characters, filled up with underscores; a leading backslash means the root.
Term name_string(std::string_view name) {
    Term term;
    if (name.starts_with('\\')) {
        append(term, name.substr(0, 1));
        name.remove_prefix(1);
    }
    assert(!name.empty() && name.size() <= kSegmentBytes);
    append(term, name);
    append(term, std::string_view{"____"}.substr(name.size()));
    return term;
}

/// `head`, the length of `content`, and `content`.
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

/// A digit of an EISA id.
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
