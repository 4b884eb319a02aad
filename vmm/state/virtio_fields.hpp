// The fields of a virtio device and its registers: see vmm/state/fields.hpp.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>

#include "devices/character_port.hpp"
#include "devices/frame_link.hpp"
#include "devices/virtio/console.hpp"
#include "devices/virtio/device_state.hpp"
#include "devices/virtio/driver_link.hpp"
#include "devices/virtio/memory_device.hpp"
#include "devices/virtio/mmio_transport.hpp"
#include "devices/virtio/transport.hpp"
#include "vmm/state/fields.hpp"

namespace vmm::virtio_fields {

namespace virtio = devices::virtio;

inline constexpr std::size_t kMostNameBytes = 15; // virtio::Identity::name
inline constexpr std::size_t kMostFailureBytes = 1024;
inline constexpr FieldSize kQueues{0, virtio::QueueSet::kMostQueues};
inline constexpr FieldSize kConfigBytes{0, virtio::MmioTransport::kSize};
inline constexpr FieldSize kVectors{0, devices::pci::Msix::kMostVectors};
inline constexpr FieldSize kPlugged{0, virtio::MemoryDevice::kMostBlocks / 8};
inline constexpr FieldSize kFrameBytes{0, devices::FrameLink::kMostBytes};
inline constexpr FieldSize kInputBytes{0, virtio::Console::kInputBytes};
inline constexpr FieldSize kOutputBytes{0, devices::CharacterPort::kDefaultOutputBytes};

inline void geometry(auto& fields, auto& geometry) {
    fields.number("size", geometry.size);
    fields.number("descriptors", geometry.descriptors);
    fields.number("driver_area", geometry.driver_area);
    fields.number("device_area", geometry.device_area);
}

inline void queue_in_device(auto& fields, auto& queue) {
    fields.object("geometry", queue.geometry, [](auto& inner, auto& value) { geometry(inner, value); });
    fields.flag("event_idx", queue.event_idx);
    fields.flag("indirect", queue.indirect);
    fields.number("next_available", queue.next_available);
    fields.number("next_used", queue.next_used);
    fields.number("signalled_used", queue.signalled_used);
    fields.flag("signalled_valid", queue.signalled_valid);
}

inline void queue(auto& fields, auto& queue) {
    fields.object("geometry", queue.geometry, [](auto& inner, auto& value) { geometry(inner, value); });
    fields.flag("is_enabled", queue.is_enabled);
    fields.object("in_device", queue.in_device, [](auto& inner, auto& value) { queue_in_device(inner, value); });
}

inline void negotiation(auto& fields, auto& negotiation) {
    fields.number("status", negotiation.status);
    fields.number("driver_features", negotiation.driver_features);
    fields.flag("accepts_unknown", negotiation.accepts_unknown);
    fields.list("queues", negotiation.queues, kQueues, [](auto& inner, auto& value) { queue(inner, value); });
    fields.number("config_generation", negotiation.config_generation);
    fields.bytes("config", negotiation.config, kConfigBytes);
    fields.bytes("reset_config", negotiation.reset_config, kConfigBytes);
    fields.text("failure", negotiation.failure, kMostFailureBytes);
}

inline void mmio(auto& fields, auto& transport) {
    fields.object("negotiation", transport.negotiation, [](auto& inner, auto& value) { negotiation(inner, value); });
    fields.number("device_features_select", transport.device_features_select);
    fields.number("driver_features_select", transport.driver_features_select);
    fields.number("queue_select", transport.queue_select);
    fields.number("interrupt_status", transport.interrupt_status);
}

inline void pci(auto& fields, auto& transport) {
    fields.object("negotiation", transport.negotiation, [](auto& inner, auto& value) { negotiation(inner, value); });
    fields.number("device_features_select", transport.device_features_select);
    fields.number("driver_features_select", transport.driver_features_select);
    fields.number("queue_select", transport.queue_select);
    fields.number("interrupt_status", transport.interrupt_status);
    fields.number("config_vector", transport.config_vector);
    fields.rows("queue_vectors", transport.queue_vectors, kQueues, [](auto& row, auto& vector) { row.number(vector); });
    fields.raw("config_space", transport.config_space);
    fields.rows("msix", transport.msix.entries, kVectors, [](auto& row, auto& entry) {
        row.number(entry.message.address);
        row.number(entry.message.data);
        row.number(entry.control);
    });
    fields.rows("msix_pending", transport.msix.pending, kVectors,
                [](auto& row, auto& is_pending) { row.number(is_pending); });
}

inline void transport(FieldWriter& fields, const virtio::TransportState& transport) {
    if (const auto* const over_mmio = std::get_if<virtio::MmioState>(&transport)) {
        fields.object("transport", *over_mmio, [](auto& inner, auto& value) { mmio(inner, value); });
    } else {
        fields.object("pci_transport", std::get<virtio::PciState>(transport),
                      [](auto& inner, auto& value) { pci(inner, value); });
    }
}

inline void transport(FieldReader& fields, virtio::TransportState& transport) {
    std::optional<virtio::PciState> over_pci;
    fields.object("pci_transport", over_pci, [](auto& inner, auto& value) { pci(inner, value); });
    if (over_pci) {
        transport = *std::move(over_pci);
        return;
    }
    virtio::MmioState over_mmio;
    fields.object("transport", over_mmio, [](auto& inner, auto& value) { mmio(inner, value); });
    transport = std::move(over_mmio);
}

/// The kinds of devices in the order of virtio::DeviceState.
inline constexpr std::array<std::string_view, std::variant_size_v<virtio::DeviceState>> kKinds{
    "none", "block", "net", "rng", "console", "vsock", "balloon", "memory"};

/// The fields of a device of one kind.
template <typename State>
void device_of_kind(auto& fields, State& device) {
    using Plain = std::remove_const_t<State>;
    if constexpr (std::is_same_v<Plain, virtio::BlockState>) {
        fields.number("sectors", device.sectors);
        fields.flag("data_lost", device.data_lost);
        fields.number("unflushed_begin", device.unflushed_begin);
        fields.number("unflushed_end", device.unflushed_end);
    } else if constexpr (std::is_same_v<Plain, virtio::NetState>) {
        fields.bytes("frame", device.frame, kFrameBytes);
        fields.flag("link_up", device.link_up);
        fields.object("pairs", device.pairs, [](auto& inner, auto& pairs) {
            inner.number("used", pairs.used);
            inner.list("frames", pairs.frames, kQueues,
                       [](auto& of_pair, auto& frame) { of_pair.bytes("frame", frame, kFrameBytes); });
        });
    } else if constexpr (std::is_same_v<Plain, virtio::ConsoleState>) {
        fields.bytes("output", device.output, kOutputBytes);
        fields.bytes("input", device.input, kInputBytes);
        fields.number("dropped_output_bytes", device.dropped_output_bytes);
        fields.object("told_size", device.told_size, [](auto& inner, auto& size) {
            inner.number("columns", size.columns);
            inner.number("rows", size.rows);
        });
    } else if constexpr (std::is_same_v<Plain, virtio::VsockState>) {
        fields.flag("has_driver", device.has_driver);
        fields.number("guest_cid", device.guest_cid);
        fields.number("next_host_port", device.next_host_port);
    } else if constexpr (std::is_same_v<Plain, virtio::BalloonState>) {
        fields.number("target_pages", device.target_pages);
        fields.number("told_pages", device.told_pages);
        fields.rows("done", device.done, kQueues, [](auto& row, auto& done) { row.number(done); });
    } else if constexpr (std::is_same_v<Plain, virtio::MemoryState>) {
        fields.number("address", device.address);
        fields.number("block_bytes", device.block_bytes);
        fields.bytes("plugged", device.plugged, kPlugged);
        fields.number("requested_bytes", device.requested_bytes);
        fields.number("told_bytes", device.told_bytes);
        fields.number("done_blocks", device.done_blocks);
    } else {
        static_assert(std::is_same_v<Plain, std::monostate> || std::is_same_v<Plain, virtio::RngState>);
    }
}

inline void device(FieldWriter& fields, const virtio::DeviceState& device) {
    fields.text("kind", std::string(kKinds[device.index()]), kMostNameBytes);
    std::visit([&fields](const auto& state) { device_of_kind(fields, state); }, device);
}

template <std::size_t... kIndex>
void read_device(FieldReader& fields, virtio::DeviceState& device, const std::string& kind,
                 std::index_sequence<kIndex...> /*all*/) {
    const bool is_known = ((kind == kKinds[kIndex] && (device_of_kind(fields, device.emplace<kIndex>()), true)) || ...);
    if (!is_known) {
        fields.path().refuse("is of a kind that is not known");
    }
}

inline void device(FieldReader& fields, virtio::DeviceState& device) {
    std::string kind;
    fields.text("kind", kind, kMostNameBytes);
    read_device(fields, device, kind, std::make_index_sequence<kKinds.size()>());
}

/// `device` is a VirtioDeviceState.
inline void virtio_device(auto& fields, auto& virtio_device) {
    fields.text("name", virtio_device.name, kMostNameBytes);
    fields.number("id", virtio_device.id);
    transport(fields, virtio_device.transport);
    // Without PCI the field is left out, so that the bytes are the same as before there was PCI.
    std::optional<std::uint32_t> slot;
    if (virtio_device.pci_slot != 0) {
        slot = virtio_device.pci_slot;
    }
    fields.number("pci_slot", slot);
    if constexpr (!std::is_const_v<std::remove_reference_t<decltype(virtio_device)>>) {
        virtio_device.pci_slot = slot.value_or(0);
    }
    fields.object("device", virtio_device.device, [](auto& inner, auto& value) { device(inner, value); });
}

} // namespace vmm::virtio_fields
