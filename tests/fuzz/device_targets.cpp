// The devices of a PC: their registers, and the input that the host gives them.

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>

#include "devices/device.hpp"
#include "devices/rtc.hpp"
#include "devices/serial_port.hpp"
#include "fuzz/input.hpp"
#include "fuzz/require.hpp"
#include "fuzz/targets.hpp"
#include "support/devices_recording_irq.hpp"

namespace vmm::fuzz {
namespace {

/// One access: any width up to 8 bytes, mostly at a register.
void access(devices::Device& device, std::uint64_t size, std::uint8_t choice, Input& input) {
    const std::uint64_t offset = (choice & 0x40) != 0 ? input.take<std::uint64_t>() : input.byte() % (size + 1);
    const std::size_t width = (choice & 0x20) != 0 ? input.below(9) : 1;
    std::array<std::byte, 9> data{};
    data.back() = std::byte{0x5a};
    if ((choice & 1) != 0) {
        for (std::byte& byte : std::span(data).first(width)) {
            byte = input.take<std::byte>();
        }
        device.write(offset, std::span(data).first(width));
    } else {
        device.read(offset, std::span(data).first(width));
    }
    require(width == data.size() || data.back() == std::byte{0x5a}, "a read wrote beyond what was asked for");
}

} // namespace

void serial(Bytes program) {
    Input input(program);
    devices::testing::RecordingIrq irq;
    bool has_output = false;
    devices::SerialPort port(irq, {[&] { has_output = true; }, {}}, 64);
    while (!input.empty()) {
        const std::uint8_t choice = input.byte();
        if (choice < 0x80) {
            access(port, devices::SerialPort::kSize, choice, input);
        } else if (choice < 0xc0) {
            const Bytes bytes = input.take_bytes(choice & 0x1f);
            const std::size_t room = port.input_room();
            require(port.feed_input(bytes) == std::min(room, bytes.size()), "input that had room was not taken");
        } else if (choice < 0xe0) {
            std::array<std::byte, 32> out{};
            const std::size_t count = port.take_output(std::span(out).first(choice & 0x1f));
            require(count == 0 || has_output, "output that nobody was told of");
        } else {
            // Another device can continue from any state of this one.
            devices::testing::RecordingIrq other_irq;
            devices::SerialPort other(other_irq, {}, port.state());
            require(other.state() == port.state(), "a state does not come back");
        }
    }
}

void rtc(Bytes program) {
    Input input(program);
    constexpr std::chrono::system_clock::time_point kBegin{std::chrono::seconds(1'700'000'000)};
    auto now = kBegin;
    devices::Rtc clock([&] { return now; });
    while (!input.empty()) {
        const std::uint8_t choice = input.byte();
        if (choice < 0x80) {
            access(clock, devices::Rtc::kSize, choice, input);
        } else if (choice < 0xe0) { // at a register itself
            const std::array<std::byte, 2> select_and_write{static_cast<std::byte>(choice & 0x3f),
                                                            input.take<std::byte>()};
            clock.write(0, select_and_write);
        } else if (choice < 0xf0) {
            now = kBegin + std::chrono::seconds(input.take<std::int32_t>());
        } else {
            const devices::Rtc other(clock.state(), [&] { return now; });
            require(other.state() == clock.state(), "a state does not come back");
        }
    }
}

} // namespace vmm::fuzz
