// Descriptions that an embedding program gives of a VM that it made itself.

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>

#include "prefault/existing_vm.hpp"
#include "support/host_errors.hpp"

namespace vmm::prefault {
namespace {

using testing::error_of;
using testing::mentions;

ExistingVm vm_with(GuestAddress scratch_base, std::uint64_t memory_bytes) {
    static std::byte memory{};
    ExistingVm vm;
    vm.scratch_base = scratch_base;
    vm.memslots = {{{GuestAddress{0}, memory_bytes}, &memory}};
    return vm;
}

TEST(ExistingVm, WhoseScratchWindowIsAboveAllElseIsMappedToTheWindowsEnd) {
    // What broke: its page tables did not map their own end, and an assertion ended the process.
    const GuestAddress base{kTiB - 2 * kMiB};
    const std::uint64_t bytes = scratch_bytes(vm_with(base, kGiB));
    EXPECT_GT(bytes, 2 * kMiB);
    EXPECT_EQ(bytes, scratch_bytes(vm_with(base, to_integer(base) + bytes)));
}

TEST(ExistingVm, WithImpossibleAddressesIsRefused) {
    for (const std::uint64_t base : {UINT64_MAX, UINT64_MAX - 2 * kMiB + 1, 128 * kTiB, 128 * kTiB - 2 * kMiB}) {
        EXPECT_TRUE(
            mentions(error_of([&] { return scratch_bytes(vm_with(GuestAddress{base}, kGiB)); }), "pass 128 TiB"))
            << base;
    }
    EXPECT_TRUE(
        mentions(error_of([&] { return scratch_bytes(vm_with(GuestAddress{0}, UINT64_MAX)); }), "pass 128 TiB"));
}

} // namespace
} // namespace vmm::prefault
