#include "vmm/machine/custom_devices.hpp"

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "devices/pci/config_ports.hpp"
#include "devices/pci/hotplug.hpp"
#include "kvm/host/error.hpp"
#include "vmm/machine/irqfd_line.hpp"
#include "vmm/machine/memory_map.hpp"
#include "vmm/refuse_nul.hpp"

namespace vmm {

CustomDevice::~CustomDevice() = default;

namespace {

constexpr std::uint64_t kPorts = 0x10000;

/// The ports at which KVM answers (memory_map.hpp). A device there would never see an access.
constexpr std::array kPortsOfKvm{GuestRange{GuestAddress{0x20}, 2}, GuestRange{GuestAddress{0x40}, 4},
                                 GuestRange{GuestAddress{0x61}, 1}, GuestRange{GuestAddress{0xa0}, 2},
                                 GuestRange{GuestAddress{0x4d0}, 2}};

constexpr std::array kTakenAddresses{
    memory_map::kScratchWindow, memory_map::kVirtioWindow, GuestRange{memory_map::kIoApic, kSmallPageBytes},
    GuestRange{memory_map::kLocalApic, kSmallPageBytes}, GuestRange{memory_map::kRealModePages, 4 * kSmallPageBytes}};

/// The addresses and ports that are taken, too, if there is PCI.
constexpr std::array kPciAddresses{memory_map::kPciEcam, memory_map::kPciWindow};
constexpr std::array kPciPorts{GuestRange{GuestAddress{memory_map::kPciConfigPorts}, devices::pci::ConfigPorts::kSize},
                               GuestRange{GuestAddress{memory_map::kPciHotplugPorts}, devices::pci::Hotplug::kSize}};

void refuse_taken(GuestRange range, std::span<const GuestRange> taken, const std::string& tried,
                  const std::string& why) {
    for (const GuestRange& other : taken) {
        if (other.overlaps(range)) {
            throw Error(tried + ": " + to_string(range) + " overlaps " + to_string(other) + ", which " + why);
        }
    }
}

void validate_place(const DeviceConfig& device, const std::string& tried) {
    if (device.size == 0) {
        throw Error(tried + ": its size is 0; at least 1 is needed");
    }
    const bool is_port = device.space == DeviceSpace::kPortIo;
    const GuestRange all = is_port ? GuestRange{GuestAddress{0}, kPorts} : memory_map::kHole;
    const GuestRange range{GuestAddress{device.base}, device.size};
    if (!all.contains(range)) {
        throw Error(tried + ": base " + to_string(range.base) + " and size " + std::to_string(device.size) +
                    " are not within " + to_string(all));
    }
    if (is_port) {
        refuse_taken(range, kPortsOfKvm, tried, "KVM answers for itself");
    } else {
        refuse_taken(range, kTakenAddresses, tried, "the machine needs itself");
    }
}

std::string trying_to_add(const DeviceConfig& device, std::size_t place) {
    return "cannot add the device '" + device.name + "' (Config::devices[" + std::to_string(place) + "])";
}

} // namespace

void DeviceConfig::check(std::size_t place) const {
    refuse_nul(name, "the name of a device");
    const std::string tried = trying_to_add(*this, place);
    if (name.empty()) {
        throw Error(tried + ": it needs a name");
    }
    if (!make) {
        throw Error(tried + ": it has no `make`");
    }
    if (trigger != InterruptTrigger::kEdge && trigger != InterruptTrigger::kLevel) {
        throw Error(tried + ": its trigger is neither edge nor level");
    }
    if (trigger == InterruptTrigger::kLevel && !interrupt) {
        throw Error(tried + ": it is level-triggered, but has no interrupt (name one, or take kEdge)");
    }
    if (space != DeviceSpace::kPortIo && space != DeviceSpace::kMmio) {
        throw Error(tried + ": its space is neither port I/O nor MMIO");
    }
    validate_place(*this, tried);
}

namespace {

/// The inputs of the I/O APIC that nothing in `config` uses.
std::set<std::uint32_t> free_lines(const Config& config, std::size_t virtio_devices) {
    const auto& lines = memory_map::kVirtioGsis;
    if (config.transport == VirtioTransport::kPci) {
        std::set<std::uint32_t> free(lines.begin(), lines.end());
        for (const std::uint32_t line : memory_map::kPciPinGsis) {
            free.erase(line);
        }
        free.erase(memory_map::kPciHotplugGsi);
        return free;
    }
    const std::size_t taken = std::min(virtio_devices, lines.size());
    return {lines.begin() + static_cast<std::ptrdiff_t>(taken), lines.end()};
}

void refuse_places_of_pci(const DeviceConfig& device, const std::string& tried) {
    const GuestRange range{GuestAddress{device.base}, device.size};
    const std::string why = "belongs to PCI (take another place, or Config::transport=mmio)";
    if (device.space == DeviceSpace::kPortIo) {
        refuse_taken(range, kPciPorts, tried, why);
    } else {
        refuse_taken(range, kPciAddresses, tried, why);
    }
}

} // namespace

void validate_custom_devices(const Config& config) {
    for (std::size_t i = 0; i < config.devices.size(); ++i) {
        const DeviceConfig& device = config.devices[i];
        device.check(i);
        if (config.transport == VirtioTransport::kPci) {
            refuse_places_of_pci(device, trying_to_add(device, i));
        }
    }
}

void check_interrupt_lines(const Config& config, std::size_t virtio_devices) {
    std::set<std::uint32_t> free = free_lines(config, virtio_devices);
    for (std::size_t i = 0; i < config.devices.size(); ++i) {
        const DeviceConfig& device = config.devices[i];
        if (device.interrupt && free.erase(*device.interrupt) == 0) {
            std::string names;
            for (const std::uint32_t line : free) {
                names += (names.empty() ? "" : ", ") + std::to_string(line);
            }
            throw Error(trying_to_add(device, i) + " with interrupt " + std::to_string(*device.interrupt) +
                        ": it is not one of those that are free: " + (names.empty() ? "none is" : names));
        }
    }
}

namespace {

/// The device's name, and its place if other devices have the same name.
std::string name_in_messages(std::span<const DeviceConfig> configs, std::size_t place) {
    const std::string& name = configs[place].name;
    const auto of_that_name = std::ranges::count(configs, name, &DeviceConfig::name);
    return of_that_name == 1 ? name : name + " (Config::devices[" + std::to_string(place) + "])";
}

} // namespace

CustomDevices::CustomDevices(kvm::Vm& vm, const GuestMemory& memory, std::span<const DeviceConfig> configs,
                             const Failed& failed) {
    // No destructor runs if this constructor throws, but a maker may have kept the interrupt line.
    struct Disconnect {
        ~Disconnect() {
            if (devices != nullptr) {
                devices->disconnect();
            }
        }
        CustomDevices* devices;
    } on_failure{this};
    for (std::size_t i = 0; i < configs.size(); ++i) {
        const DeviceConfig& config = configs[i];
        auto device = config.make(host_for(config, vm, memory));
        if (!device) {
            throw Error("cannot add the device '" + name_in_messages(configs, i) + "': its `make` made none");
        }
        devices_.emplace_back(config, name_in_messages(configs, i), std::move(device), failed);
    }
    on_failure.devices = nullptr;
}

CustomDevices::~CustomDevices() {
    disconnect();
}

void CustomDevices::disconnect() noexcept {
    for (const auto& line : level_lines_) {
        line->disconnect();
    }
}

DeviceHost CustomDevices::host_for(const DeviceConfig& config, kvm::Vm& vm, const GuestMemory& memory) {
    DeviceHost host{memory, {}, {}};
    if (!config.interrupt) {
        return host;
    }
    if (config.trigger == InterruptTrigger::kLevel) {
        const auto line = level_lines_.emplace_back(std::make_shared<LevelLine>(vm, *config.interrupt));
        host.raise_interrupt = [line] { line->set(true); };
        host.lower_interrupt = [line] { line->set(false); };
    } else {
        host.raise_interrupt = [line = std::make_shared<IrqfdLine>(vm, *config.interrupt)] { line->raise(); };
    }
    return host;
}

bool CustomDevices::claims_ports(GuestRange ports) const {
    return std::ranges::any_of(devices_, [&](const Guarded& device) {
        const DeviceConfig& config = device.config();
        return config.space == DeviceSpace::kPortIo &&
               GuestRange{GuestAddress{config.base}, config.size}.overlaps(ports);
    });
}

void CustomDevices::attach_to(devices::Bus& ports, devices::Bus& mmio) {
    for (Guarded& device : devices_) {
        const DeviceConfig& config = device.config();
        (config.space == DeviceSpace::kPortIo ? ports : mmio).attach(config.base, config.size, device);
    }
}

CustomDevices::Guarded::Guarded(const DeviceConfig& config, std::string name, std::shared_ptr<CustomDevice> device,
                                Failed failed)
    : config_(config), name_(std::move(name)), device_(std::move(device)), failed_(std::move(failed)) {}

void CustomDevices::Guarded::read(std::uint64_t offset, std::span<std::byte> data) noexcept {
    std::ranges::fill(data, std::byte{0xff});
    try {
        device_->read(offset, data);
    } catch (...) {
        std::ranges::fill(data, std::byte{0xff});
        failed_(std::current_exception());
    }
}

void CustomDevices::Guarded::write(std::uint64_t offset, std::span<const std::byte> data) noexcept {
    try {
        device_->write(offset, data);
    } catch (...) {
        failed_(std::current_exception());
    }
}

} // namespace vmm
