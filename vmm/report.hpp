// The report of a run: as values, as JSON, and as lines for people.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kvm/host/export.hpp"
#include "kvm/host/guest_memory.hpp"
#include "prefault/kept.hpp"
#include "prefault/mapped_pages.hpp"
#include "prefault/report.hpp"
#include "prefault/x86/second_level_host.hpp"
#include "vmm/config.hpp"
#include "vmm/stop_request.hpp"

VMM_API_BEGIN
namespace vmm {

/// How much output of one character device there was, and how much was lost.
struct CharacterOutput {
    std::string device;           ///< "serial", "console"
    std::uint64_t bytes = 0;      ///< bytes that the guest wrote
    std::uint64_t lost_bytes = 0; ///< how many of them reached nobody; 0 if the device is not connected
    std::string lost_because;     ///< text for people; empty if nothing was lost
};

/// The report of one run (docs/report.md). Times are in seconds.
struct RunReport {
    static constexpr int kSchema = 1;

    prefault::SecondLevelHost host;
    bool kvm_pre_fault_memory = false;

    std::uint64_t memory_bytes = 0;
    PageSize page_size = PageSize::kThp;
    prefault::Pin pin = prefault::Pin::kNone;
    prefault::NumaPolicy numa;
    std::uint64_t warm_bytes = 0; ///< how much of it a pool of warm memory gave (Config::memory_from)
    /// The process's VmLck and VmPin after the prefault; nothing if they are not known (no /proc).
    std::optional<std::uint64_t> locked_bytes;
    std::optional<std::uint64_t> pinned_bytes;

    PrefaultWhen prefault_when = PrefaultWhen::kBefore;
    prefault::Report prefault;
    /// For a prefault in the background: the time from the guest's first instruction until the second level was full,
    /// and the second-level faults of all vCPUs until then. Nothing if it never became full.
    std::optional<double> seconds_until_full;
    std::optional<std::uint64_t> faults_until_full;

    std::optional<prefault::KeptReport> kept; ///< nothing unless Config::prefault_keep

    std::optional<LazyReport> lazy; ///< nothing unless memory came while the guest ran (RestoreMode::kLazy)

    std::optional<ArrivalReport> arrival; ///< nothing unless the guest came from elsewhere (Config::incoming)

    double seconds_to_first_instruction = 0;

    unsigned vcpus = 0;
    std::string cpu; ///< as Config::cpu
    bool nested = false;
    HardwareDescription hardware = HardwareDescription::kAcpi;
    double guest_seconds = 0;
    ExitReason exit = ExitReason::kStopped;
    /// By vCPU: KVM's pf_fixed since hand-over.
    std::vector<std::uint64_t> second_level_faults;
    std::vector<std::uint64_t> exits;                  ///< by vCPU: KVM's exits since hand-over; may be empty
    std::vector<CharacterOutput> output;               ///< of the serial port and, if there is one, of the console
    prefault::MappedPages mapped;                      ///< of guest memory, at the end
    std::chrono::steady_clock::time_point guest_ended; ///< when the guest had ended

    std::optional<std::uint64_t> resident_overhead_bytes; ///< nothing if it is not known (no /proc)
    /// The time from the guest's end until everything was given back. The code that destroys the machine measures it.
    double teardown_seconds = 0;

    [[nodiscard]] std::uint64_t second_level_faults_total() const;
    [[nodiscard]] std::uint64_t exits_total() const;
};

/// The JSON text, ending in a newline.
[[nodiscard]] std::string to_json(const RunReport& report);

/// A few lines for people, without a newline after the last.
[[nodiscard]] std::string to_summary(const RunReport& report);

} // namespace vmm
VMM_API_END
