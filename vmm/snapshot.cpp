#include "vmm/snapshot.hpp"

#include "kvm/host/error.hpp"
#include "vmm/refuse_nul.hpp"

namespace vmm {

std::string_view to_string(RestoreMode mode) noexcept {
    switch (mode) {
    case RestoreMode::kFull:
        return "full";
    case RestoreMode::kCow:
        return "cow";
    case RestoreMode::kLazy:
        return "lazy";
    }
    return "?";
}

std::string_view to_string(RestoreClock clock) noexcept {
    return clock == RestoreClock::kRealtime ? "realtime" : "stopped";
}

void RestoreFrom::check() const {
    if (path.empty()) {
        throw Error("cannot go on from a snapshot without a name (Config::restore.path)");
    }
    refuse_nul(path, "the path of a snapshot");
    if (record_working_set.count() != 0 && mode != RestoreMode::kLazy) {
        throw Error(
            "cannot record what the guest needs first of a snapshot (Config::restore.record_working_set) if all "
            "of it is there at the start: take Config::restore.mode=lazy");
    }
    if (record_working_set.count() < 0 || record_working_set > kLongestRecord) {
        throw Error("cannot record for " + std::to_string(record_working_set.count()) +
                    " ms what the guest needs first of a snapshot (Config::restore.record_working_set): 1 to " +
                    std::to_string(kLongestRecord.count()) + " are possible, and 0 for nothing");
    }
}

} // namespace vmm
