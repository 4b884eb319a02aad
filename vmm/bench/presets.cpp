#include "vmm/bench/presets.hpp"

#include <algorithm>
#include <bit>

namespace vmm::bench {

namespace {

constexpr unsigned kRfcVcpus = 32;
constexpr std::uint64_t kRfcBytesPerVcpu = 2 * kGiB;

/// The largest power of two up to `bytes`, at least 32 MiB.
std::uint64_t round_size(std::uint64_t bytes) {
    return std::max(std::bit_floor(bytes), 32 * kMiB);
}

std::vector<unsigned> doubling(unsigned most) {
    std::vector<unsigned> numbers;
    for (unsigned number = 1; number < most; number *= 2) {
        numbers.push_back(number);
    }
    numbers.push_back(most);
    return numbers;
}

} // namespace

std::string_view to_string(Preset preset) noexcept {
    switch (preset) {
    case Preset::kNone:
        return "";
    case Preset::kQuick:
        return "quick";
    case Preset::kRfc:
        return "rfc";
    case Preset::kScale:
        return "scale";
    }
    return "";
}

PresetFacts preset_facts(Preset preset, const HostRoom& room, const PresetHost& host, bool full) {
    PresetFacts facts;
    Matrix& matrix = facts.matrix;
    const unsigned cpus = std::max(host.cpus, 1U);
    const unsigned vcpus = std::min({cpus, kRfcVcpus, std::max(room.most_vcpus, 1U)});
    matrix.vcpus = {vcpus};
    matrix.workers = {cpus};
    matrix.page_sizes = {kPageSizesOfAnyHost.begin(), kPageSizesOfAnyHost.end()};
    matrix.page_sizes.push_back(kPageSizeOfPool);
    matrix.methods = {kMethods.begin(), kMethods.end()};
    // Guest memory, an equally large pool of huge pages, and some memory for the rest must fit.
    const std::uint64_t most = room.available_bytes / 3;
    std::uint64_t memory = std::min(kStandardMemoryBytes, round_size(most));
    switch (preset) {
    case Preset::kNone:
        break;
    case Preset::kQuick:
        memory = std::min(kStandardMemoryBytes, round_size(room.available_bytes / 24));
        facts.time_limit_seconds = 50;
        facts.run_limit_seconds = 6;
        break;
    case Preset::kRfc:
        memory = std::min(vcpus * kRfcBytesPerVcpu, round_size(most));
        if (full) {
            memory = kRfcVcpus * kRfcBytesPerVcpu;
            matrix.vcpus = {kRfcVcpus};
        }
        break;
    case Preset::kScale:
        facts.runs = 3;
        memory = std::min(full ? most : 2 * kGiB, round_size(most));
        matrix.workers = doubling(cpus);
        break;
    }
    matrix.memory_bytes = {memory};
    if (preset == Preset::kScale) {
        matrix.memory_bytes = {memory / 8, memory / 4, memory / 2, memory};
    }
    matrix.has_thp_pool = host.thp_pool;
    if (!host.prefault_ioctl) {
        std::erase(matrix.methods, Method::kIoctl);
    }
    if (!host.prefault_ioctl || !host.nested) {
        std::erase(matrix.methods, Method::kIoctlThenTouch);
    }
    if (!room.may_raise_pools && room.free_2m_bytes < memory) {
        std::erase(matrix.page_sizes, kPageSizeOfPool);
    }
    return facts;
}

} // namespace vmm::bench
