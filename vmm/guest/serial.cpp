#include "vmm/guest/serial.hpp"

#include "vmm/guest/machine.hpp"

namespace vmm::guest::serial {
namespace {

constexpr std::uint16_t kPort = 0x3f8;
constexpr std::uint16_t kData = kPort;                // Divisor, low byte, while the latch bit is set.
constexpr std::uint16_t kInterruptEnable = kPort + 1; // The divisor's high byte, while the latch bit is set.
constexpr std::uint16_t kFifoControl = kPort + 2;
constexpr std::uint16_t kInterruptIdentification = kPort + 2;
constexpr std::uint16_t kLineControl = kPort + 3;
constexpr std::uint16_t kModemControl = kPort + 4;
constexpr std::uint16_t kLineStatus = kPort + 5;

constexpr std::uint8_t kDivisorLatch = 0x80;
constexpr std::uint8_t k8N1 = 0x03;
constexpr std::uint8_t kFifoOnAndCleared = 0x07;
constexpr std::uint8_t kFifoIsOn = 0xc0;
constexpr std::uint8_t kReadyAndRequest = 0x03;
constexpr std::uint8_t kDataReady = 0x01;
constexpr std::uint8_t kTransmitterEmpty = 0x20;

constexpr unsigned kFifoBytes = 16;
constexpr unsigned kMaxPolls = 100'000;

/// The number of bytes that may follow each other once the transmitter is empty, and how many of them are left.
constinit unsigned burst = 1;
constinit unsigned room = 0;

void put(char c) noexcept {
    if (room == 0) {
        for (unsigned polls = 0; polls < kMaxPolls && (in8(kLineStatus) & kTransmitterEmpty) == 0; ++polls) {
            pause();
        }
        room = burst;
    }
    out8(kData, static_cast<std::uint8_t>(c));
    --room;
}

} // namespace

void start() noexcept {
    out8(kInterruptEnable, 0);
    out8(kLineControl, kDivisorLatch);
    out8(kData, 1);
    out8(kInterruptEnable, 0);
    out8(kLineControl, k8N1);
    out8(kFifoControl, kFifoOnAndCleared);
    out8(kModemControl, kReadyAndRequest);
    burst = (in8(kInterruptIdentification) & kFifoIsOn) == kFifoIsOn ? kFifoBytes : 1;
    // Firmware may not have finished its last line.
    put('\r');
    put('\n');
}

void print(const Line& line) noexcept {
    for (const char c : line.text()) {
        put(c);
    }
    put('\r');
    put('\n');
}

std::optional<char> read() noexcept {
    return (in8(kLineStatus) & kDataReady) != 0 ? std::optional(static_cast<char>(in8(kData))) : std::nullopt;
}

} // namespace vmm::guest::serial
