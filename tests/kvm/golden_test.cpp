// Golden snapshots: a guest that the first version of each format saved goes on with every later version.

#include <gtest/gtest.h>

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "kvm/host/unique_fd.hpp"
#include "kvm/system.hpp"
#include "kvm/x86/saved_vcpu.hpp"
#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/kvm_command.hpp"
#include "support/kvm_require.hpp"
#include "vmm/config.hpp"
#include "vmm/machine/hardware.hpp"
#include "vmm/state/snapshot_reader.hpp"
#include "vmm/state/verify_memory.hpp"
#include "vmm/state/x86/missing_features.hpp"

namespace vmm::testing {
namespace {

/// The folder of the snapshots: in the tree, or the place where the lab puts them.
std::filesystem::path golden(const std::string& name) {
    const std::filesystem::path tree(GOLDEN_SNAPSHOTS);
    return (std::filesystem::exists(tree) ? tree : "/golden") / name;
}

/// Unpacks `file` into `to`. Zeros stay holes.
void unpack(const std::filesystem::path& file, const std::string& to) {
    const std::unique_ptr<FILE, int (*)(FILE*)> unpacked(::popen(("gzip -dc <'" + file.string() + "'").c_str(), "re"),
                                                         [](FILE* pipe) { return ::pclose(pipe); });
    ASSERT_TRUE(unpacked) << file;
    const UniqueFd out(::open(to.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    ASSERT_TRUE(out) << to;
    std::vector<char> page(4096);
    const std::vector<char> zeros(page.size());
    off_t size = 0;
    while (const std::size_t bytes = std::fread(page.data(), 1, page.size(), unpacked.get())) {
        if (!std::equal(page.begin(), page.begin() + static_cast<std::ptrdiff_t>(bytes), zeros.begin())) {
            ASSERT_EQ(::pwrite(out.get(), page.data(), bytes, size), static_cast<ssize_t>(bytes));
        }
        size += static_cast<off_t>(bytes);
    }
    ASSERT_EQ(::ftruncate(out.get(), size), 0);
}

/// The maker of the processor that this host offers to guests.
std::string host_vendor() {
    const kvm::System system;
    const auto cpuid = system.supported_cpuid();
    const auto leaf = std::ranges::find(cpuid, 0U, &kvm_cpuid_entry2::function);
    std::string vendor(12, '\0');
    const std::array<std::uint32_t, 3> words{leaf->ebx, leaf->edx, leaf->ecx};
    std::memcpy(vendor.data(), words.data(), vendor.size());
    return vendor;
}

/// One golden snapshot, by the name of its directory.
class Golden : public KvmTest, public ::testing::WithParamInterface<const char*> {
  protected:
    void SetUp() override {
        KvmTest::SetUp();
        const std::filesystem::path packed = golden(GetParam());
        std::filesystem::create_directory(path_);
        for (const char* const name : {"state", "config.json"}) {
            std::filesystem::copy_file(packed / name, std::filesystem::path(path_) / name);
        }
        ASSERT_NO_FATAL_FAILURE(unpack(packed / "memory.gz", path_ + "/memory"));
    }

    /// Returns the part of the message that says why this host cannot have the guest. It is empty if the host can have
    /// it. Only the host decides that, not this version of vmm.
    [[nodiscard]] static std::string why_not_here(const SnapshotState& state) {
        if (state.origin.cpu_vendor != host_vendor()) {
            return "its processor is of " + state.origin.cpu_vendor;
        }
        const kvm::System system;
        const kvm::Vm vm(system);
        kvm::Vcpu vcpu(vm, 0);
        const Config config;
        vcpu.set_cpuid(GuestCpuid(config, system).most());
        // Some KVMs cannot hide features of their processor, even if the guest is not offered them.
        if (!missing_features(state.machine.vcpus.front().cpuid, kvm::cpuid_of(vcpu)).empty()) {
            return "this host's processor has not all that its guest was offered";
        }
        const int khz = ::ioctl(vcpu.fd(), KVM_GET_TSC_KHZ, 0);
        const int saved = static_cast<int>(state.machine.vcpus.front().tsc_khz);
        // Without scaling KVM still lets a counter run ahead of the host's, but never behind it.
        if (std::abs(khz - saved) > saved / 4000 && ::ioctl(vcpu.fd(), KVM_SET_TSC_KHZ, saved) != 0) {
            return "this host cannot scale it";
        }
        return {};
    }

    TemporaryDirectory directory_;
    std::string path_ = directory_ / "snapshot";
};

TEST_P(Golden, IsReadAndItsChecksumsHold) {
    const SnapshotReader snapshot(path_);
    verify_memory(snapshot, 2);
    const MachineState& machine = snapshot.state().machine;
    EXPECT_EQ(machine.vcpus.size(), 1U);
    EXPECT_EQ(machine.memory, (std::vector{GuestRange{GuestAddress{0}, 16 * kMiB}}));
    EXPECT_TRUE(machine.generation_id_at);
    EXPECT_TRUE(mentions(snapshot.config(), "x86-64"));
}

/// The guest makes the rest of its passes. Each must find what the pass before it wrote.
TEST_P(Golden, GoesOnToItsEnd) {
    const std::string why_not = why_not_here(SnapshotReader(path_).state());
    for (const char* const mode : {"full", "cow"}) {
        const CommandResult result = run_command({"run", "-q", "--restore", path_, "--restore-mode", mode});
        if (!why_not.empty()) {
            EXPECT_EQ(result.exit_status, 1) << mode << ", although " << why_not;
            EXPECT_TRUE(mentions(result.errors, why_not)) << result.errors;
            EXPECT_EQ(std::ranges::count(result.errors, '\n'), 1) << result.errors;
            std::cout << "refused on this host, as it has to be: " << result.errors;
            continue;
        }
        EXPECT_EQ(result.exit_status, 0) << mode << ": " << result.errors;
        EXPECT_TRUE(mentions(result.output, "\npass=400 ")) << mode << ": " << result.output.substr(0, 1000);
        EXPECT_FALSE(mentions(result.output, "pass=49 ")) << mode << ": it has begun anew";
        EXPECT_TRUE(mentions(result.output, "\nsummary ")) << mode;
        std::size_t clean = 0;
        for (std::size_t at = 0; (at = result.output.find(" errors=", at)) != std::string::npos; ++at) {
            EXPECT_TRUE(result.output.substr(at + 8).starts_with("0\n") ||
                        result.output.substr(at + 8).starts_with("0\r"))
                << result.output.substr(at, 40);
            ++clean;
        }
        EXPECT_GT(clean, 200U) << mode;
    }
}

// The names have the version of the format. The snapshots of the lab were made in the lab: there a guest sees no
// feature of the processor that it was not offered.
INSTANTIATE_TEST_SUITE_P(Snapshot, Golden, ::testing::Values("snapshot-1", "snapshot-1-lab"));

} // namespace
} // namespace vmm::testing
