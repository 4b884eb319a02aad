#include "loader/aml.hpp"

#include <gtest/gtest.h>

#include <array>
#include <initializer_list>

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

/// What the PkgLength of a scope says that has `content_bytes` after it, and how long it is.
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

} // namespace
} // namespace vmm::loader::aml
