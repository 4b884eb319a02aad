// The documents name files of the source tree and link to each other. The named files must exist.

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <string>
#include <vector>

#include "support/host_temporary_directory.hpp"

namespace vmm {
namespace {

using testing::content_of;

using std::filesystem::path;

std::vector<path> documents() {
    const path root = VMM_SOURCE_DIR;
    std::vector<path> found{root / "README.md", root / "CONTRIBUTING.md"};
    for (const auto& entry : std::filesystem::directory_iterator(root / "docs")) {
        if (entry.path().extension() == ".md") {
            found.push_back(entry.path());
        }
    }
    return found;
}

std::vector<std::string> matches(const std::string& text, const std::regex& what) {
    std::vector<std::string> found;
    for (std::sregex_iterator match(text.begin(), text.end(), what), end; match != end; ++match) {
        found.push_back((*match)[1].str());
    }
    return found;
}

/// The paths of files in `text` that begin with a folder of the source tree.
std::vector<std::string> file_paths(const std::string& text) {
    static const std::regex kFile(R"((?:^|[^\w/.~$-])((?:devices|docs|kvm|loader|prefault|scripts|tests|vmm)/)"
                                  R"([\w/.-]*\.(?:cpp|hpp|h|S|ld|py|sh|json|md|svg|txt)\b))");
    return matches(text, kFile);
}

/// For a file that the build makes from a template, the template counts.
bool is_in_source_tree(const path& file) {
    return std::filesystem::exists(file) || std::filesystem::exists(file.string() + ".in");
}

TEST(DocumentPaths, EverySourceFileThatADocumentNamesExists) {
    std::size_t named = 0;
    for (const path& document : documents()) {
        for (const std::string& file : file_paths(content_of(document))) {
            EXPECT_TRUE(is_in_source_tree(path(VMM_SOURCE_DIR) / file)) << document << " names " << file;
            ++named;
        }
    }
    EXPECT_GT(named, 50U);
}

TEST(DocumentPaths, EveryLinkToAFileLeadsToOne) {
    static const std::regex kLink(R"(\]\(([^)#:]+)\))");
    std::size_t links = 0;
    for (const path& document : documents()) {
        for (const std::string& target : matches(content_of(document), kLink)) {
            EXPECT_TRUE(std::filesystem::exists(document.parent_path() / target)) << document << " links to " << target;
            ++links;
        }
    }
    EXPECT_GT(links, 10U);
}

TEST(DocumentPaths, ReadmeAndContributingLinkTheTour) {
    for (const char* const document : {"README.md", "CONTRIBUTING.md"}) {
        const std::string text = content_of(path(VMM_SOURCE_DIR) / document);
        EXPECT_NE(text.find("](docs/tour.md)"), std::string::npos) << document;
    }
}

TEST(DocumentPaths, AreFoundInProseAndNotInOtherPaths) {
    EXPECT_EQ(file_paths("see `kvm/vm.hpp` and (docs/tour.md)."),
              (std::vector<std::string>{"kvm/vm.hpp", "docs/tour.md"}));
    EXPECT_TRUE(file_paths("build/run/vmm/vmm, /usr/include/vmm/kvm/vm.hpp, vmm/guest/").empty());
}

} // namespace
} // namespace vmm
