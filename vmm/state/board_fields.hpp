// The fields of the devices that are not virtio: see vmm/state/fields.hpp.
#pragma once

#include "vmm/state/fields.hpp"

namespace vmm::board_fields {

inline void serial(auto& fields, auto& serial) {
    fields.number("divisor", serial.divisor);
    fields.number("ier", serial.ier);
    fields.number("lcr", serial.lcr);
    fields.number("mcr", serial.mcr);
    fields.number("msr_changes", serial.msr_changes);
    fields.number("scr", serial.scr);
    fields.flag("fifo_enabled", serial.fifo_enabled);
    fields.number("receive_trigger", serial.receive_trigger);
    fields.flag("overrun", serial.overrun);
    fields.flag("transmit_interrupt", serial.transmit_interrupt);
    fields.number("received_bytes", serial.received_bytes);
    fields.raw("received", serial.received);
}

inline void rtc(auto& fields, auto& rtc) {
    auto microseconds = rtc.offset.count();
    fields.number("offset_us", microseconds);
    if constexpr (!std::is_const_v<std::remove_reference_t<decltype(rtc)>>) {
        rtc.offset = decltype(rtc.offset)(microseconds);
    }
    fields.number("index", rtc.index);
    fields.raw("memory", rtc.memory);
}

/// `board` is a BoardState. Its keyboard controller has no state.
inline void board(auto& fields, auto& board) {
    fields.object("serial", board.serial, [](auto& inner, auto& value) { serial(inner, value); });
    fields.number("system_control", board.system_control.value);
    fields.number("reset_control", board.reset_control.value);
    fields.number("sleep_type", board.power.sleep_type);
    fields.object("rtc", board.rtc, [](auto& inner, auto& value) { rtc(inner, value); });
    fields.object("pci", board.pci, [](auto& inner, auto& value) {
        inner.number("config_address", value.ports.address);
        inner.number("come", value.hotplug.come);
        inner.number("gone", value.hotplug.gone);
    });
}

} // namespace vmm::board_fields
