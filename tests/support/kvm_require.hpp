// Tests that need /dev/kvm.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <cstdlib>

#include "kvm/host/error.hpp"
#include "kvm/host/unique_fd.hpp"

namespace vmm::testing {

/// Skips the test if /dev/kvm cannot be used, and says why. If VMM_REQUIRE_KVM is set, that is a failure instead, so
/// that a run which must prove something cannot pass by skipping.
class KvmTest : public ::testing::Test {
  protected:
    void SetUp() override {
        const UniqueFd kvm(::open("/dev/kvm", O_RDWR | O_CLOEXEC));
        if (kvm) {
            return;
        }
        const std::string reason = "/dev/kvm cannot be opened: " + errno_reason(errno);
        if (std::getenv("VMM_REQUIRE_KVM") != nullptr) {
            FAIL() << reason;
        }
        GTEST_SKIP() << reason;
    }
};

} // namespace vmm::testing
