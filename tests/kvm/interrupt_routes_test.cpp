// Messages that KVM delivers for edges on GSIs of their own. The vCPU never runs: its local APIC shows which interrupts
// have come.

#include <gtest/gtest.h>

#include <sys/ioctl.h>

#include <cstdint>
#include <cstring>
#include <optional>
#include <set>
#include <string>

#include "kvm/host/event_fd.hpp"
#include "kvm/system.hpp"
#include "kvm/vcpu.hpp"
#include "kvm/vm.hpp"
#include "kvm/x86/interrupt_routes.hpp"
#include "support/host_errors.hpp"
#include "support/host_waiting.hpp"
#include "support/kvm_require.hpp"

namespace vmm {
namespace {

constexpr std::uint64_t kToApic0 = 0xfee00000;

class InterruptRoutesTest : public testing::KvmTest {
  protected:
    void SetUp() override {
        KvmTest::SetUp();
        if (IsSkipped() || HasFatalFailure()) {
            return;
        }
        system_.emplace();
        vm_.emplace(*system_);
        vm_->create_irqchip();
        vcpu_.emplace(*vm_, 0);
        routes_.emplace(*vm_);
        kvm_lapic_state apic = vcpu_->local_apic();
        constexpr std::size_t kSpurious = 0xf0;
        constexpr std::uint32_t kEnabled = 0x1ff;
        std::memcpy(apic.regs + kSpurious, &kEnabled, sizeof kEnabled);
        vcpu_->set_local_apic(apic);
    }
    /// True if the local APIC has been asked for an interrupt of that vector.
    [[nodiscard]] bool has_come(unsigned vector) const {
        constexpr std::size_t kRequests = 0x200;
        const kvm_lapic_state apic = vcpu_->local_apic();
        std::uint32_t word = 0;
        std::memcpy(&word, apic.regs + kRequests + vector / 32 * 16, sizeof word);
        return (word >> (vector % 32) & 1U) != 0;
    }

    std::optional<kvm::System> system_;
    std::optional<kvm::Vm> vm_;
    std::optional<kvm::Vcpu> vcpu_;
    std::optional<kvm::InterruptRoutes> routes_;
};

TEST_F(InterruptRoutesTest, AnEdgeIsTheMessageThatWasSetOnceThatIsCommitted) {
    const std::uint32_t gsi = routes_->add();
    EXPECT_GE(gsi, kvm::InterruptRoutes::kFirstMessageGsi);
    const EventFd event;
    vm_->attach_irqfd(event.fd(), gsi);
    routes_->set(gsi, kToApic0, 0x41);
    event.signal();
    EXPECT_FALSE(has_come(0x41)) << "KVM does not know it yet";
    ASSERT_TRUE(routes_->commit());
    event.signal();
    EXPECT_TRUE(has_come(0x41));
}

TEST_F(InterruptRoutesTest, ChangesComeTogetherAndTheLastOneCounts) {
    const std::uint32_t one = routes_->add();
    const std::uint32_t two = routes_->add();
    EXPECT_NE(one, two);
    const EventFd first;
    const EventFd second;
    vm_->attach_irqfd(first.fd(), one);
    vm_->attach_irqfd(second.fd(), two);
    routes_->set(one, kToApic0, 0x50);
    routes_->set(two, kToApic0, 0x51);
    routes_->set(one, kToApic0, 0x52);
    ASSERT_TRUE(routes_->commit());
    first.signal();
    second.signal();
    EXPECT_TRUE(has_come(0x52));
    EXPECT_TRUE(has_come(0x51));
    EXPECT_FALSE(has_come(0x50));
}

TEST_F(InterruptRoutesTest, AGsiThatWasRemovedIsSilentAndHasNoRouteWhenItIsGivenAway) {
    const std::uint32_t gsi = routes_->add();
    const EventFd event;
    vm_->attach_irqfd(event.fd(), gsi);
    routes_->set(gsi, kToApic0, 0x60);
    ASSERT_TRUE(routes_->commit());
    routes_->remove(gsi);
    ASSERT_TRUE(routes_->commit());
    event.signal();
    EXPECT_FALSE(has_come(0x60));
    EXPECT_EQ(routes_->add(), gsi) << "numbers are used again";
    ASSERT_TRUE(routes_->commit());
    event.signal();
    EXPECT_FALSE(has_come(0x60));
    routes_->set(gsi, kToApic0, 0x60);
    ASSERT_TRUE(routes_->commit());
    event.signal();
    EXPECT_TRUE(has_come(0x60));
}

TEST_F(InterruptRoutesTest, TheLinesOfTheInterruptControllersStay) {
    routes_->set(routes_->add(), kToApic0, 0x70);
    ASSERT_TRUE(routes_->commit());
    kvm_irqchip chip{};
    chip.chip_id = KVM_IRQCHIP_IOAPIC;
    ASSERT_EQ(::ioctl(vm_->fd(), KVM_GET_IRQCHIP, &chip), 0);
    chip.chip.ioapic.redirtbl[20].bits = 0x71; // edge-triggered, physical, to APIC 0, not masked
    ASSERT_EQ(::ioctl(vm_->fd(), KVM_SET_IRQCHIP, &chip), 0);
    const EventFd event;
    vm_->attach_irqfd(event.fd(), 20);
    event.signal();
    EXPECT_TRUE(testing::eventually([&] { return has_come(0x71); })) << "KVM does it on a thread of its own";
}

TEST_F(InterruptRoutesTest, ThereAreAsManyAsKvmTakesAndOneMoreIsRefused) {
    std::set<std::uint32_t> all;
    const std::string refusal = testing::error_of([&] {
        for (int i = 0; i < 5000; ++i) {
            all.insert(routes_->add());
        }
    });
    EXPECT_TRUE(testing::mentions(refusal, "configure fewer devices or queues")) << refusal;
    EXPECT_GT(all.size(), 4000U);
    for (const std::uint32_t gsi : all) {
        routes_->set(gsi, kToApic0, 0x41);
    }
    EXPECT_TRUE(routes_->commit()) << "KVM takes all of them at once";
}

} // namespace
} // namespace vmm
