#include "kvm/stats.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/uapi.hpp"
#include "support/host_errors.hpp"

namespace vmm::kvm {
namespace {

using testing::error_of;
using testing::mentions;

/// A file like those of KVM_GET_STATS_FD: header, descriptors, data.
struct StatsFile {
    static constexpr std::uint32_t kNameBytes = 16;

    kvm_stats_header header{};
    std::string descriptors;
    std::string data;

    /// A counter of `size` values. Our code reads only the first.
    void add(std::string_view name, std::uint64_t value, std::uint16_t size = 1) {
        kvm_stats_desc descriptor{};
        descriptor.size = size;
        descriptor.offset = static_cast<std::uint32_t>(data.size());
        descriptors.append(reinterpret_cast<const char*>(&descriptor), sizeof descriptor);
        std::string padded(name);
        padded.resize(kNameBytes);
        descriptors += padded;
        data.append(reinterpret_cast<const char*>(&value), sizeof value);
        data.append(8UL * (size - 1U), '\0');
        ++header.num_desc;
    }

    /// The header for the added counters.
    [[nodiscard]] kvm_stats_header sound_header() const {
        kvm_stats_header sound = header;
        sound.name_size = kNameBytes;
        sound.desc_offset = sizeof header;
        sound.data_offset = static_cast<std::uint32_t>(sizeof header + descriptors.size());
        return sound;
    }
};

UniqueFd file_with(std::string_view content) {
    UniqueFd fd(::memfd_create("stats", MFD_CLOEXEC));
    EXPECT_EQ(::pwrite(fd.get(), content.data(), content.size(), 0), static_cast<ssize_t>(content.size()));
    return fd;
}

std::string text_of(const kvm_stats_header& header) {
    return {reinterpret_cast<const char*>(&header), sizeof header};
}

UniqueFd make(const StatsFile& file) {
    return file_with(text_of(file.sound_header()) + file.descriptors + file.data);
}

/// A file with `header` before two correct counters.
std::string error_with(const kvm_stats_header& header) {
    StatsFile file;
    file.add("one", 1);
    file.add("two", 2);
    return error_of([&] { return Stats(file_with(text_of(header) + file.descriptors + file.data)); });
}

kvm_stats_header sound_header() {
    StatsFile file;
    file.add("one", 1);
    file.add("two", 2);
    return file.sound_header();
}

TEST(Stats, FindsCountersByName) {
    StatsFile file;
    file.add("pf_fixed", 7);
    file.add("pages_2m", 0xffffffffffffffff);
    const Stats stats(make(file));
    EXPECT_EQ(stats.value("pf_fixed"), 7U);
    EXPECT_EQ(stats.value("pages_2m"), 0xffffffffffffffffU);
}

TEST(Stats, HasNoValueForAnUnknownName) {
    StatsFile file;
    file.add("pf_fixed", 7);
    const Stats stats(make(file));
    EXPECT_FALSE(stats.value("pf_fixe"));
    EXPECT_FALSE(stats.value("pf_fixed2"));
    EXPECT_FALSE(stats.value(""));
}

TEST(Stats, ReadsTheValueAfreshEachTime) {
    StatsFile file;
    file.add("exits", 1);
    UniqueFd fd = make(file);
    const UniqueFd kernel(::dup(fd.get()));
    const Stats stats(std::move(fd));
    ASSERT_EQ(stats.value("exits"), 1U);
    const std::uint64_t later = 2;
    ASSERT_EQ(::pwrite(kernel.get(), &later, sizeof later, file.sound_header().data_offset), 8);
    EXPECT_EQ(stats.value("exits"), 2U);
}

TEST(Stats, ListsSingleCountersInTheKernelsOrder) {
    StatsFile file;
    file.add("one", 1);
    file.add("histogram", 0, 32);
    file.add("two", 2);
    const Stats stats(make(file));
    EXPECT_EQ(stats.names(), (std::vector<std::string>{"one", "two"}));
    EXPECT_EQ(stats.value("two"), 2U);
    EXPECT_FALSE(stats.value("histogram"));
}

TEST(Stats, TakesANameThatFillsItsField) {
    StatsFile file;
    file.add("0123456789abcdef", 5);
    const Stats stats(make(file));
    EXPECT_EQ(stats.value("0123456789abcdef"), 5U);
}

TEST(Stats, TakesAFileWithoutCounters) {
    EXPECT_TRUE(Stats(make(StatsFile{})).names().empty());
}

TEST(Stats, RefusesMoreCountersThanPlausible) {
    kvm_stats_header header = sound_header();
    header.num_desc = UINT32_MAX;
    EXPECT_TRUE(mentions(error_with(header), "4294967295 counters"));
}

TEST(Stats, RefusesNamesOfNoBytes) {
    kvm_stats_header header = sound_header();
    header.name_size = 0;
    EXPECT_TRUE(mentions(error_with(header), "not plausible"));
}

TEST(Stats, RefusesNamesTooLong) {
    kvm_stats_header header = sound_header();
    header.name_size = UINT32_MAX;
    EXPECT_TRUE(mentions(error_with(header), "not plausible"));
}

TEST(Stats, RefusesDescriptorsBeyondTheEnd) {
    kvm_stats_header header = sound_header();
    header.num_desc = 3000;
    EXPECT_TRUE(mentions(error_with(header), "cannot read the names"));
    header = sound_header();
    header.desc_offset = UINT32_MAX;
    EXPECT_TRUE(mentions(error_with(header), "cannot read the names"));
}

TEST(Stats, RefusesATruncatedHeader) {
    const std::string half = text_of(sound_header()).substr(0, 12);
    EXPECT_TRUE(mentions(error_of([&] { return Stats(file_with(half)); }), "cannot read the header"));
}

TEST(Stats, DoesNotBlameSuccessForATruncatedFile) {
    errno = 0;
    const std::string error = error_of([&] { return Stats(file_with("")); });
    EXPECT_FALSE(mentions(error, "Success")) << error;
}

TEST(Stats, HasNoValueBeyondTheEndOfTheFile) {
    StatsFile file;
    file.add("one", 1);
    kvm_stats_header header = file.sound_header();
    header.data_offset = UINT32_MAX;
    const Stats stats(file_with(text_of(header) + file.descriptors + file.data));
    EXPECT_FALSE(stats.value("one"));
}

TEST(Stats, RefusesADescriptorThatIsNone) {
    EXPECT_TRUE(mentions(error_of([] { return Stats(UniqueFd()); }), "Bad file descriptor"));
}

} // namespace
} // namespace vmm::kvm
