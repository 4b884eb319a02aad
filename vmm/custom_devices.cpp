#include "vmm/custom_devices.hpp"

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "kvm/error.hpp"
#include "vmm/irqfd_line.hpp"
#include "vmm/memory_map.hpp"
#include "vmm/virtio_devices.hpp"

namespace vmm {

CustomDevice::~CustomDevice() = default;

namespace {

constexpr std::uint64_t kPorts = 0x10000;
constexpr std::uint64_t kPageBytes = 4 * kKiB;

/// The ports at which KVM answers (memory_map.hpp): a device there would never hear of an access.
constexpr std::array kPortsOfKvm{GuestRange{GuestAddress{0x20}, 2}, GuestRange{GuestAddress{0x40}, 4},
                                 GuestRange{GuestAddress{0x61}, 1}, GuestRange{GuestAddress{0xa0}, 2},
                                 GuestRange{GuestAddress{0x4d0}, 2}};

constexpr std::array kTakenAddresses{
    memory_map::kScratchWindow, memory_map::kVirtioWindow, GuestRange{memory_map::kIoApic, kPageBytes},
    GuestRange{memory_map::kLocalApic, kPageBytes}, GuestRange{memory_map::kRealModePages, 4 * kPageBytes}};

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
    const auto refuse = [&](std::span<const GuestRange> taken) {
        for (const GuestRange& other : taken) {
            if (other.overlaps(range)) {
                throw Error(tried + ": " + to_string(range) + " overlaps " + to_string(other) + ", which " +
                            (is_port ? "KVM answers for itself" : "the machine needs itself"));
            }
        }
    };
    if (is_port) {
        refuse(kPortsOfKvm);
    } else {
        refuse(kTakenAddresses);
    }
}

} // namespace

void validate_custom_devices(const Config& config) {
    const auto& lines = memory_map::kVirtioGsis;
    const std::size_t taken = std::min(count_virtio_devices(config), lines.size());
    std::set<std::uint32_t> free(lines.begin() + static_cast<std::ptrdiff_t>(taken), lines.end());
    for (std::size_t i = 0; i < config.devices.size(); ++i) {
        const DeviceConfig& device = config.devices[i];
        const std::string tried =
            "cannot add the device '" + device.name + "' (Config::devices[" + std::to_string(i) + "])";
        if (device.name.empty()) {
            throw Error(tried + ": it needs a name");
        }
        if (!device.make) {
            throw Error(tried + ": it has no `make`");
        }
        validate_place(device, tried);
        if (device.interrupt && free.erase(*device.interrupt) == 0) {
            std::string names;
            for (const std::uint32_t line : free) {
                names += (names.empty() ? "" : ", ") + std::to_string(line);
            }
            throw Error(tried + " with interrupt " + std::to_string(*device.interrupt) +
                        ": it is not one of those that are free: " + (names.empty() ? "none is" : names));
        }
    }
}

CustomDevices::CustomDevices(kvm::Vm& vm, const GuestMemory& memory, std::span<const DeviceConfig> configs,
                             const Failed& failed) {
    for (const DeviceConfig& config : configs) {
        DeviceHost host{memory, {}};
        if (config.interrupt) {
            host.raise_interrupt = [line = std::make_shared<IrqfdLine>(vm, *config.interrupt)] { line->raise(); };
        }
        auto device = config.make(host);
        if (!device) {
            throw Error("cannot add the device '" + config.name + "': its `make` made none");
        }
        devices_.emplace_back(config, std::move(device), failed);
    }
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

CustomDevices::Guarded::Guarded(const DeviceConfig& config, std::shared_ptr<CustomDevice> device, Failed failed)
    : config_(config), name_(config.name), device_(std::move(device)), failed_(std::move(failed)) {}

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
