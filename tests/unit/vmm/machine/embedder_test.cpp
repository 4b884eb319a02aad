#include "vmm/machine/embedder.hpp"

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>
#include <vector>

namespace vmm {
namespace {

TEST(Embedder, LogsToTheProgramsSink) {
    StopRequest stop;
    std::vector<std::string> lines;
    Embedder embedder([&](LogLevel, std::string_view line) { lines.emplace_back(line); }, stop);
    embedder.log(LogLevel::kInfo, "one");
    embedder.warn("two");
    EXPECT_EQ(lines, (std::vector<std::string>{"one", "two"}));
    EXPECT_NO_THROW(Embedder({}, stop).log(LogLevel::kInfo, "nobody hears this"));
}

TEST(Embedder, KeepsWhatTheLogThrowsOnlyOnceTheGuestRuns) {
    StopRequest stop;
    Embedder embedder([](LogLevel, std::string_view) { throw std::domain_error("full"); }, stop);
    EXPECT_THROW(embedder.log(LogLevel::kInfo, "before"), std::domain_error);
    EXPECT_FALSE(stop.is_requested());
    embedder.set_guest_runs();
    EXPECT_NO_THROW(embedder.log(LogLevel::kInfo, "while it runs"));
    EXPECT_TRUE(stop.is_requested()) << "the run ends";
    EXPECT_THROW(embedder.rethrow_failure(), std::domain_error);
}

TEST(Embedder, KeepsTheFirstFailure) {
    StopRequest stop;
    Embedder embedder({}, stop);
    EXPECT_NO_THROW(embedder.rethrow_failure());
    embedder.note_failure(std::make_exception_ptr(std::domain_error("first")));
    embedder.note_failure(std::make_exception_ptr(std::range_error("second")));
    EXPECT_THROW(embedder.rethrow_failure(), std::domain_error);
}

TEST(Embedder, HearsNoWarningAfterItHasParted) {
    StopRequest stop;
    int lines = 0;
    Embedder embedder([&](LogLevel, std::string_view) { ++lines; }, stop);
    embedder.part();
    embedder.warn("the machine is gone");
    EXPECT_EQ(lines, 0);
}

} // namespace
} // namespace vmm
