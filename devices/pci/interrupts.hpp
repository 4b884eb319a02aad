// The two ways in which a PCI function interrupts: by a message, or by its pin.
#pragma once

#include <cstdint>

namespace vmm::devices::pci {

/// The value and the address that a message-signalled interrupt writes (PCI Local Bus 3.0, 6.8).
struct Message {
    std::uint64_t address = 0;
    std::uint32_t data = 0;

    friend bool operator==(const Message&, const Message&) = default;
};

/// Carries one vector's message to the interrupt controllers. Threads: any number at once.
class MessageLine {
  public:
    MessageLine() = default;
    MessageLine(const MessageLine&) = delete;
    MessageLine(MessageLine&&) = delete;
    MessageLine& operator=(const MessageLine&) = delete;
    MessageLine& operator=(MessageLine&&) = delete;
    virtual ~MessageLine() = default;

    /// Sets the message that raise() sends from now on. One call at a time.
    virtual void prepare(Message message) noexcept = 0;
    /// Sends the message that was prepared last. If messages come before the guest has taken the first one, they may
    /// merge.
    virtual void raise() noexcept = 0;
};

/// The interrupt pin of a function: level-triggered, and shared with others. Threads: any; one call at a time.
class PinLine {
  public:
    PinLine() = default;
    PinLine(const PinLine&) = delete;
    PinLine(PinLine&&) = delete;
    PinLine& operator=(const PinLine&) = delete;
    PinLine& operator=(PinLine&&) = delete;
    virtual ~PinLine() = default;

    /// Sets whether the function requests an interrupt.
    virtual void set(bool up) noexcept = 0;
};

} // namespace vmm::devices::pci
