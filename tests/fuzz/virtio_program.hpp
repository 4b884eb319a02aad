// A virtio driver that the fuzzer drives. It may keep every rule, or break all of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "devices/virtio/device.hpp"
#include "fuzz/input.hpp"
#include "fuzz/targets.hpp"

namespace vmm::fuzz {

/// The fuzzed device, and its surroundings. All members but `device` may be left out.
struct VirtioSubject {
    devices::virtio::Device* device = nullptr; ///< on loan; idle, and it will be again

    /// The host's actions on it: it sends, receives, hangs up.
    std::function<void(Input&)> host;
    /// The host takes all data that the device wants to send.
    std::function<void()> drain;
    /// The first bytes of a sensible request, for some queue.
    std::function<std::vector<std::byte>(Input&)> front;
    /// One bit for each queue: every request in that queue comes back if the host does nothing but drain().
    std::uint32_t answered_queues = 0;
    /// The rule above holds while at most so many requests are in flight or answered.
    std::uint16_t answered_requests = UINT16_MAX;
    /// A request that a healthy device answers: the bytes to read, and how many bytes it writes.
    std::uint16_t probe_queue = 0;
    std::vector<std::byte> probe;
    std::uint32_t probe_room = 0;
};

/// Runs `program` against the device. Aborts if
/// - the device does not come to rest though nothing happens any more (it spins);
/// - a driver that kept all rules does not get a request back;
/// - a reset does not end, or leaves something of the earlier state, or does not make the device usable again.
void run_virtio_program(Bytes program, const VirtioSubject& subject);

} // namespace vmm::fuzz
