// A virtio driver that breaks every rule there is, a rule at a time, for tests of the devices.
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
// Each case starts a fresh device, does its worst, and expects: what its `outcome` says; memory that no request named
// untouched; and that a reset makes the device as good as new.
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

/// The device that is attacked.
struct HostileTarget {
    std::function<std::unique_ptr<virtio::Device>()> make;
    /// The queue that is attacked.
    std::uint16_t queue = 0;
    /// Whether the device looks at that queue when its doorbell rings. A queue that is only looked at when the host has
    /// something for it may hide what is wrong in it.
    bool looks_at_once = true;
    /// Publishes one well-formed request in that queue, without a doorbell. Without it: 64 bytes to read, 64 to write.
    std::function<void(VirtioRig&)> request;
    /// Whether the device does what it is for. It was just started.
    std::function<bool(VirtioRig&)> works;
};

/// What is to be seen of a device after an attack.
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

/// Every rule. Names are those of tests.
const std::vector<HostileCase>& hostile_cases();

/// Attacks a new device of `target`, once, and says through GoogleTest what is wrong.
void run_hostile_case(const HostileCase& hostile_case, const HostileTarget& target);

} // namespace vmm::devices::testing
