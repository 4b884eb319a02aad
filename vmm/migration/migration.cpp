#include "vmm/migration.hpp"

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/guest_address.hpp"
#include "vmm/migration/messages.hpp"
#include "vmm/refuse_nul.hpp"
#include "vmm/state/snapshot_files.hpp"

namespace vmm {

static_assert(MigrationOptions::kMostStreams == kMostStreams);

std::string_view to_string(Compression compression) noexcept {
    switch (compression) {
    case Compression::kNone:
        return "none";
    case Compression::kZstd:
        return "zstd";
    case Compression::kAuto:
        return "auto";
    }
    return "?";
}

std::string_view to_string(OnTimeout on_timeout) noexcept {
    switch (on_timeout) {
    case OnTimeout::kCancel:
        return "cancel";
    case OnTimeout::kForce:
        return "force";
    }
    return "?";
}

void MigrationOptions::check() const {
    const std::string tried = "cannot migrate the machine: ";
    if (streams == 0 || streams > kMostStreams) {
        throw Error(tried + vmm::format("{} streams of pages are not possible (1 to {} are)", streams, kMostStreams));
    }
    if (downtime.count() <= 0) {
        throw Error(tried + "the guest stands still for some time at least (allow a downtime of 1 ms or more)");
    }
    if (timeout.count() < 0 || reconnect.count() < 0 || within.count() < 0) {
        throw Error(tried + "a time is less than 0");
    }
    if (bytes_per_second != 0 && bytes_per_second < kLeastBytesPerSecond) {
        throw Error(tried + "it takes at least " + format_bytes(kLeastBytesPerSecond) + " a second");
    }
    if (most_throttled_percent > kMostThrottledPercent) {
        throw Error(tried + vmm::format("vCPUs can be held for {}% of their time at most", kMostThrottledPercent));
    }
    if (config.size() > snapshot_files::kMostConfigBytes) {
        throw Error(tried + "its configuration has " + format_bytes(config.size()) + ", and " +
                    format_bytes(snapshot_files::kMostConfigBytes) + " is the most");
    }
    refuse_nul(address.path, "the path of a migration's socket");
    security.check(address, false);
}

} // namespace vmm
