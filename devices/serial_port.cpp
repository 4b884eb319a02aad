#include "devices/serial_port.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "kvm/host/error.hpp"

namespace vmm::devices {
namespace {

// Register offsets (PC16550D, table II). If DLAB is set, the divisor latch replaces the first two registers.
constexpr std::uint64_t kData = 0;                        // RBR when read, THR when written; DLL
constexpr std::uint64_t kInterruptEnable = 1;             // IER; DLM
constexpr std::uint64_t kInterruptIdentOrFifoControl = 2; // IIR when read, FCR when written
constexpr std::uint64_t kLineControl = 3;
constexpr std::uint64_t kModemControl = 4;
constexpr std::uint64_t kLineStatus = 5;
constexpr std::uint64_t kModemStatus = 6;
constexpr std::uint64_t kScratch = 7;

constexpr std::uint8_t kNoRegister = 0xff;

// Interrupt enable register. The same bits are used for pending interrupts.
constexpr std::uint8_t kReceived = 0x01;
constexpr std::uint8_t kTransmitterEmpty = 0x02;
constexpr std::uint8_t kLineStatusChange = 0x04;
constexpr std::uint8_t kModemStatusChange = 0x08;
constexpr std::uint8_t kInterruptEnableMask = 0x0f;

// Interrupt identification register.
constexpr std::uint8_t kIdentModemStatus = 0x00;
constexpr std::uint8_t kIdentNone = 0x01;
constexpr std::uint8_t kIdentTransmitterEmpty = 0x02;
constexpr std::uint8_t kIdentReceived = 0x04;
constexpr std::uint8_t kIdentLineStatus = 0x06;
constexpr std::uint8_t kIdentCharacterTimeout = 0x0c;
constexpr std::uint8_t kIdentFifosEnabled = 0xc0;

// FIFO control register. The transmitter's FIFO is always empty, so clearing it does nothing.
constexpr std::uint8_t kFifoEnable = 0x01;
constexpr std::uint8_t kFifoClearReceiver = 0x02;
constexpr unsigned kFifoTriggerShift = 6;
constexpr std::array<std::uint8_t, 4> kTriggerBytes = {1, 4, 8, 14};

constexpr std::uint8_t kDivisorLatchAccess = 0x80; // line control register

// Modem control register.
constexpr std::uint8_t kDtr = 0x01;
constexpr std::uint8_t kRts = 0x02;
constexpr std::uint8_t kOut1 = 0x04;
constexpr std::uint8_t kOut2 = 0x08;
constexpr std::uint8_t kLoopback = 0x10;
constexpr std::uint8_t kModemControlMask = 0x1f;

// Line status register.
constexpr std::uint8_t kDataReady = 0x01;
constexpr std::uint8_t kOverrun = 0x02;
constexpr std::uint8_t kTransmitterEmptyStatus = 0x60; // THRE and TEMT

// Modem status register. The upper four bits are the inputs. The lower four bits are their changes, in the same order.
constexpr std::uint8_t kCts = 0x10;
constexpr std::uint8_t kDsr = 0x20;
constexpr std::uint8_t kRi = 0x40;
constexpr std::uint8_t kDcd = 0x80;
constexpr unsigned kModemChangeShift = 4;
constexpr std::uint8_t kModemChangeMask = 0x0f;

constexpr std::uint8_t bits(unsigned value) noexcept {
    return static_cast<std::uint8_t>(value);
}

// Checks a state, which may come from a damaged file.
SerialPort::State checked(const SerialPort::State& state) {
    const std::size_t capacity = state.fifo_enabled ? SerialPort::kReceiveFifoBytes : 1;
    const bool trigger_exists = std::ranges::find(kTriggerBytes, state.receive_trigger) != kTriggerBytes.end();
    const bool possible = state.ier <= kInterruptEnableMask && state.mcr <= kModemControlMask &&
                          state.msr_changes <= kModemChangeMask && state.received_bytes <= capacity && trigger_exists &&
                          (state.fifo_enabled || state.receive_trigger == 1);
    if (!possible || std::any_of(state.received.begin() + state.received_bytes, state.received.end(),
                                 [](std::uint8_t byte) { return byte != 0; })) {
        throw Error("cannot restore serial: no 16550A can be in the state saved, with " +
                    std::to_string(state.received_bytes) + " bytes received (the snapshot is damaged)");
    }
    return state;
}

} // namespace

SerialPort::SerialPort(IrqLine& irq, Callbacks callbacks, std::size_t output_capacity)
    : SerialPort(irq, std::move(callbacks), State{}, output_capacity) {}

SerialPort::SerialPort(IrqLine& irq, Callbacks callbacks, const State& state, std::size_t output_capacity)
    : irq_(irq), callbacks_(std::move(callbacks)), state_(checked(state)), output_(output_capacity) {
    seen_interrupts_ = pending_interrupts();
    input_blocked_ = room() == 0;
}

void SerialPort::read(std::uint64_t offset, std::span<std::byte> data) noexcept {
    Effects effects;
    {
        const std::lock_guard lock(mutex_);
        for (std::byte& byte : data) {
            byte = std::byte{read_register(offset)};
            settle(effects);
            ++offset;
        }
    }
    perform(effects);
}

void SerialPort::write(std::uint64_t offset, std::span<const std::byte> data) noexcept {
    Effects effects;
    {
        const std::lock_guard lock(mutex_);
        for (const std::byte byte : data) {
            write_register(offset, std::to_integer<std::uint8_t>(byte), effects);
            settle(effects);
            ++offset;
        }
    }
    perform(effects);
}

std::size_t SerialPort::take_output(std::span<std::byte> out) noexcept {
    const std::lock_guard lock(mutex_);
    return output_.pop(out);
}

std::uint64_t SerialPort::dropped_output_bytes() const noexcept {
    const std::lock_guard lock(mutex_);
    return dropped_output_bytes_;
}

std::size_t SerialPort::input_room() const noexcept {
    const std::lock_guard lock(mutex_);
    return room();
}

std::size_t SerialPort::feed_input(std::span<const std::byte> bytes) noexcept {
    Effects effects;
    std::size_t accepted = 0;
    {
        const std::lock_guard lock(mutex_);
        accepted = std::min(bytes.size(), room());
        for (const std::byte byte : bytes.first(accepted)) {
            receive(std::to_integer<std::uint8_t>(byte));
        }
        settle(effects);
        // Every arrival interrupts. So if a pulse is lost in a guest that masks the pin for a while, the next key wakes
        // the console again.
        effects.raise_irq |= accepted > 0 && (state_.ier & kReceived) != 0;
    }
    perform(effects);
    return accepted;
}

SerialPort::State SerialPort::state() const noexcept {
    const std::lock_guard lock(mutex_);
    return state_;
}

void SerialPort::repeat_interrupt() noexcept {
    Effects effects;
    {
        const std::lock_guard lock(mutex_);
        effects.raise_irq = pending_interrupts() != 0;
    }
    perform(effects);
}

std::uint8_t SerialPort::read_register(std::uint64_t offset) noexcept {
    const bool divisor_latch = (state_.lcr & kDivisorLatchAccess) != 0;
    switch (offset) {
    case kData:
        return divisor_latch ? bits(state_.divisor & 0xffU) : take_received();
    case kInterruptEnable:
        return divisor_latch ? bits(state_.divisor >> 8U) : state_.ier;
    case kInterruptIdentOrFifoControl: {
        const std::uint8_t ident = identify_interrupt();
        if (ident == kIdentTransmitterEmpty) {
            state_.transmit_interrupt = false;
        }
        return bits(ident | (state_.fifo_enabled ? kIdentFifosEnabled : 0U));
    }
    case kLineControl:
        return state_.lcr;
    case kModemControl:
        return state_.mcr;
    case kLineStatus: {
        const std::uint8_t status = line_status();
        state_.overrun = false;
        return status;
    }
    case kModemStatus:
        return bits(modem_inputs() | std::exchange(state_.msr_changes, std::uint8_t{0}));
    case kScratch:
        return state_.scr;
    default:
        return kNoRegister;
    }
}

void SerialPort::write_register(std::uint64_t offset, std::uint8_t value, Effects& effects) noexcept {
    const bool divisor_latch = (state_.lcr & kDivisorLatchAccess) != 0;
    switch (offset) {
    case kData:
        if (divisor_latch) {
            state_.divisor = static_cast<std::uint16_t>((state_.divisor & 0xff00U) | value);
        } else {
            transmit(value, effects);
        }
        break;
    case kInterruptEnable:
        if (divisor_latch) {
            state_.divisor = static_cast<std::uint16_t>((state_.divisor & 0x00ffU) | (unsigned{value} << 8U));
        } else {
            // The transmitter is always empty. So when its interrupt becomes enabled, it is raised once: drivers start
            // to send in this way.
            state_.transmit_interrupt |= (value & ~state_.ier & kTransmitterEmpty) != 0;
            state_.ier = value & kInterruptEnableMask;
        }
        break;
    case kInterruptIdentOrFifoControl:
        write_fifo_control(value);
        break;
    case kLineControl:
        state_.lcr = value;
        break;
    case kModemControl:
        write_modem_control(value);
        break;
    case kScratch:
        state_.scr = value;
        break;
    default: // The status registers cannot be written.
        break;
    }
}

void SerialPort::transmit(std::uint8_t value, Effects& effects) noexcept {
    if (in_loopback()) {
        receive(value);
    } else {
        const bool was_empty = output_.empty();
        const std::array sent{std::byte{value}};
        if (output_.push(sent) == 0) {
            ++dropped_output_bytes_;
        }
        effects.output_ready |= was_empty;
    }
    state_.transmit_interrupt = true;
}

void SerialPort::receive(std::uint8_t value) noexcept {
    if (state_.received_bytes < receiver_capacity()) {
        state_.received[state_.received_bytes++] = value;
        return;
    }
    // A full FIFO keeps its content. Without the FIFO, the new byte replaces the one that was not read (data sheet, LSR
    // bit 1).
    state_.overrun = true;
    if (!state_.fifo_enabled) {
        state_.received[0] = value;
    }
}

std::uint8_t SerialPort::take_received() noexcept {
    if (state_.received_bytes == 0) {
        return 0;
    }
    const std::uint8_t oldest = std::exchange(state_.received[0], std::uint8_t{0});
    std::ranges::rotate(state_.received, state_.received.begin() + 1);
    --state_.received_bytes;
    return oldest;
}

void SerialPort::clear_receiver() noexcept {
    state_.received = {};
    state_.received_bytes = 0;
}

void SerialPort::write_fifo_control(std::uint8_t value) noexcept {
    const bool enable = (value & kFifoEnable) != 0;
    if (enable != state_.fifo_enabled || (enable && (value & kFifoClearReceiver) != 0)) {
        clear_receiver();
    }
    state_.fifo_enabled = enable;
    state_.receive_trigger = enable ? kTriggerBytes[value >> kFifoTriggerShift] : std::uint8_t{1};
}

void SerialPort::write_modem_control(std::uint8_t value) noexcept {
    const std::uint8_t before = modem_inputs();
    state_.mcr = value & kModemControlMask;
    const std::uint8_t after = modem_inputs();
    // Every input reports each change, except the ring indicator, which reports only its end (TERI, MSR bit 2).
    const unsigned changes = (before ^ after) & ~unsigned{bits(after & kRi)};
    state_.msr_changes |= bits(changes >> kModemChangeShift);
}

std::size_t SerialPort::receiver_capacity() const noexcept {
    return state_.fifo_enabled ? kReceiveFifoBytes : 1;
}

std::size_t SerialPort::room() const noexcept {
    return in_loopback() ? 0 : receiver_capacity() - state_.received_bytes;
}

bool SerialPort::in_loopback() const noexcept {
    return (state_.mcr & kLoopback) != 0;
}

std::uint8_t SerialPort::modem_inputs() const noexcept {
    if (!in_loopback()) {
        return kCts | kDsr | kDcd;
    }
    // Loopback connects the outputs to the inputs (data sheet, MCR bit 4).
    const auto wire = [this](std::uint8_t output, std::uint8_t input) -> unsigned {
        return (state_.mcr & output) != 0 ? input : 0U;
    };
    return bits(wire(kRts, kCts) | wire(kDtr, kDsr) | wire(kOut1, kRi) | wire(kOut2, kDcd));
}

std::uint8_t SerialPort::line_status() const noexcept {
    return bits(kTransmitterEmptyStatus | (state_.received_bytes > 0 ? kDataReady : 0U) |
                (state_.overrun ? kOverrun : 0U));
}

std::uint8_t SerialPort::pending_interrupts() const noexcept {
    const unsigned reasons =
        (state_.received_bytes > 0 ? kReceived : 0U) | (state_.transmit_interrupt ? kTransmitterEmpty : 0U) |
        (state_.overrun ? kLineStatusChange : 0U) | (state_.msr_changes != 0 ? kModemStatusChange : 0U);
    return bits(reasons & state_.ier);
}

std::uint8_t SerialPort::identify_interrupt() const noexcept {
    // The reasons are checked in order of priority (data sheet, table IV).
    const std::uint8_t pending = pending_interrupts();
    if ((pending & kLineStatusChange) != 0) {
        return kIdentLineStatus;
    }
    if ((pending & kReceived) != 0) {
        return state_.received_bytes >= state_.receive_trigger ? kIdentReceived : kIdentCharacterTimeout;
    }
    if ((pending & kTransmitterEmpty) != 0) {
        return kIdentTransmitterEmpty;
    }
    return (pending & kModemStatusChange) != 0 ? kIdentModemStatus : kIdentNone;
}

void SerialPort::settle(Effects& effects) noexcept {
    const std::uint8_t pending = pending_interrupts();
    effects.raise_irq |= (pending & ~seen_interrupts_) != 0;
    seen_interrupts_ = pending;

    if (room() == 0) {
        input_blocked_ = true;
    } else if (input_blocked_ && state_.received_bytes == 0) {
        // Room is announced when the receiver is empty, not at the first free byte. Otherwise each byte would wake the
        // event loop.
        input_blocked_ = false;
        effects.input_room_ready = true;
    }
}

void SerialPort::perform(const Effects& effects) noexcept {
    if (effects.raise_irq) {
        irq_.raise();
    }
    if (effects.output_ready && callbacks_.output_ready) {
        callbacks_.output_ready();
    }
    if (effects.input_room_ready && callbacks_.input_room_ready) {
        callbacks_.input_room_ready();
    }
}

} // namespace vmm::devices
