#include "vmm/host/process_limits.hpp"

#include <gtest/gtest.h>

#include "support/host_child_process.hpp"
#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"

namespace vmm {
namespace {

using testing::mentions;

ProcessFacts facts_of(std::uint64_t limit, std::uint64_t used) {
    ProcessFacts facts;
    facts.descriptors = {{"the limit on open files (RLIMIT_NOFILE)", "raise it with `ulimit -n {}`", limit, used}};
    return facts;
}

// What broke: "Too many open files (they came with Linux 5.14)". Now the needed descriptors are counted before anything
// is opened.
TEST(JudgeProcess, SaysHowManyDescriptorsTheLimitMustAllow) {
    EXPECT_EQ(judge_process({100, 1, 1}, facts_of(110, 10)), "");
    const std::string refusal = judge_process({100, 1, 1}, facts_of(109, 10));
    EXPECT_TRUE(mentions(refusal, "ulimit -n 126")) << refusal;
    EXPECT_TRUE(mentions(refusal, "100 descriptors")) << refusal;
    EXPECT_TRUE(mentions(judge_process({100, 1, 1}, facts_of(5, 10)), "ulimit -n 126")) << "more in use than allowed";
}

TEST(JudgeProcess, KnowsThreadsAndMappings) {
    ProcessFacts facts;
    facts.threads = {{"the user's", "raise it with `ulimit -u {}`", 100, 50},
                     {"the group's", "raise it: `echo {} | sudo tee pids.max`", 60, 50}};
    facts.mappings = {{"vm.max_map_count", "raise it to {}", 1000, 900}};
    EXPECT_EQ(judge_process({1, 10, 100}, facts), "");
    EXPECT_TRUE(mentions(judge_process({1, 11, 100}, facts), "echo 61 |")) << judge_process({1, 11, 100}, facts);
    EXPECT_TRUE(mentions(judge_process({1, 10, 101}, facts), "raise it to 1001"));
}

TEST(JudgeProcess, TakesNothingUnknownForALimit) {
    EXPECT_EQ(judge_process({1000000, 1000000, 1000000}, {}), "");
}

class FakeProcess : public ::testing::Test {
  protected:
    [[nodiscard]] ProcessFacts facts() const {
        return read_process_facts({root_ / "proc", {root_ / "proc/self/cgroup", root_ / "cgroup"}});
    }
    void write(const std::string& name, const std::string& content) const { root_.write(name, content + "\n"); }

  private:
    testing::TemporaryDirectory root_;
};

TEST_F(FakeProcess, WithoutProcHasNoLimitsButItsOwn) {
    const ProcessFacts nothing = facts();
    EXPECT_TRUE(nothing.mappings.empty());
    EXPECT_LE(nothing.descriptors.size(), 1U);
}

TEST_F(FakeProcess, IsInGroupsThatLimitThreads) {
    write("proc/self/cgroup", "0::/a/b\n8:pids:/c");
    write("cgroup/a/b/pids.max", "max");
    write("cgroup/a/pids.max", "10");
    write("cgroup/a/pids.current", "7");
    write("cgroup/pids/c/pids.max", "20");
    const ProcessFacts found = facts();
    const auto has = [&found](std::uint64_t limit, std::uint64_t used) {
        for (const CountLimit& one : found.threads) {
            if (one.limit == limit && one.used == used && mentions(one.advice, "pids.max")) {
                return true;
            }
        }
        return false;
    };
    EXPECT_TRUE(has(10, 7));
    EXPECT_TRUE(has(20, 1)) << "itself at least, where the count cannot be read";
}

TEST_F(FakeProcess, SeesWhatTheHostAllows) {
    write("proc/sys/kernel/threads-max", "1000");
    write("proc/loadavg", "0.20 0.18 0.12 1/80 11206");
    write("proc/sys/vm/max_map_count", "65530");
    write("proc/self/maps", "one\ntwo");
    const ProcessFacts found = facts();
    ASSERT_FALSE(found.threads.empty());
    EXPECT_EQ(found.threads.back().limit, 1000U);
    EXPECT_EQ(found.threads.back().used, 80U);
    ASSERT_EQ(found.mappings.size(), 1U);
    EXPECT_EQ(found.mappings.front().limit, 65530U);
    EXPECT_EQ(found.mappings.front().used, 2U);
}

TEST_F(FakeProcess, TakesWhatIsMalformedForUnknown) {
    write("proc/sys/kernel/threads-max", "many");
    write("proc/sys/vm/max_map_count", "");
    write("proc/self/cgroup", "nonsense");
    write("proc/loadavg", "?");
    EXPECT_TRUE(facts().mappings.empty());
}

TEST(OpenFileLimit, IsRaisedAndTheOldOneIsKeptForChildren) {
    const std::string problem = testing::in_child_process([]() -> std::string {
        rlimit limit{};
        ::getrlimit(RLIMIT_NOFILE, &limit);
        const rlim_t hard = limit.rlim_max;
        limit.rlim_cur = 64;
        if (hard <= 64 || ::setrlimit(RLIMIT_NOFILE, &limit) != 0) {
            return "";
        }
        if (inherited_open_file_limit()) {
            return "there is one before it was raised";
        }
        raise_open_file_limit();
        ::getrlimit(RLIMIT_NOFILE, &limit);
        if (limit.rlim_cur != hard) {
            return "it was not raised";
        }
        return inherited_open_file_limit() && inherited_open_file_limit()->rlim_cur == 64 ? "" : "the old one is lost";
    });
    EXPECT_EQ(problem, "");
}

} // namespace
} // namespace vmm
