// docs/virtio.md says which test shows which requirement. This test checks that it is right.

#include <gtest/gtest.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <set>
#include <sstream>
#include <string>

#include "support/host_temporary_directory.hpp"

namespace vmm {
namespace {

using testing::content_of;

/// "Suite.Name" of every test of the devices.
std::set<std::string> tests_of_devices() {
    static const std::regex kTest(R"(\nTEST(?:_F|_P)?\(\s*(\w+),\s*(\w+)\s*\))");
    std::set<std::string> names;
    for (const auto& entry :
         std::filesystem::directory_iterator(std::filesystem::path(VMM_SOURCE_DIR) / "tests/unit/devices/virtio")) {
        const std::string text = content_of(entry.path());
        for (std::sregex_iterator match(text.begin(), text.end(), kTest), end; match != end; ++match) {
            names.insert((*match)[1].str() + "." + (*match)[2].str());
        }
    }
    return names;
}

TEST(VirtioIndex, NamesATestThatExistsForEverySectionThatApplies) {
    // The sections "Device Requirements" of virtio 1.2 that apply, except those of the balloon.
    constexpr std::array kSections{
        "2.1.2",     "2.2.2",     "2.4.1",      "2.5.2",      "2.6.1.1.1",   "2.6.1.2.1", "2.7.4.1",   "2.7.5.1",
        "2.7.5.3.2", "2.7.7.2",   "2.7.8.2",    "2.7.10.2",   "4.1.2.1",     "4.1.3.2",   "4.1.4.2",   "4.1.4.3.1",
        "4.1.4.4.1", "4.1.4.5.1", "4.1.4.6.1",  "4.1.4.9.1",  "4.1.5.1.2.1", "4.1.5.3.1", "4.1.5.4.1", "4.2.2.1",
        "5.1.4.1",   "5.1.6.2.2", "5.1.6.3.2",  "5.1.6.4.1",  "5.1.6.5",     "5.2.5.2",   "5.2.6.2",   "5.3.5.1",
        "5.3.6.2.1", "5.4.6.2",   "5.10.6.1.2", "5.10.6.3.2", "5.10.6.4.2",  "6.2"};
    const std::set<std::string> tests = tests_of_devices();
    ASSERT_GT(tests.size(), 100U);
    std::istringstream lines(content_of(std::filesystem::path(VMM_SOURCE_DIR) / "docs/virtio.md"));
    static const std::regex kRow(R"(^\| ([0-9.]+) \|[^|]+\|([^|]+)\|$)");
    static const std::regex kName("`([A-Za-z0-9_.]+)`");
    std::set<std::string> sections;
    for (std::string line; std::getline(lines, line);) {
        std::smatch match;
        if (!line.starts_with("| ") || line.starts_with("| Section ")) {
            continue;
        }
        ASSERT_TRUE(std::regex_match(line, match, kRow)) << line;
        sections.insert(match[1].str());
        const std::string named = match[2].str();
        std::size_t count = 0;
        for (std::sregex_iterator each(named.begin(), named.end(), kName), end; each != end; ++each, ++count) {
            EXPECT_TRUE(tests.contains((*each)[1].str())) << (*each)[1].str() << " is no test: " << line;
        }
        EXPECT_GT(count, 0U) << "no test is named: " << line;
    }
    for (const char* const section : kSections) {
        EXPECT_TRUE(sections.contains(section)) << section << " is missing";
    }
}

} // namespace
} // namespace vmm
