// The message if KVM cannot start its own thread.
#include "kvm/own_thread.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <thread>

#include "kvm/host/thread_rights.hpp"
#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"

namespace vmm::kvm {
namespace {

using testing::mentions;

/// A hierarchy of version 2; this process is in its group "outer/inner".
class Groups {
  public:
    Groups(const std::string& outer_most, const std::string& inner_most) {
        const std::filesystem::path inner = root() / "outer" / "inner";
        std::filesystem::create_directories(inner);
        write("self", "0::/outer/inner\n");
        write("outer/pids.max", outer_most);
        write("outer/pids.current", "4\n");
        write("outer/inner/pids.max", inner_most);
        write("outer/inner/pids.current", "3\n");
    }
    [[nodiscard]] CgroupRoots roots() const { return {(root() / "self").string(), root().string()}; }

  private:
    [[nodiscard]] std::filesystem::path root() const { return directory_.path(); }
    void write(const std::string& name, const std::string& text) const { directory_.write(name, text); }

    testing::TemporaryDirectory directory_;
};

TEST(OwnThread, AdviceNamesTheGroupWhoseLimitIsReached) {
    const Groups groups("4\n", "max\n");
    const std::string advice = own_thread_advice(groups.roots());
    EXPECT_TRUE(mentions(advice, "outer allows 4 tasks")) << advice;
    EXPECT_TRUE(mentions(advice, "pids.max")) << advice;
}

TEST(OwnThread, AdviceNamesTheInnerGroupWhereItsLimitIsReached) {
    const Groups groups("4\n", "3\n");
    const std::string advice = own_thread_advice(groups.roots());
    EXPECT_TRUE(mentions(advice, "inner allows 3 tasks")) << advice;
}

TEST(OwnThread, AdviceNamesNoGroupWhereNoLimitIsReached) {
    const Groups groups("100\n", "max\n");
    const std::string advice = own_thread_advice(groups.roots());
    EXPECT_FALSE(mentions(advice, "allows")) << advice;
    EXPECT_TRUE(mentions(advice, "ulimit -u")) << advice;
}

TEST(OwnThread, AdviceOfAThreadThatOpensNoFilesNamesNoGroup) {
    const Groups groups("4\n", "max\n");
    std::string advice;
    std::thread([&] {
        note_no_files_in_this_thread();
        advice = own_thread_advice(groups.roots());
    }).join();
    EXPECT_FALSE(mentions(advice, "allows")) << advice;
    EXPECT_TRUE(mentions(advice, "pids.max")) << advice;
    EXPECT_TRUE(may_open_files()) << "it is about that thread alone";
}

} // namespace
} // namespace vmm::kvm
