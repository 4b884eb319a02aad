#include "kvm/error.hpp"

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
    EXPECT_EQ(text_of(ENOENT, "open /dev/kvm"), "cannot open /dev/kvm: No such file or directory");
}

TEST(ErrorText, EndsWithTheAdvice) {
    EXPECT_EQ(text_of(EACCES, "open /dev/kvm", "join the group"),
              "cannot open /dev/kvm: Permission denied (join the group)");
}

TEST(ErrorText, KnowsNumbersNobodyDefined) {
    EXPECT_TRUE(testing::mentions(errno_reason(12345), "12345"));
}

} // namespace
} // namespace vmm
