#include "prefault/host/cpu_list.hpp"

#include <gtest/gtest.h>
#include <sched.h>

#include <optional>
#include <string>
#include <thread>

#include "support/host_errors.hpp"

namespace vmm::prefault {
namespace {

using testing::error_of;
using testing::mentions;

/// Affinity belongs to a thread, so code that changes it runs in a thread of its own.
template <typename Action>
void in_a_thread(Action action) {
    std::thread(action).join();
}

std::string refusal(const CpuList& cpus) {
    return error_of([&]() -> int {
        check_cpus_usable(cpus, "Config::prefault.cpus");
        return 0;
    });
}

std::string bind_error(const CpuList& cpus) {
    return error_of([&]() -> int {
        bind_this_thread(cpus);
        return 0;
    });
}

TEST(CpuListText, NamesNumbersAndRanges) {
    EXPECT_EQ(parse_cpu_list("0"), (CpuList{0}));
    EXPECT_EQ(parse_cpu_list("8"), (CpuList{8}));
    EXPECT_EQ(parse_cpu_list("0-3,8,10-12"), (CpuList{0, 1, 2, 3, 8, 10, 11, 12}));
    EXPECT_EQ(parse_cpu_list("5-5"), (CpuList{5}));
}

TEST(CpuListText, IsPutInOrderAndNamesEachOnce) {
    EXPECT_EQ(parse_cpu_list("4,2,3"), (CpuList{2, 3, 4}));
    EXPECT_EQ(parse_cpu_list("1,0-2,1-3,3"), (CpuList{0, 1, 2, 3}));
}

TEST(CpuListText, ReachesToTheHighestCpuAndNoFurther) {
    const auto all = parse_cpu_list("0-8191");
    ASSERT_TRUE(all);
    EXPECT_EQ(all->size(), kMaxCpus);
    EXPECT_EQ(parse_cpu_list("8191"), (CpuList{8191}));
    EXPECT_EQ(parse_cpu_list("8192"), std::nullopt);
    EXPECT_EQ(parse_cpu_list("0-8192"), std::nullopt);
    EXPECT_EQ(parse_cpu_list("0-4294967296"), std::nullopt);
    EXPECT_EQ(parse_cpu_list("99999999999999999999999"), std::nullopt);
}

TEST(CpuListText, OfManyOverlappingRangesStaysSmall) {
    std::string text = "0-8191";
    for (int i = 0; i < 1000; ++i) {
        text += ",0-8191";
    }
    EXPECT_EQ(parse_cpu_list(text)->size(), kMaxCpus);
}

class NoCpuList : public ::testing::TestWithParam<const char*> {};

TEST_P(NoCpuList, IsRefused) {
    EXPECT_EQ(parse_cpu_list(GetParam()), std::nullopt);
}

INSTANTIATE_TEST_SUITE_P(Texts, NoCpuList,
                         ::testing::Values("", ",", "1,", ",1", "1,,2", "3-1", "-1", "1-", "-", "1--2", "1-2-3", "1 ",
                                           " 1", "1, 2", "0-3\n", "a", "1a", "0x1", "+1", "1;2", "0-31:1/2", "all"));

TEST(CpuListText, IsWrittenInRanges) {
    EXPECT_EQ(format_cpu_list(CpuList{}), "");
    EXPECT_EQ(format_cpu_list(CpuList{7}), "7");
    EXPECT_EQ(format_cpu_list(CpuList{0, 1}), "0-1");
    EXPECT_EQ(format_cpu_list(CpuList{0, 1, 2, 3, 8}), "0-3,8");
    EXPECT_EQ(format_cpu_list(CpuList{0, 2, 4, 5, 6, 8191}), "0,2,4-6,8191");
}

TEST(CpuListText, IsReadAsItWasWritten) {
    for (const char* text : {"0", "0-1", "1,3,5-9", "0-8191", "0,8191"}) {
        EXPECT_EQ(format_cpu_list(*parse_cpu_list(text)), text);
    }
}

TEST(UsableCpuList, IsTheThreadsOwn) {
    const CpuList all = usable_cpu_list();
    ASSERT_FALSE(all.empty());
    in_a_thread([&] {
        bind_this_thread(CpuList{all.back()});
        EXPECT_EQ(usable_cpu_list(), (CpuList{all.back()}));
    });
    EXPECT_EQ(usable_cpu_list(), all);
}

TEST(UsableCpuList, IsInheritedByThreads) {
    const CpuList first{usable_cpu_list().front()};
    in_a_thread([&] {
        bind_this_thread(first);
        in_a_thread([&] { EXPECT_EQ(usable_cpu_list(), first); });
    });
}

TEST(CheckCpusUsable, TakesWhatIsUsableAndNothing) {
    EXPECT_EQ(refusal(usable_cpu_list()), "");
    EXPECT_EQ(refusal({usable_cpu_list().back()}), "");
    EXPECT_EQ(refusal({}), "");
}

TEST(CheckCpusUsable, NamesTheOptionTheCpuAndWhatThereIs) {
    const CpuList first{usable_cpu_list().front()};
    in_a_thread([&] {
        bind_this_thread(first);
        const std::string error = refusal({first[0], 8000});
        EXPECT_TRUE(error.starts_with("cannot use CPU 8000 for Config::prefault.cpus: this process may use " +
                                      format_cpu_list(first) + " (see taskset"))
            << error;
    });
}

TEST(CheckCpusUsable, NamesAllThatAreRefused) {
    const std::string error = refusal({8000, 8001, 8005});
    EXPECT_TRUE(error.starts_with("cannot use CPUs 8000-8001,8005 for Config::prefault.cpus: ")) << error;
}

TEST(BindThisThread, RunsItThere) {
    for (const unsigned cpu : usable_cpu_list()) {
        in_a_thread([cpu] {
            bind_this_thread(CpuList{cpu});
            EXPECT_EQ(::sched_getcpu(), static_cast<int>(cpu));
        });
    }
}

TEST(BindThisThread, ToNoCpusChangesNothing) {
    const CpuList before = usable_cpu_list();
    EXPECT_EQ(bind_error({}), "");
    EXPECT_EQ(usable_cpu_list(), before);
}

TEST(BindThisThread, TakesNumbersAboveWhatTheKernelKnows) {
    const unsigned first = usable_cpu_list().front();
    in_a_thread([first] {
        EXPECT_EQ(bind_error({first, kMaxCpus - 1}), "");
        EXPECT_EQ(usable_cpu_list(), (CpuList{first}));
    });
}

TEST(BindThisThread, ToCpusThatAreNotThereIsAnErrorThatNamesThem) {
    in_a_thread([] {
        const std::string error = bind_error({8000, 8001});
        EXPECT_TRUE(error.starts_with("cannot run a thread on CPUs 8000-8001: ")) << error;
        EXPECT_TRUE(mentions(error, "none of them is online")) << error;
    });
}

TEST(CpuList, OfAnEmbeddingProgramMayHaveAnyOrder) {
    // What broke: an unsorted list ended the process by an assertion.
    EXPECT_EQ(format_cpu_list(CpuList{3, 1, 2, 2, 8}), "1-3,8");
    const std::string error = refusal({8191, 8190, 8191});
    EXPECT_TRUE(mentions(error, "8190-8191")) << error;
    const unsigned usable = usable_cpu_list().front();
    EXPECT_EQ(refusal({usable, usable}), "");
    in_a_thread([] {
        EXPECT_TRUE(mentions(bind_error({kMaxCpus}), "highest one possible"));
        EXPECT_TRUE(mentions(bind_error({0xffffffff}), "highest one possible"));
    });
}

} // namespace
} // namespace vmm::prefault
