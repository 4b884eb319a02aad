#include "vmm/guest/commands.hpp"

#include <optional>

#include "vmm/guest/heartbeat.hpp"
#include "vmm/guest/machine.hpp"
#include "vmm/guest/serial.hpp"
#include "vmm/guest/workload.hpp"

namespace vmm::guest {
namespace {

// Only CPU 0 uses this.
constinit Heartbeat heartbeat;

void tell() noexcept {
    const HeartbeatReport report = heartbeat.take(cycles());
    serial::print(heartbeat_line(report));
    static_cast<void>(heartbeat.take(cycles())); // printing takes long, and must not be measured
}

void wait_for_beat() noexcept {
    while (!heartbeat.look(cycles())) {
        pause();
    }
}

/// Uses an eighth of memory in one second, a piece of it at each beat.
void work() noexcept {
    constexpr std::uint64_t kBeats = 1000;
    constexpr std::uint64_t kShare = 8;
    const std::uint64_t slots = slot_count() / kShare;
    for (std::uint64_t beat = 0; beat < kBeats; ++beat) {
        wait_for_beat();
        const std::uint64_t first = slots * beat / kBeats;
        touch(first, slots * (beat + 1) / kBeats - first);
    }
}

} // namespace

void obey_commands(std::uint64_t khz) noexcept {
    heartbeat = Heartbeat(khz, cycles());
    for (;;) {
        wait_for_beat();
        switch (serial::read().value_or('\0')) {
        case 'h':
            tell();
            break;
        case 'w':
            work();
            tell();
            break;
        case 'p':
            run_passes();
            static_cast<void>(heartbeat.take(cycles()));
            break;
        case 'q':
            return;
        default:
            break;
        }
    }
}

} // namespace vmm::guest
