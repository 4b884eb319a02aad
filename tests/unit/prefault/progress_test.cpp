#include "prefault/progress.hpp"

#include <gtest/gtest.h>

namespace vmm::prefault {
namespace {

TEST(Stage, HasNamesForPeople) {
    EXPECT_EQ(to_string(Stage::kHost), "host memory");
    EXPECT_EQ(to_string(Stage::kPin), "pin");
    EXPECT_EQ(to_string(Stage::kSecondLevel), "second level");
    EXPECT_EQ(to_string(Stage::kSmm), "second level of SMM");
}

} // namespace
} // namespace vmm::prefault
