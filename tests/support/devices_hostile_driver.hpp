// A virtio driver that breaks every rule, one at a time, for tests of the devices.
//
// For a device of any type:
//
//     class BlockHostile : public ::testing::TestWithParam<HostileCase> {};
//     TEST_P(BlockHostile, SurvivesAndWorksAfterAReset) {
//         run_hostile_case(GetParam(), {.make = [] { return std::make_unique<Block>(...); },
//                                       .queue = 0,
//                                       .request = [](VirtioRig& rig) { ...; rig.queue(0).add({...}); },
//                                       .works = [](VirtioRig& rig) { return ...; }});
//     }
//     INSTANTIATE_TEST_SUITE_P(Every, BlockHostile, ::testing::ValuesIn(hostile_cases()), hostile_case_name);
//
// Each case starts a fresh device and attacks it. It expects the case's `outcome`, that memory which no request named
// is untouched, and that a reset makes the device work like a new one.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "support/devices_virtio_driver.hpp"

namespace vmm::devices::testing {

/// The attacked device.
struct HostileTarget {
    std::function<std::unique_ptr<virtio::Device>()> make;
    /// The attacked queue.
    std::uint16_t queue = 0;
    /// True if the device looks at that queue when its doorbell rings. If the device looks at a queue only when the
    /// host has data for it, errors in the queue may stay hidden.
    bool looks_at_once = true;
    /// Publishes one correct request in that queue, without a doorbell. If it is empty: 64 bytes to read, 64 to write.
    std::function<void(VirtioRig&)> request;
    /// True if the device does its work. It was just started.
    std::function<bool(VirtioRig&)> works;
};

/// The visible result of an attack on a device.
enum class Outcome {
    kNeedsReset, ///< DEVICE_NEEDS_RESET, and a configuration change notification
    kGoesOn,     ///< it runs as if nothing had been
    kEither,     ///< it depends on the type, or the attack itself has said what it expects
};

class Attack;

/// One broken rule.
struct HostileCase {
    const char* name;
    Outcome outcome;
    void (*attack)(Attack&);

    friend std::ostream& operator<<(std::ostream& out, const HostileCase& each) { return out << each.name; }
};

/// For INSTANTIATE_TEST_SUITE_P.
inline std::string hostile_case_name(const ::testing::TestParamInfo<HostileCase>& info) {
    return info.param.name;
}

/// All rules. Their names are names of tests.
const std::vector<HostileCase>& hostile_cases();

/// Attacks a new device of `target` once, and reports errors through GoogleTest.
void run_hostile_case(const HostileCase& hostile_case, const HostileTarget& target);

} // namespace vmm::devices::testing
