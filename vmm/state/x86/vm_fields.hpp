// The fields of the state of an x86 VM beyond its vCPUs: see vmm/state/fields.hpp. Names are KVM's.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kvm/uapi.hpp"
#include "vmm/state/fields.hpp"

namespace vmm::vm_fields {

inline void interrupt_controller(auto& fields, auto& pic) {
    fields.number("last_irr", pic.last_irr);
    fields.number("irr", pic.irr);
    fields.number("imr", pic.imr);
    fields.number("isr", pic.isr);
    fields.number("priority_add", pic.priority_add);
    fields.number("irq_base", pic.irq_base);
    fields.number("read_reg_select", pic.read_reg_select);
    fields.number("poll", pic.poll);
    fields.number("special_mask", pic.special_mask);
    fields.number("init_state", pic.init_state);
    fields.number("auto_eoi", pic.auto_eoi);
    fields.number("rotate_on_auto_eoi", pic.rotate_on_auto_eoi);
    fields.number("special_fully_nested_mode", pic.special_fully_nested_mode);
    fields.number("init4", pic.init4);
    fields.number("elcr", pic.elcr);
    fields.number("elcr_mask", pic.elcr_mask);
}

inline void io_apic(auto& fields, auto& io_apic) {
    fields.number("base_address", io_apic.base_address);
    fields.number("ioregsel", io_apic.ioregsel);
    fields.number("id", io_apic.id);
    fields.number("irr", io_apic.irr);
    fields.rows("redirtbl", std::span(io_apic.redirtbl), [](auto& row, auto& entry) { row.number(entry.bits); });
}

inline void timer_channel(auto& fields, auto& channel) {
    fields.number("count", channel.count);
    fields.number("latched_count", channel.latched_count);
    fields.number("count_latched", channel.count_latched);
    fields.number("status_latched", channel.status_latched);
    fields.number("status", channel.status);
    fields.number("read_state", channel.read_state);
    fields.number("write_state", channel.write_state);
    fields.number("write_latch", channel.write_latch);
    fields.number("rw_mode", channel.rw_mode);
    fields.number("mode", channel.mode);
    fields.number("bcd", channel.bcd);
    fields.number("gate", channel.gate);
    fields.number("count_load_time", channel.count_load_time);
}

/// `vm` has its controllers in KVM's order. The reader sets their numbers (kvm_irqchip::chip_id).
inline void vm(auto& fields, auto& vm) {
    const auto pic = [](auto& inner, auto& value) { interrupt_controller(inner, value); };
    fields.object("pic_master", vm.interrupt_controllers[KVM_IRQCHIP_PIC_MASTER].chip.pic, pic);
    fields.object("pic_slave", vm.interrupt_controllers[KVM_IRQCHIP_PIC_SLAVE].chip.pic, pic);
    fields.object("io_apic", vm.interrupt_controllers[KVM_IRQCHIP_IOAPIC].chip.ioapic,
                  [](auto& inner, auto& value) { io_apic(inner, value); });
    fields.object("timer", vm.timer, [](auto& inner, auto& timer) {
        inner.list("channels", timer.channels, [](auto& element, auto& channel) { timer_channel(element, channel); });
        inner.number("flags", timer.flags);
    });
    fields.object("clock", vm.clock, [](auto& inner, auto& clock) {
        inner.number("clock", clock.clock);
        inner.number("flags", clock.flags);
        inner.number("realtime", clock.realtime);
        inner.number("host_tsc", clock.host_tsc);
    });
    fields.number("realtime_ns", vm.realtime_ns);
}

} // namespace vmm::vm_fields
