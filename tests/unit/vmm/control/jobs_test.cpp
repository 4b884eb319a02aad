#include "vmm/control/jobs.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <latch>
#include <mutex>
#include <string>

#include "kvm/host/error.hpp"
#include "support/host_waiting.hpp"
#include "vmm/control/events.hpp"

namespace vmm::control {
namespace {

using testing::eventually;
using Json = nlohmann::ordered_json;

Jobs::End wait_for_stop(const Jobs::Context& context) {
    std::mutex lock;
    std::condition_variable_any stopped;
    std::unique_lock hold(lock);
    stopped.wait(hold, context.stop, [] { return false; });
    return {Json::object(), false};
}

TEST(Jobs, SayHowTheyEnded) {
    Jobs jobs({});
    const auto done = jobs.start("good", [](const Jobs::Context& context) -> Jobs::End {
        context.progress({"half", 1, 2});
        return {{{"answer", 42}}};
    });
    EXPECT_EQ(done.state, JobState::kRunning);
    ASSERT_TRUE(eventually([&] { return jobs.get(done.id).state != JobState::kRunning; }));
    EXPECT_EQ(jobs.get(done.id).state, JobState::kDone);
    EXPECT_EQ(jobs.get(done.id).result["answer"], 42);
    EXPECT_EQ(jobs.get(done.id).progress.stage, "half");

    const auto failed = jobs.start("bad", [](const Jobs::Context&) -> Jobs::End { throw Error("it is broken"); });
    ASSERT_TRUE(eventually([&] { return jobs.get(failed.id).state == JobState::kFailed; }));
    EXPECT_EQ(jobs.get(failed.id).error, "it is broken");
    EXPECT_EQ(jobs.list().size(), 2U);
}

TEST(Jobs, EndEarlyIfTheyAreCancelled) {
    Jobs jobs({});
    const auto job = jobs.start("long", wait_for_stop);
    static_cast<void>(jobs.cancel(job.id));
    EXPECT_TRUE(eventually([&] { return jobs.get(job.id).state == JobState::kCancelled; }));
    static_cast<void>(jobs.cancel(job.id)); // it changes nothing
    EXPECT_EQ(jobs.get(job.id).state, JobState::kCancelled);
}

TEST(Jobs, AreCancelledAtTheEnd) {
    std::atomic<unsigned> ended = 0;
    {
        Jobs jobs([&](const JobStatus& job) { ended += job.state == JobState::kCancelled ? 1 : 0; });
        for (std::size_t i = 0; i < Jobs::kMostRunning; ++i) {
            static_cast<void>(jobs.start("long", wait_for_stop));
        }
        EXPECT_THROW(static_cast<void>(jobs.start("one too many", wait_for_stop)), UsageError);
    }
    EXPECT_EQ(ended, Jobs::kMostRunning);
}

TEST(Jobs, ThatEndedLongAgoAreForgotten) {
    Jobs jobs({});
    for (std::size_t i = 0; i < Jobs::kMostKept + 20; ++i) {
        const auto job = jobs.start("short", [](const Jobs::Context&) -> Jobs::End { return {Json::object()}; });
        ASSERT_TRUE(eventually([&] { return jobs.get(job.id).state == JobState::kDone; }));
    }
    EXPECT_LE(jobs.list().size(), Jobs::kMostKept + 1);
    EXPECT_THROW(static_cast<void>(jobs.get(1)), Error);
    EXPECT_THROW(static_cast<void>(jobs.cancel(1)), Error);
}

TEST(Events, AreNumberedAndTheOldestGo) {
    Events events;
    EXPECT_TRUE(events.from(1, 10).lines.empty());
    for (std::size_t i = 0; i < Events::kMostKept + 5; ++i) {
        events.add("event", {{"i", i}});
    }
    EXPECT_EQ(events.count(), Events::kMostKept + 5);
    const Events::Batch first = events.from(1, 3);
    ASSERT_EQ(first.lines.size(), 3U);
    EXPECT_EQ(Json::parse(first.lines[0]), (Json{{"event", "missed"}, {"count", 5}}));
    EXPECT_EQ(Json::parse(first.lines[1])["sequence"], 6);
    EXPECT_EQ(Json::parse(first.lines[1])["i"], 5);
    const Events::Batch rest = events.from(first.next, Events::kMostKept);
    EXPECT_EQ(rest.lines.size(), Events::kMostKept - 2);
    EXPECT_TRUE(events.from(rest.next, 10).lines.empty());
    EXPECT_TRUE(events.from(UINT64_MAX, 10).lines.empty());
}

} // namespace
} // namespace vmm::control
