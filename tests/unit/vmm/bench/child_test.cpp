// Running a program: its arguments, its end, and the ways in which it can fail.

#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <chrono>
#include <csignal>
#include <string>

#include "kvm/host/event_fd.hpp"
#include "support/host_errors.hpp"
#include "support/host_pipe.hpp"
#include "support/host_waiting.hpp"
#include "vmm/bench/child.hpp"

namespace vmm::bench {
namespace {

using testing::mentions;

ChildSpec shell(const std::string& script) {
    ChildSpec spec;
    spec.words = {"/bin/sh", "-c", script};
    spec.timeout_seconds = std::chrono::duration<double>(testing::kPatience).count();
    return spec;
}

TEST(BenchChild, OutputAndErrorsAreKeptApart) {
    const ChildEnd end = run_child(shell("echo out; echo err >&2"));
    EXPECT_TRUE(end.succeeded());
    EXPECT_EQ(end.output, "out\n");
    EXPECT_EQ(end.errors, "err\n");
    EXPECT_GT(end.seconds, 0);
}

TEST(BenchChild, ProblemIsItsLastWords) {
    const ChildEnd end = run_child(shell("echo first >&2; echo 'vmm: error: no memory' >&2; exit 1"));
    EXPECT_FALSE(end.succeeded());
    EXPECT_EQ(end.problem(), "no memory");
}

TEST(BenchChild, ProblemOfASilentOneIsHowItEnded) {
    EXPECT_TRUE(mentions(run_child(shell("exit 7")).problem(), "status was 7"));
    EXPECT_TRUE(mentions(run_child(shell("kill -9 $$")).problem(), "signal 9"));
}

TEST(BenchChild, ProgramThatIsNotThereIsAProblem) {
    ChildSpec spec;
    spec.words = {"/nowhere/program"};
    const ChildEnd end = run_child(spec);
    EXPECT_FALSE(end.succeeded());
    EXPECT_TRUE(mentions(end.problem(), "cannot run it")) << end.problem();
    EXPECT_FALSE(is_executable("/nowhere/program"));
    EXPECT_FALSE(is_executable("no-such-program-anywhere"));
    EXPECT_TRUE(is_executable("sh"));
}

TEST(BenchChild, OneThatTakesTooLongIsEndedWithWhatItStarted) {
    // We inherit the processes that it started, and reap them ourselves: init does not do it everywhere.
    ASSERT_EQ(::prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
    ChildSpec spec = shell("sleep 100000 & echo $!; wait");
    ChildEnd end;
    for (spec.timeout_seconds = 0.1; end.output.empty() && spec.timeout_seconds < 100; spec.timeout_seconds *= 2) {
        end = run_child(spec); // On a busy machine it prints nothing in so short a time.
        EXPECT_TRUE(end.timed_out);
        EXPECT_FALSE(end.succeeded());
    }
    const pid_t grandchild = std::stoi(end.output);
    int status = 0;
    EXPECT_TRUE(testing::eventually([&] { return ::waitpid(grandchild, &status, WNOHANG) == grandchild; }));
    EXPECT_TRUE(WIFSIGNALED(status));
    ::prctl(PR_SET_CHILD_SUBREAPER, 0);
}

TEST(BenchChild, AStopEndsIt) {
    EventFd stop;
    stop.signal();
    ChildSpec spec = shell("sleep 100000");
    spec.stop_fd = stop.fd();
    const ChildEnd end = run_child(spec);
    EXPECT_TRUE(end.stopped);
    EXPECT_FALSE(end.timed_out);
}

TEST(BenchChild, IsAnsweredOnItsStandardInput) {
    ChildSpec spec = shell("echo question; read answer; echo got $answer");
    bool answered = false;
    spec.on_output = [&](pid_t child, std::string_view output) -> std::string {
        EXPECT_GT(child, 0);
        if (!answered && mentions(output, "question")) {
            answered = true;
            return "42\n";
        }
        return "";
    };
    EXPECT_EQ(run_child(spec).output, "question\ngot 42\n");
}

TEST(BenchChild, WithoutAnyoneToAnswerItsInputIsEmpty) {
    EXPECT_EQ(run_child(shell("cat; echo end")).output, "end\n");
}

TEST(BenchChild, WhatItSaysIsKeptToALimit) {
    const ChildEnd end = run_child(shell("head -c 20000000 /dev/zero"));
    EXPECT_TRUE(end.succeeded());
    EXPECT_EQ(end.output.size(), ChildEnd::kMaxOutputBytes);
}

} // namespace
} // namespace vmm::bench
