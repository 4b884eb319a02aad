#include "vmm/cli/snapshot_info.hpp"

#include <sys/stat.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "kvm/host/format.hpp"
#include "kvm/host/guest_address.hpp"
#include "kvm/host/text.hpp"
#include "vmm/machine/x86/cpu_model.hpp"
#include "vmm/state/state_container.hpp"
#include "vmm/state/virtio_fields.hpp"

namespace vmm {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kBlockBytes = 512; // the unit of st_blocks in every file system
constexpr std::size_t kColumn = 16;      // in which values begin
constexpr double kNanosecondsInSecond = 1e9;

struct MemoryAmounts {
    std::uint64_t all_bytes = 0;
    std::uint64_t not_zero_bytes = 0; ///< in whole chunks
    std::uint64_t based_bytes = 0;    ///< of them, those in the base
    std::uint64_t disk_bytes = 0;     ///< the size of its own file on the disk
};

MemoryAmounts memory_amounts(const SnapshotReader& snapshot) {
    MemoryAmounts amounts{.all_bytes = snapshot.layout().memory_bytes()};
    for (std::size_t i = 0; i < snapshot.layout().chunks(); ++i) {
        const MemoryChunk& chunk = (*snapshot.state().memory)[i];
        const std::uint64_t bytes = snapshot.layout().chunk(i).range.size;
        amounts.not_zero_bytes += chunk.is_hole ? 0 : bytes;
        amounts.based_bytes += chunk.file != 0 ? bytes : 0;
    }
    struct stat facts {};
    if (::fstat(snapshot.memory_fd(), &facts) == 0) {
        amounts.disk_bytes = static_cast<std::uint64_t>(facts.st_blocks) * kBlockBytes;
    }
    return amounts;
}

/// "2026-11-29 09:20:01 UTC"; empty if there is no such time.
std::string written_time(std::int64_t seconds, std::string_view between = " ", std::string_view behind = " UTC") {
    const auto time = static_cast<std::time_t>(seconds);
    std::tm parts{};
    if (::gmtime_r(&time, &parts) == nullptr) {
        return {};
    }
    return format("{:04}-{:02}-{:02}{}{:02}:{:02}:{:02}{}", parts.tm_year + 1900LL, parts.tm_mon + 1, parts.tm_mday,
                  between, parts.tm_hour, parts.tm_min, parts.tm_sec, behind);
}

std::string_view kind_of(const VirtioDeviceState& device) {
    return virtio_fields::kKinds[device.device.index()];
}

std::vector<std::string> features_of(const SnapshotReader& snapshot) {
    std::vector<std::string> names;
    for (const std::string_view name : cpu_feature_names()) {
        if (has_cpu_feature(snapshot.state().machine.vcpus.front().cpuid, name)) {
            names.emplace_back(name);
        }
    }
    return names;
}

std::string hexadecimal(const std::array<std::byte, 16>& bytes) {
    std::string text;
    for (const std::byte byte : bytes) {
        text += format("{:02x}", static_cast<unsigned>(byte));
    }
    return text;
}

/// The words with spaces between them, in lines of at most 100 characters. The lines begin in the column of the values.
std::string wrapped(const std::vector<std::string>& words) {
    constexpr std::size_t kWidth = 100;
    std::string text;
    std::size_t at = kColumn;
    for (const std::string& word : words) {
        if (!text.empty() && at + 1 + word.size() > kWidth) {
            text += "\n" + std::string(kColumn, ' ');
            at = kColumn;
        } else if (!text.empty()) {
            text += " ";
            ++at;
        }
        text += word;
        at += word.size();
    }
    return text;
}

} // namespace

