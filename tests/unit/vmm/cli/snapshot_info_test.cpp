#include "vmm/cli/snapshot_info.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <functional>
#include <string>

#include <nlohmann/json.hpp>

#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/vmm_full_state.hpp"
#include "vmm/state/snapshot_writer.hpp"
#include "vmm/state/state_file.hpp"

namespace vmm {
namespace {

using testing::FullState;
using testing::mentions;

/// A snapshot of `FullState`, after `change`, and without any memory in its file.
struct WrittenSnapshot {
    explicit WrittenSnapshot(const std::function<void(SnapshotState&)>& change = [](SnapshotState&) {}) {
        SnapshotState state = FullState::make(2);
        kvm::VcpuState& vcpu = state.machine.vcpus.front();
        vcpu.cpuid.assign(1, kvm_cpuid_entry2{});
        vcpu.cpuid[0].function = 1;
        vcpu.cpuid[0].ecx = 1U << 20U | 1U << 28U; // sse4_2, avx
        vcpu.tsc_khz = 2'400'000;
        state.machine.vm.clock.clock = 12'345'000'000;
        state.machine.vm.realtime_ns = 1'700'000'000'000'000'000;
        change(state);
        SnapshotWriter writer(parent / "snapshot");
        const auto bytes = static_cast<off_t>(MemoryLayout(state.machine.memory).file_bytes());
        EXPECT_EQ(::ftruncate(writer.memory_fd(), bytes), 0);
        writer.commit(encode_state(state), "{}");
    }

    [[nodiscard]] SnapshotReader read() const { return SnapshotReader(parent / "snapshot"); }

    testing::TemporaryDirectory parent;
};

TEST(SnapshotInfo, SaysWhatIsInIt) {
    const WrittenSnapshot snapshot;
    const std::string text = snapshot_info_text(snapshot.read());
    for (const std::string line :
         {"made            2023-11-14 22:13:20 UTC, by vmm 0.1.0\n",
          "host            Linux 6.12.5, A processor (GenuineIntel)\n", "architecture    x86-64\n",
          "vCPUs           2\n",
          "memory          7 MiB (7340032 bytes); pieces of 2 MiB that are not zero: 5 MiB; on the disk: 0 bytes\n",
          "                0x100000000-0x1001fffff\n",
          ("devices         blk0 (block), net0 (net), rng0 (rng), console0 (console), vsock0 (vsock),\n"
           "                balloon0 (balloon), other0 (none)\n"),
          "clock           12.345 s of the guest's, at 2023-11-14 22:13:20 UTC of the host's; 2400000 kHz\n",
          "features        avx sse4_2\n"}) {
        EXPECT_TRUE(mentions(text, line)) << line << " is not in\n" << text;
    }
}

TEST(SnapshotInfo, SaysTheSameToPrograms) {
    const WrittenSnapshot snapshot;
    const auto info = nlohmann::json::parse(snapshot_info_json(snapshot.read()));
    EXPECT_EQ(info["directory"], snapshot.parent / "snapshot");
    EXPECT_EQ(info["created_at"], "2023-11-14T22:13:20Z");
    EXPECT_EQ(info["vmm_version"], "0.1.0");
    EXPECT_EQ(info["kernel_release"], "6.12.5");
    EXPECT_EQ(info["vcpus"], 2);
    EXPECT_EQ(info["memory"]["bytes"], 7 * kMiB);
    EXPECT_EQ(info["memory"]["not_zero_bytes"], 5 * kMiB);
    EXPECT_EQ(info["memory"]["disk_bytes"], 0);
    EXPECT_EQ(info["memory"]["regions"][1]["base"], 4 * kGiB);
    EXPECT_EQ(info["devices"].size(), 7U);
    EXPECT_EQ(info["devices"][1]["kind"], "net");
    EXPECT_EQ(info["clock"]["tsc_khz"], 2'400'000);
    EXPECT_EQ(info["clock"]["guest_ns"], 12'345'000'000);
    EXPECT_EQ(info["cpu"]["vendor"], "GenuineIntel");
    EXPECT_EQ(info["cpu"]["features"], (nlohmann::json{"avx", "sse4_2"}));
    EXPECT_EQ(info["generation_id"].get<std::string>().size(), 32U);
}

TEST(SnapshotInfo, ShowsNothingThatATerminalWouldObey) {
    const WrittenSnapshot snapshot([](SnapshotState& state) {
        state.origin.cpu_model = "\x1b[2J";
        state.origin.vmm_version = "a\nb\xff";
        state.origin.created_at = INT64_MAX;
        state.machine.virtio.resize(1);
        state.machine.virtio[0].name = "blk\x07";
        state.machine.generation_id_at.reset();
    });
    const std::string text = snapshot_info_text(snapshot.read());
    EXPECT_TRUE(mentions(text, "made            at a time that is not known, by vmm a?b?\n")) << text;
    EXPECT_TRUE(mentions(text, "?[2J (GenuineIntel)")) << text;
    EXPECT_TRUE(mentions(text, "blk? (block)")) << text;
    EXPECT_TRUE(mentions(text, "generation      none\n")) << text;
    const auto info = nlohmann::json::parse(snapshot_info_json(snapshot.read()));
    EXPECT_EQ(info["created_at"], "");
    EXPECT_FALSE(info.contains("generation_id"));
}

} // namespace
} // namespace vmm
