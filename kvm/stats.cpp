#include "kvm/stats.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/uapi.hpp"

namespace vmm::kvm {

namespace {

// These limits are far above any kernel's. They bound what a wrong file could make us allocate.
constexpr std::uint32_t kMaxCounters = 4096;
constexpr std::uint32_t kMaxNameBytes = 256;

bool read_exactly(int fd, void* target, std::size_t size, std::uint64_t offset) {
    const ssize_t count = ::pread(fd, target, size, static_cast<off_t>(offset));
    if (count >= 0 && count < static_cast<ssize_t>(size)) {
        errno = ENODATA; // the file is too short
    }
    return count == static_cast<ssize_t>(size);
}

} // namespace

Stats::Stats(UniqueFd fd) : fd_(std::move(fd)) {
    kvm_stats_header header{};
    if (!read_exactly(fd_.get(), &header, sizeof header, 0)) {
        throw_errno(errno, "read the header of KVM's statistics");
    }
    if (header.num_desc > kMaxCounters || header.name_size == 0 || header.name_size > kMaxNameBytes) {
        throw Error("cannot read KVM's statistics: the kernel describes " + std::to_string(header.num_desc) +
                    " counters with names of " + std::to_string(header.name_size) + " bytes, which is not plausible");
    }
    const std::size_t stride = sizeof(kvm_stats_desc) + header.name_size;
    std::vector<char> raw(stride * header.num_desc);
    if (!read_exactly(fd_.get(), raw.data(), raw.size(), header.desc_offset)) {
        throw_errno(errno, "read the names of KVM's statistics");
    }
    counters_.reserve(header.num_desc);
    for (std::size_t i = 0; i < header.num_desc; ++i) {
        const char* const raw_descriptor = raw.data() + i * stride;
        kvm_stats_desc descriptor{};
        std::memcpy(&descriptor, raw_descriptor, sizeof descriptor);
        if (descriptor.size != 1) {
            continue;
        }
        const char* const name = raw_descriptor + sizeof descriptor;
        counters_.push_back({std::string(name, ::strnlen(name, header.name_size)),
                             std::uint64_t{header.data_offset} + descriptor.offset});
    }
}

std::optional<std::uint64_t> Stats::value(std::string_view name) const {
    const auto counter = std::ranges::find(counters_, name, &Counter::name);
    std::uint64_t value = 0;
    if (counter == counters_.end() || !read_exactly(fd_.get(), &value, sizeof value, counter->file_offset)) {
        return std::nullopt;
    }
    return value;
}

std::vector<std::string> Stats::names() const {
    std::vector<std::string> names;
    names.reserve(counters_.size());
    for (const Counter& counter : counters_) {
        names.push_back(counter.name);
    }
    return names;
}

} // namespace vmm::kvm
