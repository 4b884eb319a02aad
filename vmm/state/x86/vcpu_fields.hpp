// The fields of the state of an x86 vCPU: see vmm/state/fields.hpp. Names are KVM's.
#pragma once

#include <cstddef>
#include <span>

#include "kvm/uapi.hpp"
#include "vmm/state/fields.hpp"

namespace vmm::vcpu_fields {

inline constexpr FieldSize kXsaveBytes{sizeof(kvm_xsave), 64 * 1024};
inline constexpr FieldSize kNestedBytes{0, 64 * 1024};
inline constexpr FieldSize kCpuidEntries{1, 256}; // KVM_MAX_CPUID_ENTRIES
inline constexpr FieldSize kMsrs{0, 1024};

inline void registers(auto& fields, auto& registers) {
    fields.number("rax", registers.rax);
    fields.number("rbx", registers.rbx);
    fields.number("rcx", registers.rcx);
    fields.number("rdx", registers.rdx);
    fields.number("rsi", registers.rsi);
    fields.number("rdi", registers.rdi);
    fields.number("rsp", registers.rsp);
    fields.number("rbp", registers.rbp);
    fields.number("r8", registers.r8);
    fields.number("r9", registers.r9);
    fields.number("r10", registers.r10);
    fields.number("r11", registers.r11);
    fields.number("r12", registers.r12);
    fields.number("r13", registers.r13);
    fields.number("r14", registers.r14);
    fields.number("r15", registers.r15);
    fields.number("rip", registers.rip);
    fields.number("rflags", registers.rflags);
}

inline void segment(auto& fields, auto& segment) {
    fields.number("base", segment.base);
    fields.number("limit", segment.limit);
    fields.number("selector", segment.selector);
    fields.number("type", segment.type);
    fields.number("present", segment.present);
    fields.number("dpl", segment.dpl);
    fields.number("db", segment.db);
    fields.number("s", segment.s);
    fields.number("l", segment.l);
    fields.number("g", segment.g);
    fields.number("avl", segment.avl);
    fields.number("unusable", segment.unusable);
}

inline void descriptor_table(auto& fields, auto& table) {
    fields.number("base", table.base);
    fields.number("limit", table.limit);
}

inline void special_registers(auto& fields, auto& special) {
    const auto describe_segment = [](auto& inner, auto& value) { segment(inner, value); };
    const auto describe_table = [](auto& inner, auto& value) { descriptor_table(inner, value); };
    fields.object("cs", special.cs, describe_segment);
    fields.object("ds", special.ds, describe_segment);
    fields.object("es", special.es, describe_segment);
    fields.object("fs", special.fs, describe_segment);
    fields.object("gs", special.gs, describe_segment);
    fields.object("ss", special.ss, describe_segment);
    fields.object("tr", special.tr, describe_segment);
    fields.object("ldt", special.ldt, describe_segment);
    fields.object("gdt", special.gdt, describe_table);
    fields.object("idt", special.idt, describe_table);
    fields.number("cr0", special.cr0);
    fields.number("cr2", special.cr2);
    fields.number("cr3", special.cr3);
    fields.number("cr4", special.cr4);
    fields.number("cr8", special.cr8);
    fields.number("efer", special.efer);
    fields.number("apic_base", special.apic_base);
    fields.number("flags", special.flags);
    fields.numbers("pdptrs", special.pdptrs);
}

inline void extended_control(auto& fields, auto& xcrs) {
    fields.number("nr_xcrs", xcrs.nr_xcrs, {0, KVM_MAX_XCRS});
    fields.number("flags", xcrs.flags);
    fields.rows("xcrs", std::span(xcrs.xcrs).first(xcrs.nr_xcrs), [](auto& row, auto& xcr) {
        row.number(xcr.xcr);
        row.number(xcr.value);
    });
}

inline void debug_registers(auto& fields, auto& debug) {
    fields.numbers("db", debug.db);
    fields.number("dr6", debug.dr6);
    fields.number("dr7", debug.dr7);
    fields.number("flags", debug.flags);
}

inline void events(auto& fields, auto& events) {
    fields.object("exception", events.exception, [](auto& inner, auto& exception) {
        inner.number("injected", exception.injected);
        inner.number("nr", exception.nr);
        inner.number("has_error_code", exception.has_error_code);
        inner.number("pending", exception.pending);
        inner.number("error_code", exception.error_code);
    });
    fields.object("interrupt", events.interrupt, [](auto& inner, auto& interrupt) {
        inner.number("injected", interrupt.injected);
        inner.number("nr", interrupt.nr);
        inner.number("soft", interrupt.soft);
        inner.number("shadow", interrupt.shadow);
    });
    fields.object("nmi", events.nmi, [](auto& inner, auto& nmi) {
        inner.number("injected", nmi.injected);
        inner.number("pending", nmi.pending);
        inner.number("masked", nmi.masked);
    });
    fields.number("sipi_vector", events.sipi_vector);
    fields.number("flags", events.flags);
    fields.object("smi", events.smi, [](auto& inner, auto& smi) {
        inner.number("smm", smi.smm);
        inner.number("pending", smi.pending);
        inner.number("smm_inside_nmi", smi.smm_inside_nmi);
        inner.number("latched_init", smi.latched_init);
    });
    fields.number("triple_fault_pending", events.triple_fault.pending);
    fields.number("exception_has_payload", events.exception_has_payload);
    fields.number("exception_payload", events.exception_payload);
}

inline void vcpu(auto& fields, auto& vcpu) {
    fields.number("mp_state", vcpu.mp_state);
    fields.object("registers", vcpu.registers, [](auto& inner, auto& value) { registers(inner, value); });
    fields.object("special", vcpu.special, [](auto& inner, auto& value) { special_registers(inner, value); });
    fields.bytes("xsave", vcpu.xsave, kXsaveBytes);
    fields.object("xcrs", vcpu.xcrs, [](auto& inner, auto& value) { extended_control(inner, value); });
    fields.object("debug", vcpu.debug, [](auto& inner, auto& value) { debug_registers(inner, value); });
    fields.raw("local_apic", vcpu.local_apic.regs);
    fields.number("tsc_khz", vcpu.tsc_khz);
    fields.number("tsc_offset", vcpu.tsc_offset);
    fields.rows("cpuid", vcpu.cpuid, kCpuidEntries, [](auto& row, auto& entry) {
        row.number(entry.function);
        row.number(entry.index);
        row.number(entry.flags);
        row.number(entry.eax);
        row.number(entry.ebx);
        row.number(entry.ecx);
        row.number(entry.edx);
    });
    fields.rows("msrs", vcpu.msrs, kMsrs, [](auto& row, auto& msr) {
        row.number(msr.index);
        row.number(msr.value);
    });
    fields.bytes("nested", vcpu.nested, kNestedBytes);
    fields.object("events", vcpu.events, [](auto& inner, auto& value) { events(inner, value); });
}

} // namespace vmm::vcpu_fields
