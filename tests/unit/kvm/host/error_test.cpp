#include "kvm/host/error.hpp"

#include <gtest/gtest.h>

#include <cerrno>

#include "support/host_errors.hpp"

namespace vmm {
namespace {

template <typename... Arguments>
std::string text_of(Arguments... arguments) {
    return testing::error_of([&]() -> int { throw_errno(arguments...); });
}

TEST(ErrorText, SaysWhatWasTriedAndWhyItFailed) {
    EXPECT_EQ(text_of(ENOTEMPTY, "open /dev/kvm"), "cannot open /dev/kvm: Directory not empty");
}

TEST(ErrorText, EndsWithTheAdvice) {
    EXPECT_EQ(text_of(EACCES, "open /dev/kvm", "join the group"),
              "cannot open /dev/kvm: Permission denied (join the group)");
}

std::string text_by_table(int error_number) {
    return testing::error_of([&]() -> int {
        throw_errno(error_number, "open /dev/kvm", {{ENOENT, "load kvm_amd"}, {EACCES, "join the group"}});
    });
}

// What broke: "Too many open files (they came with Linux 5.14)": a call had one piece of advice for all its errors.
TEST(ErrorText, AdviceBelongsToTheNumberAndNotToThePlace) {
    EXPECT_EQ(text_by_table(ENOENT), "cannot open /dev/kvm: No such file or directory (load kvm_amd)");
    EXPECT_EQ(text_by_table(EACCES), "cannot open /dev/kvm: Permission denied (join the group)");
    const std::string text = text_by_table(EMFILE);
    EXPECT_TRUE(testing::mentions(text, "ulimit -n")) << text;
    EXPECT_FALSE(testing::mentions(text, "load kvm_amd")) << text;
    EXPECT_EQ(text_by_table(ENOTEMPTY), "cannot open /dev/kvm: Directory not empty");
}

TEST(ErrorText, LimitsAreNamedWhateverCallRunsIntoThem) {
    EXPECT_TRUE(testing::mentions(text_of(EMFILE, "make a timer"), "ulimit -n"));
    EXPECT_TRUE(testing::mentions(text_of(ENFILE, "make a timer"), "fs.file-max"));
    EXPECT_TRUE(testing::mentions(text_of(ENOMEM, "make a timer"), "memory"));
    EXPECT_TRUE(testing::mentions(text_of(ENOSPC, "write a file"), "space"));
    EXPECT_TRUE(testing::mentions(text_of(EROFS, "write a file"), "read-only"));
}

TEST(ErrorText, KnowsNumbersNobodyDefined) {
    EXPECT_TRUE(testing::mentions(errno_reason(12345), "12345"));
}

} // namespace
} // namespace vmm
