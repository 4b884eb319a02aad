#include "vmm/sandbox/landlock.hpp"

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>

#include "kvm/host/error.hpp"

namespace vmm {

namespace {

/// As in Documentation/userspace-api/landlock.rst; the C library's headers may be older than the kernel.
struct RulesetAttributes {
    std::uint64_t handled_access_fs;
    std::uint64_t handled_access_net;
};
constexpr unsigned kGetVersion = 1;

/// Says how many rights to files each version has. Their bits follow each other. Version 1 has 13 of them, version 2
/// adds REFER, version 3 adds TRUNCATE, and version 5 adds IOCTL_DEV.
constexpr std::array<unsigned, 6> kFileRights{0, 13, 14, 15, 15, 16};
constexpr int kFirstWithNetwork = 4;
constexpr std::uint64_t kNetworkRights = 0b11; // to bind and to connect a TCP port

} // namespace

int landlock_version() noexcept {
    const long version = ::syscall(SYS_landlock_create_ruleset, nullptr, 0, kGetVersion);
    return version < 0 ? 0 : static_cast<int>(version);
}

UniqueFd make_ruleset_without_rights() {
    const int version = landlock_version();
    if (version == 0) {
        return {};
    }
    const auto known = std::min<std::size_t>(static_cast<std::size_t>(version), kFileRights.size() - 1);
    const bool has_network = version >= kFirstWithNetwork;
    const RulesetAttributes attributes{.handled_access_fs = (std::uint64_t{1} << kFileRights[known]) - 1,
                                       .handled_access_net = has_network ? kNetworkRights : 0};
    // An older kernel takes the members that it knows.
    const std::size_t bytes = has_network ? sizeof attributes : sizeof attributes.handled_access_fs;
    UniqueFd ruleset(static_cast<int>(::syscall(SYS_landlock_create_ruleset, &attributes, bytes, 0)));
    if (!ruleset) {
        throw_errno(errno, "make a Landlock ruleset", {{EMFILE, "raise `ulimit -n`"}});
    }
    return ruleset;
}

void restrict_this_thread(int ruleset) {
    if (::syscall(SYS_landlock_restrict_self, ruleset, 0) != 0) {
        throw_errno(errno, "restrict a thread by Landlock", {{E2BIG, "it is in 16 such domains already"}});
    }
}

} // namespace vmm
