#include "vmm/machine/x86/boot_state.hpp"

#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "kvm/host/error.hpp"
#include "loader/x86/entry_tables.hpp"
#include "vmm/machine/memory_map.hpp"
#include "vmm/machine/x86/cpu_model.hpp"
#include "vmm/machine/x86/cpuid.hpp"

namespace vmm {

namespace {

constexpr std::uint64_t kFlagsReserved = 0x2; // RFLAGS bit 1 is always one
constexpr std::uint64_t kCr0ProtectedMode = 0x1;
constexpr std::uint64_t kCr0ExtensionType = 0x10;
constexpr std::uint64_t kCr0Paging = 0x80000000;
constexpr std::uint64_t kCr4PhysicalAddressExtension = 0x20;
constexpr std::uint64_t kEferLongMode = 0x500; // LME and LMA

/// A flat ring-0 segment. `type` as in a descriptor (AMD64 volume 2, 4.8).
kvm_segment flat_segment(std::uint16_t selector, std::uint8_t type) {
    kvm_segment segment{};
    segment.limit = 0xffffffff;
    segment.selector = selector;
    segment.type = type;
    segment.present = 1;
    segment.s = 1;
    segment.g = 1;
    segment.db = 1;
    return segment;
}

void set_segments(kvm_sregs& state, bool code_is_64_bit) {
    constexpr std::uint8_t kCodeReadAccessed = 0xb;
    constexpr std::uint8_t kDataWriteAccessed = 0x3;
    constexpr std::uint8_t kBusyTask = 0xb;
    state.cs = flat_segment(loader::kBootCodeSelector, kCodeReadAccessed);
    state.cs.l = code_is_64_bit ? 1 : 0;
    state.cs.db = code_is_64_bit ? 0 : 1;
    state.ds = state.es = state.fs = state.gs = state.ss = flat_segment(loader::kBootDataSelector, kDataWriteAccessed);
    state.tr = {};
    state.tr.limit = 0x67;
    state.tr.type = kBusyTask;
    state.tr.present = 1;
}

} // namespace

void set_boot_state(kvm::Vcpu& vcpu, const loader::BootEntry& entry, const loader::BootLayout& layout) {
    kvm_regs registers{};
    registers.rip = to_integer(entry.entry);
    registers.rflags = kFlagsReserved;
    kvm_sregs state = vcpu.special_registers();
    state.cr0 = kCr0ProtectedMode | kCr0ExtensionType;
    switch (entry.protocol) {
    case loader::EntryProtocol::kLinux64:
        registers.rsi = to_integer(entry.argument);
        set_segments(state, true);
        state.gdt.base = to_integer(layout.gdt);
        state.gdt.limit = sizeof(loader::BootGdt) - 1;
        state.cr0 |= kCr0Paging;
        state.cr3 = to_integer(layout.page_tables);
        state.cr4 = kCr4PhysicalAddressExtension;
        state.efer = kEferLongMode;
        break;
    case loader::EntryProtocol::kLinux32:
        registers.rsi = to_integer(entry.argument);
        set_segments(state, false);
        state.gdt.base = to_integer(layout.gdt);
        state.gdt.limit = sizeof(loader::BootGdt) - 1;
        state.cr4 = 0;
        state.efer = 0;
        break;
    case loader::EntryProtocol::kPvh:
        registers.rbx = to_integer(entry.argument);
        set_segments(state, false);
        state.cr4 = 0;
        state.efer = 0;
        break;
    }
    vcpu.set_special_registers(state);
    vcpu.set_registers(registers);
}

namespace {

void set_up_pic(kvm::Vm& vm, std::uint32_t chip, std::uint8_t first_vector, std::uint8_t mask) {
    kvm_irqchip state{};
    state.chip_id = chip;
    if (::ioctl(vm.fd(), KVM_GET_IRQCHIP, &state) != 0) {
        throw_errno(errno, "read the state of the PIC");
    }
    // The structure has a union; its identifier says which member is used.
    state.chip.pic.irq_base = first_vector;
    state.chip.pic.imr = mask;
    state.chip.pic.init4 = 1; // The chip is initialised: ICW1 to ICW4 have come.
    state.chip.pic.init_state = 0;
    if (::ioctl(vm.fd(), KVM_SET_IRQCHIP, &state) != 0) {
        throw_errno(errno, "set the state of the PIC");
    }
}

} // namespace

void set_up_pics(kvm::Vm& vm) {
    constexpr std::uint8_t kAllButCascade = 0xfb;
    set_up_pic(vm, KVM_IRQCHIP_PIC_MASTER, 0x08, kAllButCascade);
    set_up_pic(vm, KVM_IRQCHIP_PIC_SLAVE, 0x70, 0xff);
}

std::vector<MsrValue> memory_type_registers(unsigned address_bits) {
    constexpr std::uint64_t kUncacheable = 0x00;
    constexpr std::uint64_t kWriteBack = 0x06;
    constexpr std::uint64_t kEightWriteBack = 0x0606060606060606; // a fixed register has eight ranges
    constexpr std::uint64_t kEightUncacheable = 0;
    constexpr std::uint32_t kDefaultType = 0x2ff;
    constexpr std::uint64_t kFixedRangesOn = 0x400;
    constexpr std::uint64_t kOn = 0x800;
    constexpr std::uint32_t kFixed64K = 0x250;      // 0 to 512 KiB
    constexpr std::uint32_t kFixed16K = 0x258;      // to 640 KiB
    constexpr std::uint32_t kFixed16KVideo = 0x259; // to 768 KiB: where a VGA adapter has its memory
    constexpr std::uint32_t kFirstFixed4K = 0x268;  // to 1 MiB, 32 KiB each
    constexpr std::uint32_t kLastFixed4K = 0x26f;
    constexpr std::uint32_t kBase0 = 0x200;
    constexpr std::uint32_t kMask0 = 0x201;
    constexpr std::uint64_t kMaskValid = 0x800;

    std::vector<MsrValue> registers{
        {kFixed64K, kEightWriteBack}, {kFixed16K, kEightWriteBack}, {kFixed16KVideo, kEightUncacheable}};
    for (std::uint32_t index = kFirstFixed4K; index <= kLastFixed4K; ++index) {
        registers.push_back({index, kEightWriteBack});
    }
    // One of the variable ranges is for the hole. Its size is a power of two, and it begins at a multiple of that.
    constexpr GuestRange kHole = memory_map::kHole;
    static_assert((kHole.size & (kHole.size - 1)) == 0 && to_integer(kHole.base) % kHole.size == 0);
    const std::uint64_t all_bits = address_bits >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << address_bits) - 1;
    registers.push_back({kBase0, to_integer(kHole.base) | kUncacheable});
    registers.push_back({kMask0, (all_bits & ~(kHole.size - 1)) | kMaskValid});
    // This register comes last, because it switches the others on.
    registers.push_back({kDefaultType, kOn | kFixedRangesOn | kWriteBack});
    return registers;
}

