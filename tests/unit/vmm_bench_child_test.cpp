// Running a program: its words, its end, and the ways in which it can go wrong.

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <string>

#include "support/host_errors.hpp"
#include "support/host_pipe.hpp"
#include "vmm/bench/child.hpp"
#include "vmm/event_fd.hpp"

namespace vmm::bench {
namespace {

using testing::mentions;

ChildSpec shell(const std::string& script) {
    ChildSpec spec;
    spec.words = {"/bin/sh", "-c", script};
    spec.timeout_seconds = 60;
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
    ChildSpec spec = shell("sleep 60 & echo $!; wait");
    spec.timeout_seconds = 0.3;
    const ChildEnd end = run_child(spec);
    EXPECT_TRUE(end.timed_out);
    EXPECT_FALSE(end.succeeded());
    EXPECT_LT(end.seconds, 50);
    const pid_t grandchild = std::stoi(end.output);
    bool gone = false;
    for (int i = 0; i < 1000 && !gone; ++i) { // Until whoever inherited it has reaped it.
        gone = ::kill(grandchild, 0) != 0;
        ::usleep(gone ? 0 : 5000);
    }
    EXPECT_TRUE(gone);
}

TEST(BenchChild, AStopEndsIt) {
    EventFd stop;
    stop.signal();
    ChildSpec spec = shell("sleep 60");
    spec.stop_fd = stop.fd();
    const ChildEnd end = run_child(spec);
    EXPECT_TRUE(end.stopped);
    EXPECT_LT(end.seconds, 50);
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
