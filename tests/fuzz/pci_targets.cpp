// A PCI bus with two virtio devices, under a hostile driver: configuration spaces by memory and by ports, moves of
// registers, tables of MSI-X, walks of capabilities, doorbells.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "devices/device.hpp"
#include "devices/pci/config_ports.hpp"
#include "devices/pci/host_bridge.hpp"
#include "devices/pci/root_bus.hpp"
#include "fuzz/input.hpp"
#include "fuzz/require.hpp"
#include "fuzz/targets.hpp"
#include "support/devices_echo_device.hpp"
#include "support/devices_pci_driver.hpp"

namespace vmm::fuzz {
namespace {

using devices::pci::ConfigPorts;
using devices::pci::HostBridge;
using devices::pci::RootBus;
using devices::testing::EchoDevice;
using devices::testing::PciDriver;
using devices::testing::PciRig;

constexpr GuestRange kWindow{GuestAddress{0xe0000000}, 0x40000};
constexpr std::array<unsigned, 2> kSlots{1, 2};

/// A function that the bus borrows from its owner.
std::shared_ptr<devices::pci::Function> lent(devices::pci::Function& function) {
    return {std::shared_ptr<void>{}, &function};
}

struct NoDevice final : devices::Device {
    [[nodiscard]] std::string_view name() const noexcept override { return "none"; }
    void read(std::uint64_t /*offset*/, std::span<std::byte> data) noexcept override {
        std::ranges::fill(data, std::byte{0xff});
    }
    void write(std::uint64_t /*offset*/, std::span<const std::byte> /*data*/) noexcept override {}
};

class Machine {
  public:
    Machine() {
        bus_.insert(0, std::make_shared<HostBridge>());
        for (std::size_t i = 0; i < kSlots.size(); ++i) {
            bus_.insert(kSlots[i], lent(units_[i].rig.transport()));
        }
    }

    void run(Input& input) {
        while (!input.empty()) {
            step(input);
        }
        check();
    }

  private:
    /// An access of any width up to 8 bytes. It returns no more bytes than requested.
    static void access(devices::Device& device, std::uint64_t offset, std::size_t width, bool is_write, Input& input) {
        std::array<std::byte, 9> data{};
        data.fill(std::byte{0x5a});
        const std::span<std::byte> used = std::span(data).first(width);
        if (is_write) {
            std::ranges::copy(input.take_bytes(width), used.begin());
            device.write(offset, used);
        } else {
            device.read(offset, used);
        }
        require(data.back() == std::byte{0x5a}, "a read wrote beyond what was asked for");
    }

    void step(Input& input) {
        const std::uint8_t choice = input.byte();
        const bool is_write = (choice & 0x80) != 0;
        const std::size_t width = std::size_t{1} << (choice >> 5U & 3U);
        const std::size_t which = choice >> 4U & 1U;
        switch (choice & 0xfU) {
        case 0: // configuration spaces, anywhere
            access(bus_.ecam(), input.take<std::uint32_t>() % (RootBus::kEcamBytes + 16), width, is_write, input);
            return;
        case 1: // the header and the capabilities of one of them
        case 2:
            access(bus_.ecam(), std::uint64_t{kSlots[which]} << 15U | input.byte(), width, is_write, input);
            return;
        case 3: // the same by ports
            access(ports_, input.byte() % (ConfigPorts::kSize + 1), width, is_write, input);
            return;
        case 4: // a move of registers, to one of few places
            move(which, input);
            return;
        case 5: // the window, anywhere
            access(bus_.window(), input.take<std::uint32_t>() % (kWindow.size + 16), width, is_write, input);
            return;
        case 6: // registers at their addresses: structures, MSI-X
        case 7:
        case 8:
        case 9:
            access_registers(which, width, is_write, input);
            return;
        case 10: // a correct driver
            static_cast<void>(units_[which].rig.start(is_write));
            return;
        case 11:
            walk(which);
            return;
        case 12: // a turn of the device's thread
            units_[which].rig.settle();
            return;
        case 13: // the device raises an interrupt
            units_[which].rig.transport().change_config(0, std::array{std::byte{choice}});
            return;
        case 14:
            come_and_go(which);
            return;
        default:
            check();
            return;
        }
    }

    void move(std::size_t which, Input& input) {
        constexpr std::uint64_t kBaseAddress = 0x10;
        const std::uint64_t place =
            to_integer(kWindow.base) + input.byte() % 10 * devices::virtio::PciTransport::kBytes;
        const auto base = static_cast<std::uint32_t>(place);
        bus_.ecam().write(std::uint64_t{kSlots[which]} << 15U | kBaseAddress, std::as_bytes(std::span(&base, 1)));
    }

    void access_registers(std::size_t which, std::size_t width, bool is_write, Input& input) {
        const std::optional<GuestRange> place = units_[which].rig.transport().decoded();
        const std::uint64_t structure = input.byte() % 8 * 0x1000;
        const std::uint64_t offset = structure + input.byte();
        if (!place || !kWindow.contains(*place)) {
            return;
        }
        access(bus_.window(), to_integer(place->base) - to_integer(kWindow.base) + offset, width, is_write, input);
    }

    /// The list of capabilities ends, and is within the header, whatever the driver wrote.
    void walk(std::size_t which) {
        PciDriver driver(units_[which].rig.transport());
        const std::vector<std::uint8_t> found = driver.capabilities();
        require(found.size() == 6, "a capability came or went");
        for (const std::uint8_t at : found) {
            require(at >= 0x40 && at % 4 == 0, "a capability lies where none may");
        }
        require(driver.probe(), "the structures are not where they were");
    }

    void come_and_go(std::size_t which) {
        if (bus_.function(kSlots[which])) {
            bus_.remove(kSlots[which]);
        } else {
            bus_.insert(kSlots[which], lent(units_[which].rig.transport()));
        }
    }

    /// Conditions that hold at any time.
    void check() {
        for (std::size_t i = 0; i < kSlots.size(); ++i) {
            const devices::virtio::PciTransport::State state = units_[i].rig.pump().state();
            for (const auto& entry : state.msix.entries) {
                require(entry.message.address % 4 == 0 && entry.control <= 1, "an entry has bits that there are not");
            }
            walk(i);
        }
        // If a function is reported as the only one at a place, it answers there, and no other function is reported
        // there.
        for (const unsigned slot : kSlots) {
            const std::optional<GuestRange>& place = places_[slot];
            require(!place || bus_.function(slot) != nullptr, "who has gone is said to be there");
            for (const unsigned other : kSlots) {
                require(other == slot || !place || places_[other] != place, "two are said to be in one place");
            }
            if (place) {
                require(bus_.function(slot)->decoded() == place, "a function is said to be where it is not");
            }
        }
    }

    struct Unit {
        EchoDevice device;
        PciRig rig{device};
    };

    std::array<Unit, kSlots.size()> units_;
    std::array<std::optional<GuestRange>, RootBus::kSlots> places_;
    RootBus bus_{kWindow, [this](unsigned slot, std::optional<GuestRange> to) { places_[slot] = to; }};
    NoDevice others_;
    ConfigPorts ports_{bus_, others_, {}};
};

} // namespace

void pci(Bytes program) {
    Input input(program);
    Machine machine;
    machine.run(input);
}

} // namespace vmm::fuzz