namespace {

void set_memory_types(kvm::Vcpu& vcpu, std::span<const kvm_cpuid_entry2> cpuid) {
    if (!has_cpu_feature(cpuid, "mtrr")) {
        return;
    }
    for (const MsrValue& each : memory_type_registers(physical_address_bits(cpuid))) {
        static_cast<void>(vcpu.set_msr(each.index, each.value));
    }
}

/// Sets up the banks as QEMU does: their control registers are all ones. KVM then gives them this value.
void set_machine_checks(kvm::Vcpu& vcpu, std::span<const kvm_cpuid_entry2> cpuid, std::uint64_t capabilities) {
    constexpr std::uint64_t kBankCount = 0xff;
    constexpr std::uint64_t kBanks = 10;
    constexpr std::uint64_t kControlPresent = 1U << 8U;         // MCG_CTL_P
    constexpr std::uint64_t kSoftwareErrorRecovery = 1U << 24U; // MCG_SER_P
    const std::uint64_t banks = std::min(kBanks, capabilities & kBankCount);
    if (banks != 0 && has_cpu_feature(cpuid, "mce") && has_cpu_feature(cpuid, "mca")) {
        vcpu.set_up_machine_checks((capabilities & (kControlPresent | kSoftwareErrorRecovery)) | banks);
    }
}

/// Intel SDM volume 3, 11.5.1 and MultiProcessor Specification 1.4, 3.6.2: "virtual wire" mode.
void set_local_interrupts(kvm::Vcpu& vcpu) {
    constexpr std::size_t kSpuriousVector = 0xf0;
    constexpr std::size_t kLint0 = 0x350;
    constexpr std::size_t kLint1 = 0x360;
    constexpr std::uint32_t kSoftwareEnabled = 1U << 8U;
    constexpr std::uint32_t kExternal = 0x700; // delivery mode: the PIC gives the vector
    constexpr std::uint32_t kNmi = 0x400;
    kvm_lapic_state registers = vcpu.local_apic();
    const auto put = [&registers](std::size_t offset, std::uint32_t value) {
        static_assert(kLint1 + sizeof value <= sizeof registers.regs);
        std::memcpy(&registers.regs[offset], &value, sizeof value);
    };
    if (vcpu.id() == 0) {
        put(kSpuriousVector, 0xff | kSoftwareEnabled);
        put(kLint0, kExternal);
    }
    put(kLint1, kNmi);
    vcpu.set_local_apic(registers);
}

/// Switches the cache on, as real firmware does long before a kernel starts. KVM resets a vCPU with its cache off (CD
/// and NW), as a processor is after power-on, and an INIT does not change that.
void switch_cache_on(kvm::Vcpu& vcpu) {
    constexpr std::uint64_t kCr0CacheDisable = 0x40000000;
    constexpr std::uint64_t kCr0NotWriteThrough = 0x20000000;
    kvm_sregs state = vcpu.special_registers();
    state.cr0 &= ~(kCr0CacheDisable | kCr0NotWriteThrough);
    vcpu.set_special_registers(state);
}

} // namespace

void set_reset_state(kvm::Vcpu& vcpu, std::span<const kvm_cpuid_entry2> cpuid,
                     std::uint64_t machine_check_capabilities) {
    constexpr std::uint32_t kMiscEnable = 0x1a0;
    constexpr std::uint64_t kFastStrings = 0x1;
    static_cast<void>(vcpu.set_msr(kMiscEnable, kFastStrings));
    set_memory_types(vcpu, cpuid);
    set_machine_checks(vcpu, cpuid, machine_check_capabilities);
    set_local_interrupts(vcpu);
    switch_cache_on(vcpu);
}

} // namespace vmm
