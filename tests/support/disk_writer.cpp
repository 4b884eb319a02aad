// A guest that writes to its first virtio disk for ever, and prints on the serial port which writes are on stable
// storage. A test shows that they are there after its vmm has been killed (tests/kvm/kill_test.cpp). It starts like the
// built-in guest, and reads `first=N`, the number of its first write, from its command line.
//
// Write number N fills the block of 4 KiB at place (N * kStep) modulo kPlaces with words made from N. Writes go in
// batches: all writes of a batch at once, together with the flush of the batch before.
#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "support/disk_writer.hpp"
#include "vmm/guest/machine.hpp"
#include "vmm/guest/options.hpp"
#include "vmm/guest/serial.hpp"
#include "vmm/guest/start_info.hpp"
#include "vmm/guest/text.hpp"

namespace vmm::guest {
namespace {

using namespace vmm::testing::disk_writer;

// Virtio 1.2, 4.2.2: the registers, at the address of vmm's first device.
constexpr std::uint64_t kRegisters = 0xd0000000;
constexpr std::uint64_t kDeviceId = kRegisters + 0x008;
constexpr std::uint64_t kDriverFeatures = kRegisters + 0x020;
constexpr std::uint64_t kDriverFeaturesSelect = kRegisters + 0x024;
constexpr std::uint64_t kQueueSelect = kRegisters + 0x030;
constexpr std::uint64_t kQueueNumber = kRegisters + 0x038;
constexpr std::uint64_t kQueueReady = kRegisters + 0x044;
constexpr std::uint64_t kQueueNotify = kRegisters + 0x050;
constexpr std::uint64_t kStatus = kRegisters + 0x070;
constexpr std::uint64_t kQueueDescriptors = kRegisters + 0x080;
constexpr std::uint64_t kQueueDriver = kRegisters + 0x090;
constexpr std::uint64_t kQueueDevice = kRegisters + 0x0a0;

constexpr std::uint32_t kBlockDevice = 2;
constexpr std::uint32_t kFeatureFlush = 1U << 9;
constexpr std::uint32_t kFeatureVersion1 = 1; // of the upper half
constexpr std::uint32_t kWrite = 1;
constexpr std::uint32_t kFlush = 4;
constexpr std::uint16_t kNext = 1;
constexpr std::uint16_t kDeviceWrites = 2;

constexpr std::uint16_t kQueueSize = 64;
constexpr std::size_t kRequests = kBatch + 1;

struct Descriptor {
    std::uint64_t address;
    std::uint32_t length;
    std::uint16_t flags;
    std::uint16_t next;
};
struct Available {
    std::uint16_t flags;
    std::uint16_t index;
    std::array<std::uint16_t, kQueueSize + 1> ring;
};
struct Used {
    std::uint16_t flags;
    volatile std::uint16_t index;
    std::array<std::uint64_t, kQueueSize + 1> ring;
};
struct Header {
    std::uint32_t type;
    std::uint32_t reserved;
    std::uint64_t sector;
};

alignas(4096) constinit std::array<std::array<std::uint64_t, kBlockBytes / 8>, kBatch> blocks{};
alignas(16) constinit std::array<Descriptor, kQueueSize> descriptors{};
alignas(16) constinit Available available{};
alignas(16) constinit Used used{};
alignas(16) constinit std::array<Header, kRequests> headers{};
constinit std::array<volatile std::uint8_t, kRequests> statuses{};

std::uint64_t address_of(const volatile void* what) noexcept {
    return reinterpret_cast<std::uint64_t>(what); // Memory is mapped to itself.
}

[[noreturn]] void stop_with(std::string_view reason) noexcept {
    serial::print(Line("error").field("reason", reason));
    while (true) {
        pause();
    }
}

void set_address(std::uint64_t reg, const volatile void* what) noexcept {
    mmio_write<std::uint32_t>(reg, static_cast<std::uint32_t>(address_of(what)));
    mmio_write<std::uint32_t>(reg + 4, 0);
}

void start_device() noexcept {
    if (mmio_read<std::uint32_t>(kDeviceId) != kBlockDevice) {
        stop_with("no-disk");
    }
    mmio_write<std::uint32_t>(kStatus, 0);
    mmio_write<std::uint32_t>(kStatus, 3); // ACKNOWLEDGE, DRIVER
    mmio_write<std::uint32_t>(kDriverFeaturesSelect, 0);
    mmio_write<std::uint32_t>(kDriverFeatures, kFeatureFlush);
    mmio_write<std::uint32_t>(kDriverFeaturesSelect, 1);
    mmio_write<std::uint32_t>(kDriverFeatures, kFeatureVersion1);
    mmio_write<std::uint32_t>(kStatus, 11); // And FEATURES_OK.
    if (mmio_read<std::uint32_t>(kStatus) != 11) {
        stop_with("features");
    }
    mmio_write<std::uint32_t>(kQueueSelect, 0);
    mmio_write<std::uint32_t>(kQueueNumber, kQueueSize);
    set_address(kQueueDescriptors, descriptors.data());
    set_address(kQueueDriver, &available);
    set_address(kQueueDevice, &used);
    mmio_write<std::uint32_t>(kQueueReady, 1);
    mmio_write<std::uint32_t>(kStatus, 15); // And DRIVER_OK.
}

/// Request `i` of the batch, with `bytes` at `data`, or without data. It uses the descriptors from 3 * i on.
void add(std::size_t i, std::uint32_t type, std::uint64_t sector, const void* data, std::uint32_t bytes) noexcept {
    const auto first = static_cast<std::uint16_t>(3 * i);
    headers[i] = {type, 0, sector};
    statuses[i] = 0xff;
    const auto last = static_cast<std::uint16_t>(first + (data != nullptr ? 2 : 1));
    descriptors[first] = {address_of(&headers[i]), sizeof(Header), kNext, static_cast<std::uint16_t>(first + 1)};
    if (data != nullptr) {
        descriptors[first + 1U] = {address_of(data), bytes, kNext, last};
    }
    descriptors[last] = {address_of(&statuses[i]), 1, kDeviceWrites, 0};
    const std::uint16_t place = available.index % kQueueSize;
    available.ring[place] = first;
    asm volatile("mfence" : : : "memory");
    available.index = static_cast<std::uint16_t>(available.index + 1);
}

void add_writes(std::uint64_t first) noexcept {
    for (std::size_t i = 0; i < kBatch; ++i) {
        const std::uint64_t number = first + i;
        for (std::size_t word = 0; word < blocks[i].size(); ++word) {
            blocks[i][word] = word_of(number, word);
        }
        add(i, kWrite, place_of(number) * (kBlockBytes / 512), blocks[i].data(), kBlockBytes);
    }
}

/// Waits until all added requests have come back, and checks them.
void finish(std::size_t begin, std::size_t end) noexcept {
    asm volatile("mfence" : : : "memory");
    mmio_write<std::uint32_t>(kQueueNotify, 0);
    while (used.index != available.index) {
        pause();
    }
    asm volatile("mfence" : : : "memory");
    for (std::size_t i = begin; i < end; ++i) {
        if (statuses[i] != 0) {
            stop_with("request-failed");
        }
    }
}

std::uint64_t read_first(std::uint64_t start_info_address) noexcept {
    const auto* const info = reinterpret_cast<const StartInfo*>(start_info_address); // the loader's; mapped to itself
    std::string_view line(reinterpret_cast<const char*>(info->command_line_address));
    constexpr std::string_view kWord = "first=";
    const std::size_t at = line.find(kWord);
    if (at == std::string_view::npos) {
        stop_with("no-first");
    }
    line.remove_prefix(at + kWord.size());
    line = line.substr(0, line.find(' '));
    const auto number = detail::parse_decimal(line);
    if (!number) {
        stop_with("first-is-no-number");
    }
    return *number;
}

} // namespace

extern "C" [[noreturn]] void guest_main(std::uint32_t start_info_address, std::uint32_t /*given_tables*/) noexcept {
    serial::start();
    std::uint64_t next = read_first(start_info_address);
    start_device();
    add_writes(next);
    finish(0, kBatch);
    while (true) {
        add(kBatch, kFlush, 0, nullptr, 0);
        add_writes(next + kBatch);
        finish(0, kRequests);
        serial::print(Line().field("flushed", next + kBatch - 1));
        next += kBatch;
    }
}

} // namespace vmm::guest
