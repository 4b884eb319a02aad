#include "devices/i8042.hpp"

#include <cassert>
#include <utility>

namespace vmm::devices {
namespace {

constexpr std::byte kStatus{0x01};     // Bit 0: output buffer full. Bit 1, input buffer full, is clear.
constexpr std::byte kNoRegister{0xff}; // The output buffer has this value, too.

} // namespace

I8042::I8042(std::function<void()> reset) : I8042(std::move(reset), State{}) {}

I8042::I8042(std::function<void()> reset, const State& /*state*/) : reset_(std::move(reset)) {
    assert(reset_ != nullptr);
}

void I8042::read(std::uint64_t offset, std::span<std::byte> data) noexcept {
    for (std::byte& byte : data) {
        byte = offset == kCommandOffset ? kStatus : kNoRegister;
        ++offset;
    }
}

void I8042::write(std::uint64_t offset, std::span<const std::byte> data) noexcept {
    for (const std::byte byte : data) {
        if (offset == kCommandOffset && byte == std::byte{kResetCommand}) {
            reset_();
        }
        ++offset;
    }
}

} // namespace vmm::devices
