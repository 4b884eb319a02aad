#include "vmm/x86_boot_state.hpp"

#include "loader/entry_tables.hpp"

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
    case loader::EntryProtocol::linux64:
        registers.rsi = to_integer(entry.argument);
        set_segments(state, true);
        state.gdt.base = to_integer(layout.gdt);
        state.gdt.limit = sizeof(loader::BootGdt) - 1;
        state.cr0 |= kCr0Paging;
        state.cr3 = to_integer(layout.page_tables);
        state.cr4 = kCr4PhysicalAddressExtension;
        state.efer = kEferLongMode;
        break;
    case loader::EntryProtocol::linux32:
        registers.rsi = to_integer(entry.argument);
        set_segments(state, false);
        state.gdt.base = to_integer(layout.gdt);
        state.gdt.limit = sizeof(loader::BootGdt) - 1;
        state.cr4 = 0;
        state.efer = 0;
        break;
    case loader::EntryProtocol::pvh:
        registers.rbx = to_integer(entry.argument);
        set_segments(state, false);
        state.cr4 = 0;
        state.efer = 0;
        break;
    }
    vcpu.set_special_registers(state);
    vcpu.set_registers(registers);
}

void set_boot_msrs(kvm::Vcpu& vcpu) {
    constexpr std::uint32_t kMiscEnable = 0x1a0;
    constexpr std::uint64_t kFastStrings = 0x1;
    constexpr std::uint32_t kMtrrDefaultType = 0x2ff;
    constexpr std::uint64_t kMtrrsOnWriteBack = 0x806;
    static_cast<void>(vcpu.set_msr(kMiscEnable, kFastStrings));
    static_cast<void>(vcpu.set_msr(kMtrrDefaultType, kMtrrsOnWriteBack));
}

} // namespace vmm
