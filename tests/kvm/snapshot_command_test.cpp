// `vmm snapshot`, as users run it.

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <fstream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "support/host_temporary_directory.hpp"
#include "support/kvm_command.hpp"
#include "support/vmm_full_state.hpp"
#include "vmm/state/crc32c.hpp"
#include "vmm/state/memory_layout.hpp"
#include "vmm/state/snapshot_writer.hpp"
#include "vmm/state/state_file.hpp"

namespace vmm::testing {
namespace {

class SnapshotCommandLine : public ::testing::Test {
  protected:
    /// A snapshot whose first chunk of memory has content, and whose other chunks are holes.
    SnapshotCommandLine() {
        SnapshotState state = FullState::make(2);
        const MemoryLayout layout(state.machine.memory);
        const std::vector<std::byte> content(kMemoryChunkBytes, std::byte{7});
        state.memory = MemoryIndex(layout.chunks());
        state.memory->front() = {false, crc32c(content)};
        SnapshotWriter writer(directory_ / "snapshot");
        EXPECT_EQ(::ftruncate(writer.memory_fd(), static_cast<off_t>(layout.file_bytes())), 0);
        EXPECT_EQ(::pwrite(writer.memory_fd(), content.data(), content.size(), 0),
                  static_cast<ssize_t>(content.size()));
        writer.commit(encode_state(state), "{}");
    }

    /// Checks that there is one line on standard error that contains `part`, nothing on standard output, and status 1.
    static void expect_refused(const std::vector<std::string>& arguments, const std::string& part) {
        const CommandResult result = run_command(arguments);
        EXPECT_EQ(result.exit_status, 1) << result.errors;
        EXPECT_EQ(result.output, "");
        EXPECT_NE(result.errors.find(part), std::string::npos) << result.errors;
        EXPECT_EQ(std::count(result.errors.begin(), result.errors.end(), '\n'), 1) << result.errors;
        EXPECT_TRUE(result.errors.starts_with("vmm: error: ")) << result.errors;
    }

    TemporaryDirectory directory_;
    std::string path_ = directory_ / "snapshot";
};

TEST_F(SnapshotCommandLine, SaysWhatIsInASnapshot) {
    const CommandResult text = run_command({"snapshot", "info", path_});
    EXPECT_EQ(text.exit_status, 0) << text.errors;
    EXPECT_NE(text.output.find("\nvCPUs           2\n"), std::string::npos) << text.output;
    const CommandResult json = run_command({"snapshot", "info", path_, "--json"});
    EXPECT_EQ(json.exit_status, 0) << json.errors;
    EXPECT_EQ(nlohmann::json::parse(json.output)["memory"]["not_zero_bytes"], 2 << 20) << json.output;
}

TEST_F(SnapshotCommandLine, VerifiesASnapshot) {
    const CommandResult result = run_command({"snapshot", "verify", path_, "--workers", "2"});
    EXPECT_EQ(result.exit_status, 0) << result.errors;
    EXPECT_EQ(result.output, path_ + ": its state and 7 MiB of memory are as they were saved\n");
    EXPECT_EQ(result.errors, "") << "there is no terminal";
    const CommandResult json = run_command({"snapshot", "verify", path_, "--json"});
    EXPECT_EQ(json.exit_status, 0) << json.errors;
    EXPECT_EQ(nlohmann::json::parse(json.output),
              (nlohmann::json{{"directory", path_}, {"verified", true}, {"memory_bytes", 7 << 20}}))
        << json.output;
}

TEST_F(SnapshotCommandLine, RefusesASnapshotThatIsDamaged) {
    std::fstream(path_ + "/memory", std::ios::in | std::ios::out | std::ios::binary).seekp(5) << "x";
    expect_refused({"snapshot", "verify", path_}, "guest memory 0x0-0x1fffff");
    std::fstream(path_ + "/state", std::ios::in | std::ios::out | std::ios::binary).seekp(2000) << "x";
    expect_refused({"snapshot", "verify", path_}, "is damaged: its checksum is another");
    expect_refused({"snapshot", "info", path_}, "is damaged: its checksum is another");
}

TEST_F(SnapshotCommandLine, RefusesWhatIsNoSnapshot) {
    expect_refused({"snapshot", "info", directory_ / "missing"}, "missing: No such file or directory");
    expect_refused({"snapshot", "verify", directory_.path()}, "/state: No such file or directory");
}

} // namespace
} // namespace vmm::testing
