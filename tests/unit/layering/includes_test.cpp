#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "support/host_temporary_directory.hpp"
#include "support/layering_rules.hpp"

namespace vmm::layering {
namespace {

using testing::content_of;

using Files = std::vector<std::filesystem::path>;

Files sources_below(const std::filesystem::path& folder) {
    Files files;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
        const auto extension = entry.path().extension();
        if (extension == ".hpp" || extension == ".cpp" || extension == ".h" || extension == ".S") {
            files.push_back(entry.path());
        }
    }
    return files;
}

/// How many wrong includes `file` has if it includes `header`, which is given with its quotes or brackets.
std::size_t count_violations(const std::string& file, const std::string& header) {
    return violations(file, "#pragma once\n#include " + header + "\n").size();
}

TEST(IncludeArrows, SourceTreeFollowsThem) {
    const std::filesystem::path root = VMM_SOURCE_DIR;
    std::size_t includes_seen = 0;
    for (const std::string_view folder : kFolders) {
        const Files files = sources_below(root / folder);
        EXPECT_FALSE(files.empty()) << folder << "/ has no sources: was it renamed?";
        for (const auto& file : files) {
            const std::string text = content_of(file);
            includes_seen += text.find("#include") != std::string::npos ? 1 : 0;
            for (const std::string& wrong : violations(std::filesystem::relative(file, root), text)) {
                ADD_FAILURE() << wrong;
            }
        }
    }
    EXPECT_GT(includes_seen, 50U);
}

TEST(IncludeArrows, KvmKnowsNobody) {
    EXPECT_EQ(count_violations("kvm/vm.cpp", "\"kvm/vm.hpp\""), 0U);
    EXPECT_EQ(count_violations("kvm/vm.cpp", "\"prefault/plan.hpp\""), 1U);
    EXPECT_EQ(count_violations("kvm/vm.cpp", "\"devices/bus.hpp\""), 1U);
}

TEST(IncludeArrows, HostUnderKvmKnowsNobody) {
    EXPECT_EQ(count_violations("kvm/host/mapping.cpp", "\"kvm/host/error.hpp\""), 0U);
    EXPECT_EQ(count_violations("kvm/host/mapping.cpp", "\"kvm/vm.hpp\""), 1U);
    EXPECT_EQ(count_violations("kvm/host/mapping.cpp", "\"kvm/uapi.hpp\""), 1U);
}

TEST(IncludeArrows, HostSideOfPrefaultMakesNoKvmCall) {
    EXPECT_EQ(count_violations("prefault/host/pin.cpp", "\"prefault/host/numa.hpp\""), 0U);
    EXPECT_EQ(count_violations("prefault/host/pin.cpp", "\"prefault/plan.hpp\""), 0U);
    EXPECT_EQ(count_violations("prefault/host/pin.cpp", "\"kvm/host/mapping.hpp\""), 0U);
    EXPECT_EQ(count_violations("prefault/host/pin.cpp", "\"kvm/vm.hpp\""), 1U);
    EXPECT_EQ(count_violations("prefault/host/pin.cpp", "\"prefault/x86/scratch.hpp\""), 1U);
}

TEST(IncludeArrows, PrefaultKnowsKvmOnly) {
    EXPECT_EQ(count_violations("prefault/x86/scratch.hpp", "\"kvm/vm.hpp\""), 0U);
    EXPECT_EQ(count_violations("prefault/x86/scratch.hpp", "\"loader/acpi.hpp\""), 1U);
}

TEST(IncludeArrows, DevicesAndLoaderKnowOnlyTheHostSideOfKvm) {
    EXPECT_EQ(count_violations("devices/bus.cpp", "\"kvm/host/guest_memory.hpp\""), 0U);
    EXPECT_EQ(count_violations("devices/bus.cpp", "\"kvm/vm.hpp\""), 1U);
    EXPECT_EQ(count_violations("loader/acpi.cpp", "\"kvm/host/process_memory.hpp\""), 0U);
    EXPECT_EQ(count_violations("loader/acpi.cpp", "\"kvm/uapi.hpp\""), 1U);
}

TEST(IncludeArrows, DevicesAndLoaderDoNotKnowEachOther) {
    EXPECT_EQ(count_violations("devices/virtio/queue.cpp", "\"loader/elf_image.hpp\""), 1U);
    EXPECT_EQ(count_violations("loader/acpi.cpp", "\"devices/device.hpp\""), 1U);
}

TEST(IncludeArrows, NobodyBelowKnowsTheMachine) {
    EXPECT_EQ(count_violations("vmm/machine.cpp", "\"vmm/config.hpp\""), 0U);
    for (const std::string file : {"kvm/vm.cpp", "prefault/plan.cpp", "devices/bus.cpp", "loader/acpi.cpp"}) {
        EXPECT_EQ(count_violations(file, "\"vmm/config.hpp\""), 1U) << file;
    }
}

TEST(IncludeArrows, MachineDoesNotKnowTheCommand) {
    EXPECT_EQ(count_violations("vmm/cli/main.cpp", "\"vmm/cli/terminal.hpp\""), 0U);
    EXPECT_EQ(count_violations("vmm/cli/main.cpp", "\"vmm/machine.hpp\""), 0U);
    EXPECT_EQ(count_violations("vmm/machine.cpp", "\"vmm/cli/terminal.hpp\""), 1U);
    EXPECT_EQ(count_violations("vmm/bench/run.cpp", "\"vmm/cli/values.hpp\""), 1U);
}

TEST(IncludeArrows, MachineDoesNotKnowItsControl) {
    EXPECT_EQ(count_violations("vmm/control/server.cpp", "\"vmm/control/http.hpp\""), 0U);
    EXPECT_EQ(count_violations("vmm/control/service.hpp", "\"vmm/machine.hpp\""), 0U);
    EXPECT_EQ(count_violations("vmm/cli/run_guest.cpp", "\"vmm/control/service.hpp\""), 0U);
    EXPECT_EQ(count_violations("vmm/machine/run.cpp", "\"vmm/control/events.hpp\""), 1U);
    EXPECT_EQ(count_violations("vmm/bench/run.cpp", "\"vmm/control/client.hpp\""), 1U);
    EXPECT_EQ(count_violations("vmm/control/verbs.cpp", "\"vmm/cli/options.hpp\""), 1U);
}

TEST(IncludeArrows, RoomsBelowTheMachineKnowOnlyTheirRow) {
    EXPECT_EQ(count_violations("vmm/state/state_file.cpp", "\"devices/rtc.hpp\""), 0U);
    EXPECT_EQ(count_violations("vmm/state/state_file.cpp", "\"vmm/state/cbor.hpp\""), 0U);
    EXPECT_EQ(count_violations("vmm/state/state_file.cpp", "\"vmm/version.hpp\""), 0U);
    EXPECT_EQ(count_violations("vmm/state/memory_layout.cpp", "\"vmm/machine/memory_map.hpp\""), 0U);
    EXPECT_EQ(count_violations("vmm/state/memory_layout.cpp", "\"vmm/machine/guest_ram.hpp\""), 1U);
    EXPECT_EQ(count_violations("vmm/migration/frames.cpp", "\"vmm/machine/run.hpp\""), 1U);
    EXPECT_EQ(count_violations("vmm/output/report_file.cpp", "\"vmm/machine/run.hpp\""), 1U);
}

TEST(IncludeArrows, SandboxAndTlsKnowNextToNothing) {
    EXPECT_EQ(count_violations("vmm/sandbox/broker.cpp", "\"kvm/host/unique_fd.hpp\""), 0U);
    EXPECT_EQ(count_violations("vmm/sandbox/broker.cpp", "\"vmm/host/child_process.hpp\""), 0U);
    EXPECT_EQ(count_violations("vmm/sandbox/broker.cpp", "\"vmm/machine.hpp\""), 1U);
    EXPECT_EQ(count_violations("vmm/sandbox/broker.cpp", "\"kvm/uapi.hpp\""), 1U);
    EXPECT_EQ(count_violations("vmm/sandbox/filters/thread_rules.cpp", "\"kvm/uapi.hpp\""), 0U);
    EXPECT_EQ(count_violations("vmm/tls/session.cpp", "\"vmm/migration/tls_files.hpp\""), 0U);
    EXPECT_EQ(count_violations("vmm/tls/session.cpp", "\"kvm/host/error.hpp\""), 1U);
}

TEST(IncludeArrows, BuiltInGuestSharesNoHeaderWithTheHost) {
    EXPECT_EQ(count_violations("vmm/guest/main.cpp", "\"vmm/guest/text.hpp\""), 0U);
    EXPECT_EQ(count_violations("vmm/guest/main.cpp", "\"kvm/host/error.hpp\""), 1U);
}

TEST(IncludeArrows, ForeignHeadersHaveOnePlace) {
    EXPECT_EQ(count_violations("kvm/uapi.hpp", "<linux/kvm.h>"), 0U);
    EXPECT_EQ(count_violations("kvm/vm.cpp", "<linux/kvm.h>"), 1U);
    EXPECT_EQ(count_violations("vmm/cli/command_line.cpp", "<CLI/CLI.hpp>"), 0U);
    EXPECT_EQ(count_violations("vmm/cli/values.cpp", "<CLI/CLI.hpp>"), 1U);
    EXPECT_EQ(count_violations("vmm/cli/main.cpp", "<CLI/CLI.hpp>"), 1U);
    EXPECT_EQ(count_violations("vmm/control/http.cpp", "<boost/beast/http/parser.hpp>"), 0U);
    EXPECT_EQ(count_violations("vmm/control/server.cpp", "<boost/beast/http/parser.hpp>"), 1U);
    EXPECT_EQ(count_violations("vmm/tls/session.cpp", "<openssl/ssl.h>"), 0U);
    EXPECT_EQ(count_violations("vmm/migration/tls_helper.cpp", "<openssl/ssl.h>"), 1U);
    EXPECT_EQ(count_violations("loader/device_tree.cpp", "<libfdt.h>"), 0U);
    EXPECT_EQ(count_violations("loader/acpi.cpp", "<libfdt.h>"), 1U);
    EXPECT_EQ(count_violations("devices/uring_disk_io.cpp", "<liburing.h>"), 0U);
    EXPECT_EQ(count_violations("prefault/host/longterm_pin.cpp", "<liburing.h>"), 0U);
    EXPECT_EQ(count_violations("prefault/host/pin.cpp", "<liburing.h>"), 1U);
    EXPECT_EQ(count_violations("vmm/machine/event_loop.cpp", "<liburing.h>"), 1U);
    for (const std::string header : {"<numa.h>", "<numaif.h>"}) {
        EXPECT_EQ(count_violations("prefault/host/numa.cpp", header), 0U) << header;
        EXPECT_EQ(count_violations("prefault/host/populate.cpp", header), 1U) << header;
    }
}

TEST(IncludeArrows, PathsThatHideTheFolderAreRefused) {
    EXPECT_EQ(count_violations("kvm/vm.cpp", "\"vm.hpp\""), 1U);
    EXPECT_EQ(count_violations("devices/bus.cpp", "\"../vmm/config.hpp\""), 1U);
    EXPECT_EQ(count_violations("devices/bus.cpp", "<vmm/config.hpp>"), 1U);
}

TEST(IncludeArrows, OddSpellingsOfIncludeAreSeen) {
    EXPECT_EQ(violations("kvm/vm.cpp", "  #  include\t\"vmm/config.hpp\" // why\n").size(), 1U);
    EXPECT_TRUE(violations("kvm/vm.cpp", "// #include \"vmm/config.hpp\"\n").empty());
}

} // namespace
} // namespace vmm::layering
