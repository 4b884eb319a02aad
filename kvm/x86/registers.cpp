#include "kvm/x86/registers.hpp"

#include "kvm/host/format.hpp"

namespace vmm::kvm {

std::string describe_registers(const kvm_regs& r, const kvm_sregs& s) {
    std::string text = vmm::format("rip {:016x}  rflags {:016x}\n", r.rip, r.rflags);
    const auto row = [&text](auto... name_value) {
        text += vmm::format("{:<4} {:016x}  {:<4} {:016x}  {:<4} {:016x}  {:<4} {:016x}\n", name_value...);
    };
    row("rax", r.rax, "rbx", r.rbx, "rcx", r.rcx, "rdx", r.rdx);
    row("rsi", r.rsi, "rdi", r.rdi, "rbp", r.rbp, "rsp", r.rsp);
    row("r8", r.r8, "r9", r.r9, "r10", r.r10, "r11", r.r11);
    row("r12", r.r12, "r13", r.r13, "r14", r.r14, "r15", r.r15);
    row("cr0", s.cr0, "cr2", s.cr2, "cr3", s.cr3, "cr4", s.cr4);
    text += vmm::format("efer {:016x}  gdt  {:016x}/{:04x}  idt {:016x}/{:04x}\n", s.efer, s.gdt.base, s.gdt.limit,
                        s.idt.base, s.idt.limit);
    text += vmm::format("cs {:04x} base {:x} dpl {} l {} db {}  ss {:04x}  ds {:04x}  es {:04x}  tr {:04x}\n",
                        s.cs.selector, s.cs.base, s.cs.dpl, s.cs.l, s.cs.db, s.ss.selector, s.ds.selector,
                        s.es.selector, s.tr.selector);
    return text;
}

} // namespace vmm::kvm
