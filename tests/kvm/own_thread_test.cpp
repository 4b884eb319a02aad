// KVM needs a thread of its own, which counts as a thread of this process. A control group may have no room for it.

#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>

#include "kvm/host/cgroup.hpp"
#include "kvm/host/error.hpp"
#include "support/host_errors.hpp"
#include "support/kvm_command.hpp"
#include "support/kvm_require.hpp"

namespace vmm::testing {
namespace {

/// A pids group of the test, below the group that the test is in. Removed at the end.
class PidsGroup {
  public:
    PidsGroup() {
        for (const CgroupLineage& lineage : cgroup_lineages("pids")) {
            const std::filesystem::path folder = lineage.folders.front() / ("vmm-test-" + std::to_string(::getpid()));
            std::error_code failed;
            if (std::filesystem::create_directory(folder, failed) && std::filesystem::exists(folder / "pids.max")) {
                folder_ = folder;
                return;
            }
            std::filesystem::remove(folder, failed);
        }
    }
    ~PidsGroup() {
        if (!folder_.empty()) {
            eventually([this] { return ::rmdir(folder_.c_str()) == 0; });
        }
    }
    PidsGroup(const PidsGroup&) = delete;
    PidsGroup& operator=(const PidsGroup&) = delete;

    [[nodiscard]] bool is_there() const { return !folder_.empty(); }
    [[nodiscard]] const std::filesystem::path& folder() const { return folder_; }
    [[nodiscard]] bool allow(unsigned tasks) const { return write("pids.max", std::to_string(tasks)); }

  private:
    [[nodiscard]] bool write(const std::string& file, const std::string& text) const {
        std::ofstream stream(folder_ / file);
        stream << text << std::flush;
        return stream.good();
    }
    std::filesystem::path folder_;
};

std::string procs_file; // for the new process, which takes no arguments

void join_group() {
    std::ofstream stream(procs_file);
    stream << ::getpid() << std::flush;
    if (!stream.good()) {
        ::_exit(99);
    }
}

using OwnThread = KvmTest;

TEST_F(OwnThread, OfKvmsThatAPidsGroupHasNoRoomForIsNamed) {
    const PidsGroup group;
    if (!group.is_there()) {
        GTEST_SKIP() << "no pids cgroup can be made here";
    }
    procs_file = group.folder() / "cgroup.procs";
    constexpr unsigned kMainThread = 1;
    constexpr unsigned kVcpus = 2;
    // The watcher of the prefault has ended when the vCPUs run. If KVM needs no thread, the guest runs.
    bool seen = false;
    for (unsigned tasks = kMainThread + kVcpus; tasks < kMainThread + kVcpus + 8; ++tasks) {
        if (!group.allow(tasks)) {
            GTEST_SKIP() << "pids.max cannot be written";
        }
        const CommandResult result = run_command({"run", "-c", "2", "-m", "64M"}, join_group);
        if (result.exit_status == 99) {
            GTEST_SKIP() << "a process cannot be put into a pids group here";
        }
        ASSERT_TRUE(result.exit_status == 0 || result.exit_status == 1) << tasks << ": " << result.errors;
        seen = seen || mentions(result.errors, group.folder().string() + " allows");
        if (result.exit_status == 0) {
            break;
        }
    }
    if (!seen) {
        GTEST_SKIP() << "this KVM needs no thread of its own";
    }
}

} // namespace
} // namespace vmm::testing
