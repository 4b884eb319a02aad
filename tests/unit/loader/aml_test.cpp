#include "loader/aml.hpp"

#include <gtest/gtest.h>

#include <array>
#include <initializer_list>
#include <string_view>

namespace vmm::loader::aml {
namespace {

Term bytes(std::initializer_list<unsigned> values) {
    Term term;
    for (const unsigned value : values) {
        term.push_back(static_cast<std::byte>(value));
    }
    return term;
}

TEST(Aml, IntegersTakeTheirShortestForm) {
    EXPECT_EQ(integer(0), bytes({0x00}));
    EXPECT_EQ(integer(1), bytes({0x01}));
    EXPECT_EQ(integer(2), bytes({0x0a, 0x02}));
    EXPECT_EQ(integer(0xff), bytes({0x0a, 0xff}));
    EXPECT_EQ(integer(0x100), bytes({0x0b, 0x00, 0x01}));
    EXPECT_EQ(integer(0x10000), bytes({0x0c, 0x00, 0x00, 0x01, 0x00}));
    EXPECT_EQ(integer(0x100000000), bytes({0x0e, 0, 0, 0, 0, 1, 0, 0, 0}));
}

TEST(Aml, EisaIdIsCompressed) {
    EXPECT_EQ(eisa_id("PNP0501"), bytes({0x0c, 0x41, 0xd0, 0x05, 0x01}));
}

TEST(Aml, NameIsFilledUpAndMayStartAtTheRoot) {
    EXPECT_EQ(name("_UID", integer(1)), bytes({0x08, '_', 'U', 'I', 'D', 0x01}));
    EXPECT_EQ(name("\\_S5", integer(0)), bytes({0x08, '\\', '_', 'S', '5', '_', 0x00}));
}

TEST(Aml, PackageCountsItsElements) {
    const std::array elements{integer(5), integer(0)};
    EXPECT_EQ(package(elements), bytes({0x12, 0x05, 0x02, 0x0a, 0x05, 0x00}));
}

/// The value of the PkgLength of a scope with `content_bytes` after it, and its length.
struct ScopeLength {
    std::size_t stated;
    std::size_t length_bytes;
};
ScopeLength scope_length(std::size_t content_bytes) {
    constexpr std::size_t kName = 4;
    const std::array terms{Term(content_bytes - kName)};
    const Term term = scope("_SB_", terms);
    const auto first = std::to_integer<std::size_t>(term[1]);
    const std::size_t further = first >> 6U;
    std::size_t stated = further == 0 ? first & 0x3fU : first & 0x0fU;
    for (std::size_t i = 0; i < further; ++i) {
        stated |= std::to_integer<std::size_t>(term[2 + i]) << (4 + 8 * i);
    }
    EXPECT_EQ(stated, term.size() - 1); // all but the opcode
    return {stated, 1 + further};
}

TEST(Aml, LengthGrowsWithTheContentAndCountsItself) {
    EXPECT_EQ(scope_length(62).stated, 63U);
    EXPECT_EQ(scope_length(62).length_bytes, 1U);
    EXPECT_EQ(scope_length(63).stated, 65U);
    EXPECT_EQ(scope_length(63).length_bytes, 2U);
    EXPECT_EQ(scope_length(4093).stated, 4095U);
    EXPECT_EQ(scope_length(4093).length_bytes, 2U);
    EXPECT_EQ(scope_length(4094).stated, 4097U);
    EXPECT_EQ(scope_length(4094).length_bytes, 3U);
    EXPECT_EQ(scope_length(1048572).length_bytes, 3U);
    EXPECT_EQ(scope_length(1048573).length_bytes, 4U);
}

TEST(Aml, ResourceTemplateEndsWithItsTag) {
    EXPECT_EQ(resource_template({}), bytes({0x11, 0x05, 0x0a, 0x02, 0x79, 0x00}));
}

TEST(Aml, ResourceDescriptorsHaveTheirFields) {
    EXPECT_EQ(io_ports(0x3f8, 8), bytes({0x47, 0x01, 0xf8, 0x03, 0xf8, 0x03, 0x00, 0x08}));
    EXPECT_EQ(memory32_fixed(0xc0000000, 0x200),
              bytes({0x86, 0x09, 0x00, 0x01, 0x00, 0x00, 0x00, 0xc0, 0x00, 0x02, 0x00, 0x00}));
    EXPECT_EQ(interrupt(4, false), bytes({0x89, 0x06, 0x00, 0x03, 0x01, 0x04, 0x00, 0x00, 0x00}));
    EXPECT_EQ(interrupt(16, true), bytes({0x89, 0x06, 0x00, 0x01, 0x01, 0x10, 0x00, 0x00, 0x00}));
}

// ACPI 6.3, 6.4.3.5.3 and 6.4.3.5.2: producer, positive decode, both ends fixed.
TEST(Aml, BridgedRangesHaveTheirFields) {
    EXPECT_EQ(bus_numbers(0, 0x1f),
              bytes({0x88, 0x0d, 0x00, 0x02, 0x0c, 0x00, 0x00, 0x00, 0x00, 0x00, 0x1f, 0x00, 0x00, 0x00, 0x20, 0x00}));
    EXPECT_EQ(bridged_ports(0xd00, 0xffff),
              bytes({0x88, 0x0d, 0x00, 0x01, 0x0c, 0x03, 0x00, 0x00, 0x00, 0x0d, 0xff, 0xff, 0x00, 0x00, 0x00, 0xf3}));
    EXPECT_EQ(bridged_memory(0xd1000000, 0xd1ffffff),
              bytes({0x87, 0x17, 0x00, 0x00, 0x0c, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
                     0xd1, 0xff, 0xff, 0xff, 0xd1, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01}));
}

TEST(Aml, NamesWithSeveralSegmentsSayHowMany) {
    EXPECT_EQ(reference("COME"), bytes({'C', 'O', 'M', 'E'}));
    EXPECT_EQ(reference("\\_SB.PCI0"), bytes({'\\', 0x2e, '_', 'S', 'B', '_', 'P', 'C', 'I', '0'}));
    EXPECT_EQ(reference("\\_SB.PCI0.A"),
              bytes({'\\', 0x2f, 0x03, '_', 'S', 'B', '_', 'P', 'C', 'I', '0', 'A', '_', '_', '_'}));
}

TEST(Aml, BuffersSayTheirSizeAndTheirLength) {
    EXPECT_EQ(buffer(bytes({1, 2, 3})), bytes({0x11, 0x06, 0x0a, 0x03, 1, 2, 3}));
    EXPECT_EQ(buffer({}), bytes({0x11, 0x02, 0x00}));
}

// ACPI 6.3, 19.6.142: the string "aabbccdd-eeff-gghh-iijj-kkllmmnnoopp" is dd cc bb aa ff ee hh gg ii jj kk ll mm nn
// oo.
TEST(Aml, UuidHasItsFirstFieldsLittleEndian) {
    EXPECT_EQ(uuid("33DB4D5B-1FF7-401C-9657-7441C03DD766"),
              bytes({0x11, 0x13, 0x0a, 0x10, 0x5b, 0x4d, 0xdb, 0x33, 0xf7, 0x1f,
                     0x1c, 0x40, 0x96, 0x57, 0x74, 0x41, 0xc0, 0x3d, 0xd7, 0x66}));
}

TEST(Aml, RegionsAndTheirFields) {
    EXPECT_EQ(port_region("HPRG", 0x620, 12),
              bytes({0x5b, 0x80, 'H', 'P', 'R', 'G', 0x01, 0x0b, 0x20, 0x06, 0x0a, 0x0c}));
    constexpr std::array<std::string_view, 2> kNames{"COME", "GO"};
    EXPECT_EQ(double_word_fields("HPRG", kNames),
              bytes({0x5b, 0x81, 0x10, 'H', 'P', 'R', 'G', 0x03, 'C', 'O', 'M', 'E', 0x20, 'G', 'O', '_', '_', 0x20}));
}

TEST(Aml, WhatMethodsAreMadeOf) {
    EXPECT_EQ(argument(0), bytes({0x68}));
    EXPECT_EQ(argument(6), bytes({0x6e}));
    EXPECT_EQ(local(0), bytes({0x60}));
    EXPECT_EQ(local(7), bytes({0x67}));
    EXPECT_EQ(equal(argument(1), integer(1)), bytes({0x93, 0x69, 0x01}));
    EXPECT_EQ(bits_of_both(local(0), integer(4)), bytes({0x7b, 0x60, 0x0a, 0x04, 0x00}));
    EXPECT_EQ(bits_of_either(local(0), integer(4)), bytes({0x7d, 0x60, 0x0a, 0x04, 0x00}));
    EXPECT_EQ(store(integer(2), local(1)), bytes({0x70, 0x0a, 0x02, 0x61}));
    EXPECT_EQ(double_word_of(argument(3), 8, "CTRL"), bytes({0x8a, 0x6b, 0x0a, 0x08, 'C', 'T', 'R', 'L'}));
    EXPECT_EQ(result(argument(3)), bytes({0xa4, 0x6b}));
    EXPECT_EQ(notify("S01", 1), bytes({0x86, 'S', '0', '1', '_', 0x01}));
    const std::array then{result(integer(1))};
    EXPECT_EQ(if_true(local(0), then), bytes({0xa0, 0x04, 0x60, 0xa4, 0x01}));
    EXPECT_EQ(otherwise(then), bytes({0xa1, 0x03, 0xa4, 0x01}));
    EXPECT_EQ(method("_EJ0", 1, then), bytes({0x14, 0x08, '_', 'E', 'J', '0', 0x01, 0xa4, 0x01}));
}

} // namespace
} // namespace vmm::loader::aml
