// A virtio driver that does what the fuzzer says: from one that keeps every rule to one that knows none.
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

/// The device that is fuzzed, and what is around it. All but `device` may be left out.
struct VirtioSubject {
    devices::virtio::Device* device = nullptr; ///< on loan; idle, and it will be again

    /// What the host does to it: sends, receives, hangs up.
    std::function<void(Input&)> host;
    /// The host takes all that the device wants to be rid of.
    std::function<void()> drain;
    /// The front of a request that makes sense, for some queue.
    std::function<std::vector<std::byte>(Input&)> front;
    /// By queue, one bit each: every request in it comes back without the host doing anything but drain().
    std::uint32_t answered_queues = 0;
    /// How many requests may be under way or answered for that to hold.
    std::uint16_t answered_requests = UINT16_MAX;
    /// A request that is answered by a device in good order: bytes to read and how many to write.
    std::uint16_t probe_queue = 0;
    std::vector<std::byte> probe;
    std::uint32_t probe_room = 0;
};

/// Runs `program` against the device. Aborts where
/// - it does not come to rest, though nothing happens any more (it spins);
/// - a driver that kept all rules does not get a request back;
/// - a reset does not end, or leaves something of what was before, or does not help.
void run_virtio_program(Bytes program, const VirtioSubject& subject);

} // namespace vmm::fuzz
