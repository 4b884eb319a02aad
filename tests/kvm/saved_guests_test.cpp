// Guests in unusual states: each is saved in one machine and goes on in another.

#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "kvm/system.hpp"
#include "support/host_pipe.hpp"
#include "support/host_waiting.hpp"
#include "support/kvm_machine.hpp"
#include "support/kvm_snapshot.hpp"
#include "vmm/state/snapshot_reader.hpp"

namespace vmm::testing {
namespace {

using kernels::Code;

/// A guest that gets its commands as bytes at its serial port.
class Told {
  public:
    explicit Told(Config config) : running_(connected(std::move(config))) {}
    Running& operator*() noexcept { return running_; }
    void tell(char byte) const { write_text(keyboard_.writer.get(), std::string(1, byte)); }
    [[nodiscard]] bool says(const std::string& words) const { return running_.says(words); }

  private:
    Config connected(Config config) const {
        config.serial.input_fd = keyboard_.reader.get();
        return config;
    }

    Pipe keyboard_;
    Running running_;
};

class SavedGuest : public SnapshotTest {
  protected:
    [[nodiscard]] kvm::VcpuState saved_vcpu(std::size_t id) const {
        return SnapshotReader(path).state().machine.vcpus.at(id);
    }
    /// Saves the guest, which goes on, again and again until vCPU `id` was saved in that state.
    [[nodiscard]] bool saved_while(Running& running, std::size_t id, std::uint32_t mp_state) const {
        return eventually([&] {
            std::filesystem::remove_all(path);
            return take(running, true).complete && saved_vcpu(id).mp_state == mp_state;
        });
    }
};

TEST_F(SavedGuest, ThatHaltsForEverGoesOnHalting) {
    const TestKernel kernel(kernels::kHalt);
    const Config config = kernel.config();
    {
        Running running(config);
        ASSERT_TRUE(saved_while(running, 0, KVM_MP_STATE_HALTED));
    }
    const std::uint64_t where = saved_vcpu(0).registers.rip;
    Running again(restored(config));
    EXPECT_TRUE(saved_while(again, 0, KVM_MP_STATE_HALTED));
    EXPECT_EQ(saved_vcpu(0).registers.rip, where);
    EXPECT_EQ(again->statistics().state, RunState::kRunning);
}

// clang-format off
/// Runs on the first vCPU. Prints r; and then, for ever: waits for a byte, resets the other vCPUs (INIT), prints i,
/// waits for a byte, and starts the others (SIPI) at 0x9000. There each prints ! and halts.
const Code kStarter{
    0xc7, 0x05, 0x00, 0x90, 0x00, 0x00, 0xba, 0xf8, 0x03, 0xb0, // 9000: mov $0x3f8, %dx; mov $'!', %al
    0xc7, 0x05, 0x04, 0x90, 0x00, 0x00, 0x21, 0xee, 0xfa, 0xf4, // out %al, %dx; cli; hlt
    0xc7, 0x05, 0x08, 0x90, 0x00, 0x00, 0xeb, 0xfc, 0x00, 0x00, // jmp to cli
    0x66, 0xba, 0xf8, 0x03, 0xb0, 0x72, 0xee,                   // mov $0x3f8, %dx; mov $'r', %al; out %al, %dx
    0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7,       // again: mov $0x3fd, %dx; in %dx, %al; test $1, %al; jz
    0x66, 0xba, 0xf8, 0x03, 0xec,                               // mov $0x3f8, %dx; in %dx, %al
    0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe, 0x00, 0x45, 0x0c, 0x00, // movl $0xc4500, 0xfee00300: INIT to all others
    0xb0, 0x69, 0xee,                                           // mov $'i', %al; out %al, %dx
    0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7,       // the same wait
    0x66, 0xba, 0xf8, 0x03, 0xec,
    0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe, 0x09, 0x46, 0x0c, 0x00, // movl $0xc4609, 0xfee00300: SIPI, vector 9
    0xeb, 0xcb,                                                 // jmp again
};
// clang-format on

/// For each moment of a start of vCPUs.
TEST_F(SavedGuest, WhoseOtherVcpusAreNotStartedYetStartsThem) {
    const TestKernel kernel(kStarter);
    Config config = kernel.config();
    config.vcpus = 2;
    {
        Told guest(config);
        ASSERT_TRUE(guest.says("r"));
        ASSERT_TRUE(take(*guest).complete);
    }
    EXPECT_EQ(saved_vcpu(1).mp_state, KVM_MP_STATE_UNINITIALIZED);
    {
        Told guest(restored(config));
        guest.tell('1');
        ASSERT_TRUE(guest.says("i"));
        std::filesystem::remove_all(path);
        ASSERT_TRUE(take(*guest).complete);
    }
    EXPECT_EQ(saved_vcpu(1).mp_state, KVM_MP_STATE_INIT_RECEIVED);
    {
        Told guest(restored(config));
        guest.tell('2');
        ASSERT_TRUE(guest.says("!"));
        ASSERT_TRUE(saved_while(*guest, 1, KVM_MP_STATE_HALTED));
    }
    // A halted vCPU is started once more.
    Told guest(restored(config));
    guest.tell('3');
    ASSERT_TRUE(guest.says("i"));
    guest.tell('4');
    EXPECT_TRUE(guest.says("i!"));
}

constexpr std::uint64_t kLongModeActive = 1U << 10U; // of EFER
constexpr std::uint64_t kPaging = 1U << 31U;         // of CR0

TEST_F(SavedGuest, OfThirtyTwoBitsGoesOn) {
    const TestKernel kernel(kernels::kEcho);
    const Config config = kernel.config();
    {
        Told guest(config);
        guest.tell('a');
        ASSERT_TRUE(guest.says("a"));
        ASSERT_TRUE(take(*guest).complete);
    }
    EXPECT_EQ(saved_vcpu(0).special.efer & kLongModeActive, 0U);
    EXPECT_EQ(saved_vcpu(0).special.cr0 & (kPaging | 1U), 1U) << "protected mode";
    Told guest(restored(config));
    guest.tell('b');
    EXPECT_TRUE(guest.says("b"));
}

// clang-format off
/// Turns on 32-bit paging with PAE, with a large page from 0 on, and then does the same as kernels::kEcho.
Code paged_echo() {
    Code code{
        0xc7, 0x05, 0x00, 0x00, 0x02, 0x00, 0x01, 0x10, 0x02, 0x00, // movl $0x21001, 0x20000: the directory
        0xc7, 0x05, 0x00, 0x10, 0x02, 0x00, 0x83, 0x00, 0x00, 0x00, // movl $0x83, 0x21000: 2 MiB, writable
        0xb8, 0x20, 0x00, 0x00, 0x00, 0x0f, 0x22, 0xe0,             // mov $0x20, %eax; mov %eax, %cr4
        0xb8, 0x00, 0x00, 0x02, 0x00, 0x0f, 0x22, 0xd8,             // mov $0x20000, %eax; mov %eax, %cr3
        0x0f, 0x20, 0xc0, 0x0d, 0x00, 0x00, 0x00, 0x80,             // mov %cr0, %eax; or $0x80000000, %eax
        0x0f, 0x22, 0xc0,                                           // mov %eax, %cr0
    };
    code.insert(code.end(), kernels::kEcho.begin(), kernels::kEcho.end());
    return code;
}
// clang-format on

TEST_F(SavedGuest, OfThirtyTwoBitsWithItsOwnPageTablesGoesOn) {
    if (std::filesystem::exists("/sys/module/kvm_pvm")) {
        GTEST_SKIP() << "this host's KVM (PVM) runs no guest with page tables of 32 bits";
    }
    const TestKernel kernel(paged_echo());
    const Config config = kernel.config();
    {
        Told guest(config);
        guest.tell('a');
        ASSERT_TRUE(guest.says("a"));
        ASSERT_TRUE(take(*guest).complete);
    }
    EXPECT_EQ(saved_vcpu(0).special.efer & kLongModeActive, 0U);
    EXPECT_EQ(saved_vcpu(0).special.cr0 & kPaging, kPaging);
    Told guest(restored(config));
    guest.tell('b');
    EXPECT_TRUE(guest.says("b"));
}

// clang-format off
/// Enters system management mode by an interrupt of its own local APIC. There it prints s, waits for a byte, prints it,
/// and leaves the mode. Then it prints m.
const Code kManaged{
    0xc7, 0x05, 0x00, 0x80, 0x03, 0x00, 0xba, 0xf8, 0x03, 0xb0, // 38000: mov $0x3f8, %dx; mov $'s', %al
    0xc7, 0x05, 0x04, 0x80, 0x03, 0x00, 0x73, 0xee, 0xba, 0xfd, // out %al, %dx; 38006: mov $0x3fd, %dx
    0xc7, 0x05, 0x08, 0x80, 0x03, 0x00, 0x03, 0xec, 0xa8, 0x01, // in %dx, %al; test $1, %al
    0xc7, 0x05, 0x0c, 0x80, 0x03, 0x00, 0x74, 0xf8, 0xba, 0xf8, // jz 38006; mov $0x3f8, %dx
    0xc7, 0x05, 0x10, 0x80, 0x03, 0x00, 0x03, 0xec, 0xee, 0x0f, // in %dx, %al; out %al, %dx; rsm
    0xc7, 0x05, 0x14, 0x80, 0x03, 0x00, 0xaa, 0xf4, 0xf4, 0xf4,
    0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe, 0x00, 0x42, 0x04, 0x00, // movl $0x44200, 0xfee00300: SMI to itself
    0x66, 0xba, 0xf8, 0x03, 0xb0, 0x6d, 0xee, 0xeb, 0xfe,       // mov $0x3f8, %dx; mov $'m', %al; out %al, %dx; jmp .
};
// clang-format on

TEST_F(SavedGuest, InSystemManagementModeGoesOnThereAndLeavesIt) {
    if (kvm::System().extension(KVM_CAP_X86_SMM) == 0) {
        GTEST_SKIP() << "this host's KVM has no system management mode";
    }
    const TestKernel kernel(kManaged);
    Config config = kernel.config();
    config.prefault.scope = prefault::Scope::kAll;
    config.prefault.smm = true; // Without that there is no memory in this mode.
    {
        Told guest(config);
        ASSERT_TRUE(guest.says("s"));
        ASSERT_TRUE(take(*guest).complete);
        EXPECT_FALSE((*guest).output().find('m') != std::string::npos);
    }
    EXPECT_EQ(saved_vcpu(0).events.smi.smm, 1);
    Told guest(restored(config));
    guest.tell('x');
    EXPECT_TRUE(guest.says("xm"));
}

} // namespace
} // namespace vmm::testing
