#include "prefault/options.hpp"

#include <algorithm>
#include <cstddef>
#include <string>

#include "kvm/host/error.hpp"

namespace vmm::prefault {

namespace {

/// The beginning and the end of each range as text for people: "0 B to 3 GiB".
std::string list_of(std::span<const GuestRange> ranges) {
    std::string text;
    for (const GuestRange& range : ranges) {
        text += (text.empty() ? "" : ", ") + format_bytes(to_integer(range.base)) + " to " +
                format_bytes(to_integer(range.end()));
    }
    return text;
}

void check_ranges(std::span<const GuestRange> ranges, std::span<const GuestRange> ram, PageSize page_size) {
    const std::uint64_t page_bytes = certain_page_bytes(page_size);
    for (std::size_t i = 0; i < ranges.size(); ++i) {
        const GuestRange& range = ranges[i];
        const std::string tried = "cannot prefault " + to_string(range);
        if (range.size == 0) {
            throw Error(tried + ": it is empty");
        }
        if (!is_aligned(to_integer(range.base), page_bytes) || !is_aligned(range.size, page_bytes)) {
            throw Error(tried + ": it must begin and end at a multiple of the page size, " + format_bytes(page_bytes));
        }
        if (std::ranges::none_of(ram, [&](const GuestRange& piece) { return piece.contains(range); })) {
            throw Error(tried + ": it is not all RAM, which this guest has from " + list_of(ram));
        }
        for (const GuestRange& other : ranges.first(i)) {
            if (other.overlaps(range)) {
                throw Error(tried + ": it overlaps " + to_string(other));
            }
        }
    }
}

} // namespace

std::string_view to_string(Method method) noexcept {
    switch (method) {
    case Method::kNone:
        return "none";
    case Method::kAuto:
        return "auto";
    case Method::kTouch:
        return "touch";
    case Method::kIoctl:
        return "ioctl";
    case Method::kIoctlThenTouch:
        return "ioctl+touch";
    }
    return "?";
}

std::string_view to_string(Scope scope) noexcept {
    switch (scope) {
    case Scope::kNone:
        return "none";
    case Scope::kHost:
        return "host";
    case Scope::kAll:
        return "all";
    }
    return "?";
}

void check_option_values(const Options& options, std::span<const GuestRange> ram, PageSize page_size) {
    if (options.workers != kWorkerPerCpu && (options.workers < 1 || options.workers > kMaxWorkers)) {
        throw Error("cannot use " + std::to_string(options.workers) + " prefault workers: 1 to " +
                    std::to_string(kMaxWorkers) + " are possible");
    }
    check_ranges(options.ranges, ram, page_size);
}

void check_options(const Options& options, std::span<const GuestRange> ram, PageSize page_size) {
    check_option_values(options, ram, page_size);
    check_cpus_usable(options.cpus, "Config::prefault.cpus");
}

Options resolved(Options options) {
    if (options.workers == kWorkerPerCpu) {
        const std::size_t cpus = options.cpus.empty() ? usable_cpu_list().size() : options.cpus.size();
        options.workers = static_cast<unsigned>(std::clamp<std::size_t>(cpus, 1, kMaxWorkers));
    }
    return options;
}

Pin resolved(Pin pin, Scope scope) noexcept {
    if (pin != Pin::kAuto) {
        return pin;
    }
    return scope == Scope::kNone ? Pin::kNone : Pin::kMlock;
}

} // namespace vmm::prefault
