#include "prefault/report.hpp"

namespace vmm::prefault {

std::string_view to_string(Proof proof) noexcept {
    switch (proof) {
    case Proof::kNone:
        return "none";
    case Proof::kCounters:
        return "counters";
    case Proof::kTouch:
        return "touch";
    }
    return "?";
}

} // namespace vmm::prefault
