// A 16550A UART, the guest's console.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <string_view>

#include "devices/byte_ring.hpp"
#include "devices/character_port.hpp"
#include "devices/device.hpp"
#include "kvm/host/guest_address.hpp"

namespace vmm::devices {

/// The UART of the National Semiconductor PC16550D data sheet, section 8, with an infinitely fast line. Transmitted
/// bytes leave at once, so the transmitter is always empty (LSR: THRE and TEMT) and never makes a vCPU wait.
///
/// Output goes into a ring that the event loop empties. If the ring is full, further bytes are dropped and counted.
/// Input is accepted only as far as the receiver has room, so that the host never causes an overrun; only the loopback
/// test can cause one.
///
/// It differs from the chip in these points:
/// - A break and a receive error never happen.
/// - The character timeout interrupt comes at once instead of after four character times.
/// - The other side always asserts CTS, DSR and DCD.
/// - OUT2 (MCR bit 3) does not gate the interrupt as it does on a PC board, so that a guest that does not set it
///   still gets interrupts.
///
/// Threads: any thread may call every member.
class SerialPort final : public Device, public CharacterPort {
  public:
    /// The number of I/O ports or bytes of address space that it takes.
    static constexpr std::uint64_t kSize = 8;
    /// The receiver's FIFO, in bytes.
    static constexpr std::size_t kReceiveFifoBytes = 16;
    /// All that the guest can see. The values here are those after a hardware reset. Output that nobody has taken yet
    /// is not part of the state: those bytes have left the UART, and the host prints them.
    struct State {
        std::uint16_t divisor = 1;    ///< DLM:DLL; 1 is 115,200 baud
        std::uint8_t ier = 0;         ///< bits 0 to 3
        std::uint8_t lcr = 0;         ///< bit 7 is DLAB
        std::uint8_t mcr = 0;         ///< bits 0 to 4
        std::uint8_t msr_changes = 0; ///< bits 0 to 3 of MSR
        std::uint8_t scr = 0;
        bool fifo_enabled = false;
        std::uint8_t receive_trigger = 1; ///< 1, 4, 8 or 14 bytes; 1 unless the FIFO is enabled
        bool overrun = false;             ///< LSR bit 1
        bool transmit_interrupt = false;  ///< the transmitter became empty, and IIR has not told the guest yet
        std::uint8_t received_bytes = 0;  ///< at most 16, or 1 unless the FIFO is enabled
        std::array<std::uint8_t, kReceiveFifoBytes> received{}; ///< oldest first, zero after `received_bytes`

        friend bool operator==(const State&, const State&) = default;
    };

    /// `output_capacity` in bytes, at least 1. `irq` must outlive the port.
    SerialPort(IrqLine& irq, Callbacks callbacks, std::size_t output_capacity = kDefaultOutputBytes);
    /// Continues from `state`. A pulse may have been on its way when the state was taken: see repeat_interrupt().
    /// Throws Error if no port can be in that state.
    SerialPort(IrqLine& irq, Callbacks callbacks, const State& state,
               std::size_t output_capacity = kDefaultOutputBytes);

    [[nodiscard]] std::string_view name() const noexcept override { return "serial"; }
    /// A wide access is one access for each byte, at rising offsets, as on the ISA bus for an 8-bit device.
    void read(std::uint64_t offset, std::span<std::byte> data) noexcept override;
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override;

    [[nodiscard]] std::size_t take_output(std::span<std::byte> out) noexcept override;
    /// The number of bytes that the guest has transmitted while the output ring was full.
    [[nodiscard]] std::uint64_t dropped_output_bytes() const noexcept override;

    /// How many bytes `feed_input` would accept now. It accepts none in loopback mode, because the receiver is then
    /// disconnected from the line.
    [[nodiscard]] std::size_t input_room() const noexcept;
    /// Raises the interrupt on the calling thread.
    [[nodiscard]] std::size_t feed_input(std::span<const std::byte> bytes) noexcept override;

    /// A copy of the state, for a snapshot. It is consistent at any time.
    [[nodiscard]] State state() const noexcept;
    /// Raises the interrupt again if a reason for it is pending. Call it once after a restore, when the interrupt
    /// controller is ready, because a pulse may have been on its way when the state was taken. An extra pulse does no
    /// harm.
    void repeat_interrupt() noexcept;

  private:
    /// What an access must do outside of the port. It is done after the lock is released.
    struct Effects {
        bool raise_irq = false;
        bool output_ready = false;
        bool input_room_ready = false;
    };

    [[nodiscard]] std::uint8_t read_register(std::uint64_t offset) noexcept;
    void write_register(std::uint64_t offset, std::uint8_t value, Effects& effects) noexcept;

    void transmit(std::uint8_t value, Effects& effects) noexcept;
    void receive(std::uint8_t value) noexcept;
    [[nodiscard]] std::uint8_t take_received() noexcept;
    void clear_receiver() noexcept;
    void write_fifo_control(std::uint8_t value) noexcept;
    void write_modem_control(std::uint8_t value) noexcept;

    [[nodiscard]] std::size_t receiver_capacity() const noexcept;
    [[nodiscard]] std::size_t room() const noexcept;
    [[nodiscard]] bool in_loopback() const noexcept;
    [[nodiscard]] std::uint8_t modem_inputs() const noexcept;
    [[nodiscard]] std::uint8_t line_status() const noexcept;
    [[nodiscard]] std::uint8_t pending_interrupts() const noexcept;
    [[nodiscard]] std::uint8_t identify_interrupt() const noexcept;

    /// Records what must be reported to the outside since the last call.
    void settle(Effects& effects) noexcept;
    void perform(const Effects& effects) noexcept;

    IrqLine& irq_;
    const Callbacks callbacks_;

    mutable std::mutex mutex_; ///< guards all below
    State state_;
    std::uint8_t seen_interrupts_ = 0; ///< the pending interrupts that have been raised
    bool input_blocked_ = false;       ///< there was no room, and input_room_ready has not been called yet
    ByteRing output_;
    std::uint64_t dropped_output_bytes_ = 0;
};

} // namespace vmm::devices