std::string snapshot_info_text(const SnapshotReader& snapshot) {
    const SnapshotOrigin& origin = snapshot.state().origin;
    const MachineState& machine = snapshot.state().machine;
    std::string text;
    const auto line = [&text](std::string_view name, const std::string& value) {
        text += format("{:<{}}{}\n", name, kColumn, value);
    };
    const std::string time = written_time(origin.created_at);
    line("snapshot", snapshot.directory().string());
    line("made", (time.empty() ? "at a time that is not known" : time) + ", by vmm " + shown(origin.vmm_version));
    line("host", "Linux " + shown(origin.kernel_release) + ", " + shown(origin.cpu_model, 64) + " (" +
                     shown(origin.cpu_vendor) + ")");
    line("architecture", "x86-64");
    line("vCPUs", std::to_string(machine.vcpus.size()));
    const MemoryAmounts amounts = memory_amounts(snapshot);
    line("memory", format("{} ({} bytes); pieces of {} that are not zero: {}; on the disk: {}",
                          format_bytes(amounts.all_bytes), amounts.all_bytes, format_bytes(kMemoryChunkBytes),
                          format_bytes(amounts.not_zero_bytes), format_bytes(amounts.disk_bytes)));
    for (const MemoryPiece& region : snapshot.layout().regions()) {
        line("", to_string(region.range));
    }
    if (snapshot.base() != nullptr) {
        line("builds on", format("{}; pieces of memory that are there, or in what that builds on: {}",
                                 snapshot.base()->directory().string(), format_bytes(amounts.based_bytes)));
    }
    std::vector<std::string> devices;
    for (const VirtioDeviceState& device : machine.virtio) {
        devices.push_back(shown(device.name) + " (" + std::string(kind_of(device)) + ")" +
                          (&device == &machine.virtio.back() ? "" : ","));
    }
    line("devices", devices.empty() ? "none" : wrapped(devices));
    line("clock", format("{:.3f} s of the guest's, at {} of the host's; {} kHz",
                         static_cast<double>(machine.vm.clock.clock) / kNanosecondsInSecond,
                         written_time(static_cast<std::int64_t>(machine.vm.realtime_ns / 1'000'000'000)),
                         machine.vcpus.front().tsc_khz));
    line("generation", machine.generation_id_at ? hexadecimal(machine.generation_id) : "none");
    const std::vector<std::string> features = features_of(snapshot);
    line("features", features.empty() ? "none" : wrapped(features));
    return text;
}

std::string snapshot_info_json(const SnapshotReader& snapshot) {
    const SnapshotOrigin& origin = snapshot.state().origin;
    const MachineState& machine = snapshot.state().machine;
    const MemoryAmounts amounts = memory_amounts(snapshot);
    Json regions = Json::array();
    for (const MemoryPiece& region : snapshot.layout().regions()) {
        regions.push_back({{"base", to_integer(region.range.base)}, {"bytes", region.range.size}});
    }
    Json devices = Json::array();
    for (const VirtioDeviceState& device : machine.virtio) {
        devices.push_back({{"name", device.name}, {"kind", kind_of(device)}});
    }
    Json info{
        {"directory", snapshot.directory().string()},
        {"created_at", written_time(origin.created_at, "T", "Z")},
        {"vmm_version", origin.vmm_version},
        {"kernel_release", origin.kernel_release},
        {"architecture", "x86-64"},
        {"vcpus", machine.vcpus.size()},
        {"memory",
         {{"bytes", amounts.all_bytes},
          {"not_zero_bytes", amounts.not_zero_bytes},
          {"disk_bytes", amounts.disk_bytes},
          {"regions", std::move(regions)}}},
        {"devices", std::move(devices)},
        {"clock",
         {{"guest_ns", machine.vm.clock.clock},
          {"realtime_ns", machine.vm.realtime_ns},
          {"tsc_khz", machine.vcpus.front().tsc_khz}}},
        {"cpu", {{"vendor", origin.cpu_vendor}, {"model", origin.cpu_model}, {"features", features_of(snapshot)}}},
    };
    if (snapshot.base() != nullptr) {
        info["base"] = {{"directory", snapshot.base()->directory().string()}, {"bytes", amounts.based_bytes}};
    }
    if (machine.generation_id_at) {
        info["generation_id"] = hexadecimal(machine.generation_id);
    }
    // A file name may have any bytes.
    return info.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

} // namespace vmm
