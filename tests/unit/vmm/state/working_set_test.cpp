#include "vmm/state/working_set.hpp"

#include <gtest/gtest.h>

#include <string>

#include "support/host_errors.hpp"

namespace vmm {
namespace {

using testing::error_of;
using testing::mentions;

TEST(WorkingSet, IsReadAsItWasWritten) {
    const WorkingSet set{7, 0, 3};
    EXPECT_EQ(parse_working_set(to_json(set), 8), set);
    EXPECT_EQ(parse_working_set(to_json(WorkingSet{}), 8), WorkingSet{});
}

TEST(WorkingSet, ThatIsDamagedIsRefused) {
    const auto problem = [](const std::string& text) {
        return error_of([&] { static_cast<void>(parse_working_set(text, 8)); });
    };
    for (const char* const text :
         {"", "{", "[]", "1", "{}", R"({"chunk_bytes":2097152})", R"({"chunk_bytes":2097152,"chunks":1})"}) {
        EXPECT_TRUE(mentions(problem(text), "it is not what vmm writes")) << text;
    }
    EXPECT_TRUE(mentions(problem(R"({"chunk_bytes":4096,"chunks":[]})"), "another size"));
    for (const char* const chunk : {"8", "-1", "1.5", "\"1\"", "18446744073709551616", "[]", "null"}) {
        const std::string text = R"({"chunk_bytes":2097152,"chunks":[)" + std::string(chunk) + "]}";
        EXPECT_TRUE(mentions(problem(text), "memory that the guest does not have")) << text;
    }
    EXPECT_TRUE(mentions(problem(R"({"chunk_bytes":2097152,"chunks":[1,1]})"), "twice"));
    // Nesting that is as deep as the file is long.
    EXPECT_NE(problem(std::string(100'000, '[')), "");
}

} // namespace
} // namespace vmm
