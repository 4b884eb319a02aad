// The report of a prefault.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/host/export.hpp"
#include "kvm/host/guest_address.hpp"
#include "prefault/mapped_pages.hpp"
#include "prefault/options.hpp"

VMM_API_BEGIN
namespace vmm::prefault {

/// What proves that the second level is full.
enum class Proof {
    kNone,     ///< nothing
    kCounters, ///< KVM's counts of mappings cover the memory to fill
    kTouch,    ///< prefault vCPUs wrote to every 4 KiB of it and took no fault, by KVM's count
};

/// The name used in the report: "none", "counters", "touch".
[[nodiscard]] std::string_view to_string(Proof proof) noexcept;

/// What was done, and what KVM's counters say about it.
struct Report {
    Scope scope = Scope::kNone;
    std::vector<GuestRange> ranges; ///< what was asked for; empty: all memory
    std::uint64_t bytes = 0;        ///< the size of what was asked for
    Method method = Method::kNone;
    std::string method_reason; ///< why this method
    unsigned workers = 0;
    double host_seconds = 0;
    double pin_seconds = 0;
    double second_level_seconds = 0; ///< in the background: of both sides
    double smm_seconds = 0;
    double total_seconds = 0;
    MappedPages mapped;         ///< of all guest memory, when the prefault ended
    MappedPages smm_mapped;     ///< what the second level of system management mode added
    Proof proof = Proof::kNone; ///< what proves that the second level is full
    unsigned top_up_passes = 0; ///< passes over every 4 KiB that found something to map
    bool complete = false;      ///< what was asked for was done, and it is proven if the scope is kAll
    std::string problem;        ///< why it is not complete; empty if it is, or if a stop was requested
};

} // namespace vmm::prefault
VMM_API_END
