// KVM as wrapped by kvm/: the device, a VM, and a vCPU's exits.

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <variant>

#include "support/host_errors.hpp"
#include "support/host_process_facts.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/kvm_guest.hpp"
#include "support/kvm_require.hpp"

namespace vmm::kvm {
namespace {

using testing::Code;
using testing::error_of;
using testing::mentions;
using testing::name_of;
using testing::SmallVm;
using testing::values_of;

using SystemTest = testing::KvmTest;
using VmTest = testing::KvmTest;
using VcpuTest = testing::KvmTest;
using StatsTest = testing::KvmTest;

TEST_F(SystemTest, SaysWhatThisHostCanDo) {
    const System system;
    EXPECT_GE(system.max_vcpus(), 1U);
    EXPECT_GE(system.max_vcpu_ids(), system.max_vcpus());
    EXPECT_GE(system.vcpu_mmap_bytes(), sizeof(kvm_run));
    EXPECT_NE(system.extension(KVM_CAP_USER_MEMORY), 0);
    EXPECT_EQ(system.extension(1'000'000), 0);
}

TEST_F(SystemTest, SupportsTheFirstLeavesOfCpuid) {
    const auto cpuid = System().supported_cpuid();
    for (const std::uint32_t function : {0x0U, 0x1U, 0x80000000U}) {
        EXPECT_TRUE(std::ranges::any_of(cpuid, [&](const auto& entry) { return entry.function == function; }))
            << function;
    }
}

TEST_F(SystemTest, RefusesADeviceThatIsNotKvm) {
    EXPECT_TRUE(mentions(error_of([] { return System("/dev/null"); }), "/dev/null"));
    EXPECT_TRUE(mentions(error_of([] { return System("/dev/null"); }), "it is not the KVM device"));
}

TEST_F(SystemTest, SaysWhatToDoWhereTheDeviceIsMissing) {
    const std::string error = error_of([] { return System("/nonexistent/kvm"); });
    EXPECT_TRUE(mentions(error, "cannot open /nonexistent/kvm: No such file or directory (load kvm_amd or kvm_intel"))
        << error;
}

TEST_F(VmTest, RefusesOverlappingMemslots) {
    SmallVm small;
    const MemoryRegion& region = small.memory.regions()[0];
    const std::string error = error_of([&]() -> int {
        small.vm.add_memslot(1, {GuestAddress{4096}, 4096}, region.host);
        return 0;
    });
    EXPECT_TRUE(mentions(error, "memslot 1 for guest memory 0x1000-0x1fff")) << error;
}

TEST_F(VmTest, TakesMemslotsBesideEachOther) {
    SmallVm small;
    const Mapping more = Mapping::anonymous(kMiB, 4 * kKiB, 0, "a test");
    small.vm.add_memslot(1, {GuestAddress{2 * kMiB}, kMiB}, more.data());
}

TEST_F(VmTest, RefusesAnInterruptLineWithoutControllers) {
    SmallVm small;
    EXPECT_NE(error_of([&]() -> int {
                  small.vm.attach_irqfd(0, 4);
                  return 0;
              }),
              "");
}

TEST_F(VmTest, RefusesASecondVcpuOfTheSameId) {
    SmallVm small;
    const Vcpu first(small.vm, 0);
    EXPECT_TRUE(mentions(error_of([&] { return Vcpu(small.vm, 0); }), "create vCPU 0: File exists"));
}

TEST_F(VmTest, RefusesAVcpuIdBeyondTheMost) {
    SmallVm small;
    const unsigned beyond = small.system.max_vcpu_ids();
    EXPECT_TRUE(mentions(error_of([&] { return Vcpu(small.vm, beyond); }), "create vCPU " + std::to_string(beyond)));
}

TEST_F(VmTest, IsGoneWithItsOwner) {
    const std::size_t before = testing::count_descriptors();
    {
        SmallVm small(SmallVm::Interrupts::kInKernel);
        small.vm.create_pit();
        const Vcpu vcpu(small.vm, 0);
        static_cast<void>(vcpu.stats());
        EXPECT_GT(testing::count_descriptors(), before);
    }
    EXPECT_EQ(testing::count_descriptors(), before);
}

TEST_F(VcpuTest, KeepsItsRegisters) {
    SmallVm small;
    Vcpu vcpu(small.vm, 0);
    kvm_regs registers{};
    registers.rax = 0x1122334455667788;
    registers.r15 = 42;
    registers.rflags = 2;
    vcpu.set_registers(registers);
    EXPECT_EQ(vcpu.registers().rax, 0x1122334455667788U);
    EXPECT_EQ(vcpu.registers().r15, 42U);
}

TEST_F(VcpuTest, KeepsItsSpecialRegisters) {
    SmallVm small;
    Vcpu vcpu(small.vm, 0);
    kvm_sregs special = vcpu.special_registers();
    special.gdt = {0x12340, 0x17, {}};
    special.ds.base = 0x5000;
    vcpu.set_special_registers(special);
    EXPECT_EQ(vcpu.special_registers().gdt.base, 0x12340U);
    EXPECT_EQ(vcpu.special_registers().gdt.limit, 0x17U);
    EXPECT_EQ(vcpu.special_registers().ds.base, 0x5000U);
}

TEST_F(VcpuTest, SaysWhetherItTakesAnMsr) {
    constexpr std::uint32_t kFsBase = 0xc0000100;
    constexpr std::uint32_t kNoSuchMsr = 0x12345678;
    SmallVm small;
    Vcpu vcpu(small.vm, 0);
    vcpu.set_cpuid(small.system.supported_cpuid());
    EXPECT_TRUE(vcpu.set_msr(kFsBase, 0x1000));
    EXPECT_FALSE(vcpu.set_msr(kNoSuchMsr, 1));
}

TEST_F(VcpuTest, RefusesMoreCpuidThanTheKernelTakes) {
    SmallVm small;
    Vcpu vcpu(small.vm, 0);
    const std::vector<kvm_cpuid_entry2> far_too_many(10'000);
    EXPECT_TRUE(mentions(error_of([&]() -> int {
                             vcpu.set_cpuid(far_too_many);
                             return 0;
                         }),
                         "CPUID of vCPU 0"));
}

TEST_F(VcpuTest, ComesBackWithAPortWrite) {
    SmallVm small;
    Vcpu vcpu = small.vcpu_with({0xb0, 0x41, 0xe6, 0x80}); // mov $0x41, %al; out %al, $0x80
    const Exit exit = vcpu.run();
    const auto* const port = std::get_if<PioExit>(&exit);
    ASSERT_NE(port, nullptr) << name_of(exit);
    EXPECT_EQ(port->port, 0x80);
    EXPECT_EQ(port->width, 1);
    EXPECT_TRUE(port->is_write);
    EXPECT_EQ(values_of(port->data), std::vector<unsigned>{0x41});
}

TEST_F(VcpuTest, GivesTheGuestWhatAPortReadIsFilledWith) {
    SmallVm small;
    Vcpu vcpu = small.vcpu_with({0xe5, 0x80, 0xe7, 0x81}); // in $0x80, %ax; out %ax, $0x81
    Exit exit = vcpu.run();
    const auto* const read = std::get_if<PioExit>(&exit);
    ASSERT_NE(read, nullptr) << name_of(exit);
    EXPECT_FALSE(read->is_write);
    ASSERT_EQ(read->data.size(), 2U);
    read->data[0] = std::byte{0x34};
    read->data[1] = std::byte{0x12};
    exit = vcpu.run();
    const auto* const write = std::get_if<PioExit>(&exit);
    ASSERT_NE(write, nullptr) << name_of(exit);
    EXPECT_EQ(write->port, 0x81);
    EXPECT_EQ(values_of(write->data), (std::vector<unsigned>{0x34, 0x12}));
}

TEST_F(VcpuTest, GivesAllItemsOfAStringWrite) {
    SmallVm small;
    // mov $5, %cx; mov $0x3f8, %dx; rep outsb; hlt
    Vcpu vcpu = small.vcpu_with({0xb9, 0x05, 0x00, 0xba, 0xf8, 0x03, 0xf3, 0x6e, 0xf4});
    ASSERT_TRUE(small.memory.copy_in(SmallVm::kData, std::as_bytes(std::span("hello", 5))));
    std::string said;
    Exit exit = vcpu.run();
    while (const auto* const port = std::get_if<PioExit>(&exit)) { // KVM may take several exits for it.
        EXPECT_EQ(port->port, 0x3f8);
        for (const unsigned value : values_of(port->data)) {
            said += static_cast<char>(value);
        }
        exit = vcpu.run();
    }
    EXPECT_EQ(said, "hello");
    EXPECT_TRUE(std::holds_alternative<HaltExit>(exit)) << name_of(exit);
}

TEST_F(VcpuTest, TakesAllItemsOfAStringRead) {
    SmallVm small;
    // mov $4, %cx; mov $0x3f8, %dx; rep insb; hlt
    Vcpu vcpu = small.vcpu_with({0xb9, 0x04, 0x00, 0xba, 0xf8, 0x03, 0xf3, 0x6c, 0xf4});
    unsigned next = 1;
    Exit exit = vcpu.run();
    while (const auto* const port = std::get_if<PioExit>(&exit)) {
        for (std::byte& byte : port->data) {
            byte = static_cast<std::byte>(next++);
        }
        exit = vcpu.run();
    }
    EXPECT_TRUE(std::holds_alternative<HaltExit>(exit)) << name_of(exit);
    EXPECT_EQ(small.memory.load<std::uint32_t>(SmallVm::kData), 0x04030201U);
}

/// DS at an address that has no memory.
void point_ds_nowhere(Vcpu& vcpu) {
    kvm_sregs special = vcpu.special_registers();
    special.ds.base = SmallVm::kNowhere;
    vcpu.set_special_registers(special);
}

TEST_F(VcpuTest, ComesBackWithAWriteToNoMemory) {
    SmallVm small;
    Vcpu vcpu = small.vcpu_with({0xb0, 0x41, 0xa2, 0x08, 0x00}); // mov $0x41, %al; mov %al, 8
    point_ds_nowhere(vcpu);
    const Exit exit = vcpu.run();
    const auto* const mmio = std::get_if<MmioExit>(&exit);
    ASSERT_NE(mmio, nullptr) << name_of(exit);
    EXPECT_EQ(mmio->address, SmallVm::kNowhere + 8);
    EXPECT_TRUE(mmio->is_write);
    EXPECT_EQ(values_of(mmio->data), std::vector<unsigned>{0x41});
}

TEST_F(VcpuTest, GivesTheGuestWhatAReadOfNoMemoryIsFilledWith) {
    SmallVm small;
    Vcpu vcpu = small.vcpu_with({0xa0, 0x08, 0x00, 0xe6, 0x80}); // mov 8, %al; out %al, $0x80
    point_ds_nowhere(vcpu);
    Exit exit = vcpu.run();
    const auto* const mmio = std::get_if<MmioExit>(&exit);
    ASSERT_NE(mmio, nullptr) << name_of(exit);
    EXPECT_FALSE(mmio->is_write);
    mmio->data[0] = std::byte{0x42};
    exit = vcpu.run();
    const auto* const port = std::get_if<PioExit>(&exit);
    ASSERT_NE(port, nullptr) << name_of(exit);
    EXPECT_EQ(values_of(port->data), std::vector<unsigned>{0x42});
}

TEST_F(VcpuTest, ComesBackWithAHaltWithoutInterruptControllers) {
    SmallVm small;
    Vcpu vcpu = small.vcpu_with(testing::kHalt);
    const Exit exit = vcpu.run();
    EXPECT_TRUE(std::holds_alternative<HaltExit>(exit)) << name_of(exit);
}

/// 32-bit mode without paging, in flat segments, and without a table of interrupts.
void enter_protected_mode(Vcpu& vcpu) {
    kvm_sregs special = vcpu.special_registers();
    special.cr0 |= 1;
    special.idt = {};
    for (kvm_segment* const segment : {&special.cs, &special.ds, &special.es, &special.ss}) {
        const bool code = segment == &special.cs;
        *segment = {};
        segment->limit = 0xffffffff;
        segment->selector = code ? 0x8 : 0x10;
        segment->type = code ? 0xb : 0x3;
        segment->present = segment->s = segment->g = segment->db = 1;
    }
    vcpu.set_special_registers(special);
}

TEST_F(VcpuTest, ComesBackWithATripleFault) {
    SmallVm small;
    Vcpu vcpu = small.vcpu_with({0x0f, 0x0b}); // ud2 without a handler
    enter_protected_mode(vcpu);
    const Exit exit = vcpu.run();
    EXPECT_TRUE(std::holds_alternative<ShutdownExit>(exit)) << name_of(exit);
}

TEST_F(VcpuTest, ComesBackWithAFaultForCodeThatIsNotInMemory) {
    SmallVm small;
    Vcpu vcpu = small.vcpu_with(testing::kHalt);
    kvm_sregs special = vcpu.special_registers();
    special.cs.base = SmallVm::kNowhere;
    vcpu.set_special_registers(special);
    const Exit exit = vcpu.run();
    const auto* const fault = std::get_if<FaultExit>(&exit);
    ASSERT_NE(fault, nullptr) << name_of(exit);
    EXPECT_TRUE(mentions(fault->what, "KVM internal error 1")) << fault->what;
}

TEST_F(VcpuTest, WithoutStateOfAnInterruptControllerCannotBeParked) {
    SmallVm small;
    Vcpu vcpu(small.vm, 0);
    EXPECT_TRUE(mentions(error_of([&]() -> int {
                             vcpu.set_mp_state(MpState::kUninitialized);
                             return 0;
                         }),
                         "start or park vCPU 0"));
}

TEST_F(VcpuTest, PreFaultsAllOfARangeOrSaysThatKvmCannot) {
    SmallVm small;
    Vcpu vcpu(small.vm, 0);
    const Vcpu::PreFaulted result = vcpu.pre_fault(small.memory.regions()[0].range);
    if (result.error_number != 0) {
        EXPECT_EQ(result.bytes, 0U);
        return;
    }
    EXPECT_EQ(result.bytes, small.memory.size_bytes());
}

TEST_F(VcpuTest, PreFaultsUpToWhereThereIsNoMemory) {
    SmallVm small;
    Vcpu vcpu(small.vm, 0);
    if (vcpu.pre_fault({GuestAddress{0}, 4096}).error_number != 0) {
        GTEST_SKIP() << "this KVM has no KVM_PRE_FAULT_MEMORY, or not for shadow paging";
    }
    const Vcpu::PreFaulted result = vcpu.pre_fault({GuestAddress{kMiB}, 2 * kMiB});
    EXPECT_EQ(result.error_number, ENOENT);
    EXPECT_EQ(result.bytes, kMiB);
}

TEST_F(VmTest, RefusesADirtyLogOfAMemslotThatIsElsewhere) {
    SmallVm small;
    const MemoryRegion& region = small.memory.regions()[0];
    const std::string error = error_of([&]() -> int {
        small.vm.log_dirty_pages(0, {GuestAddress{0}, kMiB}, region.host, true);
        return 0;
    });
    EXPECT_TRUE(mentions(error, "log the dirty pages of memslot 0")) << error;
}

TEST_F(StatsTest, OfAVcpuCountItsExits) {
    SmallVm small;
    Vcpu vcpu = small.vcpu_with({0xe6, 0x80, 0xe6, 0x80, 0xe6, 0x80}); // three times out %al, $0x80
    const Stats stats = vcpu.stats();
    const auto before = stats.value("exits");
    ASSERT_TRUE(before);
    for (int i = 0; i < 3; ++i) {
        static_cast<void>(vcpu.run());
    }
    EXPECT_GE(*stats.value("exits"), *before + 3);
}

TEST_F(StatsTest, HaveTheCountersThatThePrefaultNeeds) {
    SmallVm small;
    const Vcpu vcpu(small.vm, 0);
    EXPECT_TRUE(vcpu.stats().value("pf_fixed"));
    for (const char* const name : {"pages_4k", "pages_2m", "pages_1g"}) {
        EXPECT_TRUE(small.vm.stats().value(name)) << name;
    }
}

TEST_F(StatsTest, HaveNoValueForAnUnknownName) {
    SmallVm small;
    EXPECT_FALSE(small.vm.stats().value("no_such_counter"));
    EXPECT_FALSE(small.vm.stats().names().empty());
}

TEST_F(StatsTest, OutliveTheVcpu) {
    SmallVm small;
    const Stats stats = Vcpu(small.vm, 0).stats();
    EXPECT_TRUE(stats.value("exits"));
}

} // namespace
} // namespace vmm::kvm
