// Replays the corpus of the fuzzer in every build, without the fuzzer.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <ostream>
#include <span>
#include <string>
#include <vector>

#include "fuzz/targets.hpp"

namespace vmm::fuzz {

std::ostream& operator<<(std::ostream& out, const Target& target) {
    return out << target.name;
}

namespace {

class FuzzCorpus : public ::testing::TestWithParam<Target> {};

TEST_P(FuzzCorpus, BreaksNothing) {
    if (GetParam().name == "machine" && !can_run_machines()) {
        GTEST_SKIP() << "this process may not use /dev/kvm";
    }
    std::vector<std::filesystem::path> files;
    for (const auto& entry :
         std::filesystem::directory_iterator(std::filesystem::path(VMM_FUZZ_CORPUS) / std::string(GetParam().name))) {
        files.push_back(entry.path());
    }
    std::ranges::sort(files);
    ASSERT_FALSE(files.empty());
    for (const auto& path : files) {
        std::ifstream file(path, std::ios::binary);
        const std::string text{std::istreambuf_iterator(file), {}};
        // A target that finds something aborts. Then the last line names the file.
        std::fprintf(stderr, "%s\n", path.filename().c_str());
        GetParam().run(std::as_bytes(std::span(text)));
    }
    // An empty input is a program, too.
    GetParam().run({});
}

INSTANTIATE_TEST_SUITE_P(Of, FuzzCorpus, ::testing::ValuesIn(kTargets),
                         [](const auto& target) { return std::string(target.param.name); });

} // namespace
} // namespace vmm::fuzz
