#include "prefault/kept.hpp"

#include "kvm/host/format.hpp"
#include "kvm/host/guest_address.hpp"

namespace vmm::prefault {

namespace {

std::string describe(const MappedPages& mapped) {
    return vmm::format("{} x 1G + {} x 2M + {} x 4K", mapped.pages_1g, mapped.pages_2m, mapped.pages_4k);
}

std::string faults_of(const KeptEvent& event) {
    return vmm::format("{} fault{}", event.faults, event.faults == 1 ? "" : "s");
}

/// "; probably compaction (compact_isolated +12, pgmigrate_success +10)"
std::string describe_causes(const KeptEvent& event) {
    if (event.causes.empty()) {
        return "; the kernel counted nothing that would take mappings";
    }
    std::string text = "; probably ";
    for (std::size_t i = 0; i < event.causes.size(); ++i) {
        text += (i == 0 ? "" : ", or ") + event.causes[i];
    }
    for (std::size_t i = 0; i < event.counts.size(); ++i) {
        text += vmm::format("{}{} +{}", i == 0 ? " (" : ", ", event.counts[i].name, event.counts[i].rise);
    }
    return text + (event.counts.empty() ? "" : ")");
}

std::string describe_event(const KeptEvent& event) {
    switch (event.kind) {
    case KeptEventKind::kLost:
        return vmm::format("lost {}: mapped {} of {}, new faults {}", format_bytes(event.lost_bytes),
                           describe(event.mapped), describe(event.before), event.faults) +
               describe_causes(event);
    case KeptEventKind::kFull:
        return vmm::format("full again after {:.3f} s, by {}: mapped {}; the guest took {}", event.spell_seconds,
                           event.refills == 0   ? std::string("the guest's own faults")
                           : event.refills == 1 ? std::string("a refill")
                                                : vmm::format("{} refills", event.refills),
                           describe(event.mapped), faults_of(event)) +
               describe_causes(event);
    case KeptEventKind::kRegained:
        return vmm::format("the guest took {} within {:.3f} s, and nothing is missing: it mapped again what was lost, "
                           "or has guests of its own",
                           faults_of(event), event.spell_seconds) +
               describe_causes(event);
    case KeptEventKind::kSplit:
        return vmm::format("split: mapped {}, before {}; nothing is missing", describe(event.mapped),
                           describe(event.before)) +
               describe_causes(event);
    case KeptEventKind::kHeld:
        return "what is missing stays so while dirty logging is on: a refill would make all pages dirty";
    case KeptEventKind::kBackOff:
        return event.problem.empty()
                   ? vmm::format("mappings are taken away as fast as they are made: the next refill is in {:.3f} s",
                                 event.wait_seconds)
                   : vmm::format("the refill did not come to its end: {}: the next one is in {:.3f} s", event.problem,
                                 event.wait_seconds);
    case KeptEventKind::kEnded:
        return "the keeper ended, and what is lost from now on stays lost: " + event.problem;
    }
    return {};
}

} // namespace

std::string_view to_string(KeptEventKind kind) noexcept {
    switch (kind) {
    case KeptEventKind::kLost:
        return "lost";
    case KeptEventKind::kFull:
        return "full";
    case KeptEventKind::kRegained:
        return "regained";
    case KeptEventKind::kSplit:
        return "split";
    case KeptEventKind::kHeld:
        return "held";
    case KeptEventKind::kBackOff:
        return "back-off";
    case KeptEventKind::kEnded:
        return "ended";
    }
    return "?";
}

std::string to_line(const KeptEvent& event) {
    return vmm::format("keep: {:.3f} s, {}", event.seconds, describe_event(event));
}

} // namespace vmm::prefault
