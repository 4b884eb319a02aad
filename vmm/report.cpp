#include "vmm/report.hpp"

#include <nlohmann/json.hpp>
#include <numeric>

#include "kvm/host/format.hpp"
#include "vmm/version.hpp"

namespace vmm {

std::uint64_t RunReport::second_level_faults_total() const {
    return std::accumulate(second_level_faults.begin(), second_level_faults.end(), std::uint64_t{0});
}

std::uint64_t RunReport::exits_total() const {
    return std::accumulate(exits.begin(), exits.end(), std::uint64_t{0});
}

namespace {

using Json = nlohmann::ordered_json;

Json mapped_json(const prefault::MappedPages& mapped) {
    return {{"4k", mapped.pages_4k}, {"2m", mapped.pages_2m}, {"1g", mapped.pages_1g}};
}

Json ranges_json(const std::vector<GuestRange>& ranges) {
    Json list = Json::array();
    for (const GuestRange& range : ranges) {
        list.push_back({{"base", to_integer(range.base)}, {"bytes", range.size}});
    }
    return list;
}

Json output_json(const std::vector<CharacterOutput>& outputs) {
    Json list = Json::array();
    for (const CharacterOutput& output : outputs) {
        list.push_back({{"device", output.device},
                        {"bytes", output.bytes},
                        {"lost_bytes", output.lost_bytes},
                        {"lost_because", output.lost_because}});
    }
    return list;
}

Json kept_json(const prefault::KeptReport& kept) {
    Json events = Json::array();
    for (const prefault::KeptEvent& event : kept.events) {
        Json counts = Json::object();
        for (const prefault::KernelCount& count : event.counts) {
            counts[count.name] = count.rise;
        }
        events.push_back({{"kind", to_string(event.kind)},
                          {"seconds", event.seconds},
                          {"before", mapped_json(event.before)},
                          {"mapped", mapped_json(event.mapped)},
                          {"lost_bytes", event.lost_bytes},
                          {"faults", event.faults},
                          {"spell_seconds", event.spell_seconds},
                          {"wait_seconds", event.wait_seconds},
                          {"refills", event.refills},
                          {"causes", event.causes},
                          {"counts", std::move(counts)},
                          {"problem", event.problem}});
    }
    return {{"every_ms", kept.every_ms},
            {"looks", kept.looks},
            {"losses", kept.losses},
            {"lost_bytes", kept.lost_bytes},
            {"splits", kept.splits},
            {"refills", kept.refills},
            {"faults", kept.faults},
            {"longest_spell_seconds", kept.longest_spell_seconds},
            {"refill_seconds", kept.refill_seconds},
            {"watch_cpu_seconds", kept.watch_cpu_seconds},
            {"full", kept.full},
            {"problem", kept.problem},
            {"events_total", kept.events_total},
            {"events", std::move(events)}};
}

template <typename Value>
Json or_null(const std::optional<Value>& value) {
    return value ? Json(*value) : Json(nullptr);
}

std::string_view scope_name(const prefault::Report& prefault) {
    return prefault.ranges.empty() ? to_string(prefault.scope) : "ranges";
}

Json lazy_json(const LazyReport& lazy) {
    return {{"chunks", lazy.chunks},
            {"demanded_chunks", lazy.demanded_chunks},
            {"working_set_chunks", lazy.working_set_chunks},
            {"longest_wait_seconds", lazy.longest_wait_seconds},
            {"seconds_until_loaded", or_null(lazy.seconds_until_loaded)}};
}

Json arrival_json(const ArrivalReport& arrival) {
    return {{"shared", arrival.shared},
            {"received_bytes", arrival.received_bytes},
            {"resumed", arrival.resumed},
            {"receiving_seconds", arrival.receiving_seconds},
            {"fill_seconds", arrival.fill_seconds},
            {"mapped_bytes", arrival.mapped_bytes},
            {"takeover_seconds", arrival.takeover_seconds},
            {"faults_in_first_second", or_null(arrival.faults_in_first_second)},
            {"faults_in_ten_seconds", or_null(arrival.faults_in_ten_seconds)}};
}

} // namespace

std::string to_json(const RunReport& report) {
    const prefault::Report& prefault = report.prefault;
    Json json;
    json["schema"] = RunReport::kSchema;
    json["host"] = {{"second_level", to_string(report.host.kind)},
                    {"tdp_mmu", or_null(report.host.tdp_mmu)},
                    {"kvm_pre_fault_memory", report.kvm_pre_fault_memory},
                    {"nested", report.host.nested}};
    json["memory"] = {{"bytes", report.memory_bytes},
                      {"page_size", to_string(report.page_size)},
                      {"pin", to_string(report.pin)},
                      {"locked_bytes", or_null(report.locked_bytes)},
                      {"pinned_bytes", or_null(report.pinned_bytes)},
                      {"numa", to_string(report.numa)},
                      {"warm_bytes", report.warm_bytes}};
    json["prefault"] = {{"scope", scope_name(prefault)},
                        {"bytes", prefault.bytes},
                        {"ranges", ranges_json(prefault.ranges)},
                        {"when", to_string(report.prefault_when)},
                        {"method", to_string(prefault.method)},
                        {"method_reason", prefault.method_reason},
                        {"workers", prefault.workers},
                        {"seconds",
                         {{"host", prefault.host_seconds},
                          {"pin", prefault.pin_seconds},
                          {"second_level", prefault.second_level_seconds},
                          {"smm", prefault.smm_seconds},
                          {"total", prefault.total_seconds}}},
                        {"mapped", mapped_json(prefault.mapped)},
                        {"smm_mapped", mapped_json(prefault.smm_mapped)},
                        {"top_up_passes", prefault.top_up_passes},
                        {"proof", to_string(prefault.proof)},
                        {"complete", prefault.complete},
                        {"problem", prefault.problem},
                        {"seconds_until_full", or_null(report.seconds_until_full)},
                        {"faults_until_full", or_null(report.faults_until_full)}};
    json["kept"] = report.kept ? kept_json(*report.kept) : Json(nullptr);
    json["lazy"] = report.lazy ? lazy_json(*report.lazy) : Json(nullptr);
    json["arrival"] = report.arrival ? arrival_json(*report.arrival) : Json(nullptr);
    json["boot"] = {{"seconds_to_first_instruction", report.seconds_to_first_instruction}};
    json["guest"] = {{"vcpus", report.vcpus},
                     {"cpu", report.cpu},
                     {"nested", report.nested},
                     {"hardware", to_string(report.hardware)},
                     {"seconds", report.guest_seconds},
                     {"exit", to_string(report.exit)},
                     {"second_level_faults", report.second_level_faults},
                     {"second_level_faults_total", report.second_level_faults_total()},
                     {"exits", report.exits},
                     {"exits_total", report.exits_total()},
                     {"output", output_json(report.output)},
                     {"mapped", mapped_json(report.mapped)}};
    json["vmm"] = {{"version", kVersion},
                   {"resident_overhead_bytes", or_null(report.resident_overhead_bytes)},
                   {"teardown_seconds", report.teardown_seconds}};
    return json.dump(2) + "\n";
}

namespace {

std::string describe_mapped(const prefault::MappedPages& mapped) {
    std::string text;
    const auto append = [&text](std::uint64_t pages, const char* size) {
        if (pages != 0) {
            text += vmm::format("{}{} x {}", text.empty() ? "" : " + ", pages, size);
        }
    };
    append(mapped.pages_1g, "1G");
    append(mapped.pages_2m, "2M");
    append(mapped.pages_4k, "4K");
    return text.empty() ? "nothing" : text;
}

std::string describe_prefault(const RunReport& report) {
    const prefault::Report& prefault = report.prefault;
    if (prefault.scope == prefault::Scope::kNone) {
        return "prefault: none";
    }
    const bool background = report.prefault_when == PrefaultWhen::kBackground;
    std::string text =
        vmm::format("prefault: {}{} in {:.3f} s with {} worker{} (host {:.3f} s, pin {:.3f} s", scope_name(prefault),
                    background ? ", in the background," : "", prefault.total_seconds, prefault.workers,
                    prefault.workers == 1 ? "" : "s", prefault.host_seconds, prefault.pin_seconds);
    if (prefault.scope == prefault::Scope::kAll) {
        text += vmm::format(", second level {:.3f} s by {}): KVM maps {} ({})", prefault.second_level_seconds,
                            to_string(prefault.method), describe_mapped(prefault.mapped), to_string(report.host.kind));
    } else {
        text += ")";
    }
    if (report.warm_bytes != 0) {
        text += ", " + format_bytes(report.warm_bytes) + " from a pool";
    }
    text += prefault.complete ? ", complete" : ", NOT complete";
    if (!prefault.problem.empty()) {
        text += ": " + prefault.problem;
    }
    if (report.seconds_until_full && report.faults_until_full) {
        text += vmm::format("; full {:.3f} s after the guest's start, which had taken {} faults by then",
                            *report.seconds_until_full, *report.faults_until_full);
    }
    return text;
}

/// Describes what the counts cannot show if the host is itself a guest. Returns a line with its newline, or an empty
/// text.
std::string describe_nesting(const RunReport& report) {
    if (!report.host.nested) {
        return "";
    }
    const bool ahead_of_accesses =
        report.prefault.scope == prefault::Scope::kAll && report.prefault.method == prefault::Method::kIoctl;
    return vmm::format("nested: this host is itself a guest, and what its own host maps is not known to it{}\n",
                       ahead_of_accesses ? "; nothing was touched, so that each page faults there once" : "");
}

/// Returns a line with its newline; empty if the second level was not to be kept full.
std::string describe_kept(const RunReport& report) {
    if (!report.kept) {
        return {};
    }
    const prefault::KeptReport& kept = *report.kept;
    std::string text = vmm::format(
        "kept full: {} loss{} of {} in all, {} refill{} in {:.3f} s, {} faults meanwhile; {}", kept.losses,
        kept.losses == 1 ? "" : "es", format_bytes(kept.lost_bytes), kept.refills, kept.refills == 1 ? "" : "s",
        kept.refill_seconds, kept.faults, kept.full ? "full at the end" : "NOT full at the end");
    if (kept.losses != 0) {
        text += vmm::format("; at the longest it was not for {:.3f} s", kept.longest_spell_seconds);
    }
    return text + (kept.problem.empty() ? "" : ": " + kept.problem) + "\n";
}

} // namespace

std::string to_summary(const RunReport& report) {
    const std::string guest = report.seconds_to_first_instruction == 0
                                  ? vmm::format("{} before its first instruction", to_string(report.exit))
                                  : vmm::format("{} after {:.3f} s on {} vCPU{}; first instruction after {:.3f} s",
                                                to_string(report.exit), report.guest_seconds, report.vcpus,
                                                report.vcpus == 1 ? "" : "s", report.seconds_to_first_instruction);
    return vmm::format(
        "{}\n{}guest: {}\nsecond-level faults: {} since hand-over\n{}resident beyond guest memory: {}; all given "
        "back after {:.3f} s",
        describe_prefault(report), describe_kept(report), guest, report.second_level_faults_total(),
        describe_nesting(report),
        report.resident_overhead_bytes
            ? vmm::format("{:.1f} MiB",
                          static_cast<double>(*report.resident_overhead_bytes) / static_cast<double>(kMiB))
            : "unknown",
        report.teardown_seconds);
}

} // namespace vmm
