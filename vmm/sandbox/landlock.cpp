#include "vmm/sandbox/landlock.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>

#include "kvm/host/error.hpp"

namespace vmm {

namespace {

/// As in Documentation/userspace-api/landlock.rst. It is repeated here, because the C library's headers may be older
/// than the kernel.
struct RulesetAttributes {
    std::uint64_t handled_access_fs;
    std::uint64_t handled_access_net;
};
constexpr unsigned kGetVersion = 1;

/// Says how many rights to files each version has. Their bits follow each other. Version 1 has 13 of them, version 2
/// adds REFER, version 3 adds TRUNCATE, and version 5 adds IOCTL_DEV.
constexpr std::array<unsigned, 6> kFileRights{0, 13, 14, 15, 15, 16};
constexpr int kFirstWithNetwork = 4;
constexpr std::uint64_t kToBindAPort = 1;
constexpr std::uint64_t kToConnectAPort = 2;
constexpr std::uint64_t kToWriteFiles = 2;
constexpr std::uint64_t kToReadFiles = 4;
constexpr std::uint64_t kToListDirectories = 8;

struct __attribute__((packed)) PathBeneath {
    std::uint64_t allowed_access;
    std::int32_t parent_fd;
};
constexpr unsigned kPathBeneath = 1;

/// A place that does not exist needs no right.
void allow(int ruleset, const LandlockPlace& place) {
    const UniqueFd fd(::open(place.path.c_str(), O_PATH | O_CLOEXEC));
    struct stat facts {};
    if (!fd || ::fstat(fd.get(), &facts) != 0) {
        if (errno == ENOENT || errno == EACCES || errno == ENOTDIR) {
            return;
        }
        throw_errno(errno, "look at " + place.path + ", for a Landlock ruleset");
    }
    const PathBeneath rule{.allowed_access = kToReadFiles | (S_ISDIR(facts.st_mode) ? kToListDirectories : 0) |
                                             (place.is_written ? kToWriteFiles : 0),
                           .parent_fd = fd.get()};
    if (::syscall(SYS_landlock_add_rule, ruleset, kPathBeneath, &rule, 0) != 0) {
        throw_errno(errno, "leave " + place.path + " to this process, by Landlock");
    }
}

} // namespace

int landlock_version() noexcept {
    const long version = ::syscall(SYS_landlock_create_ruleset, nullptr, 0, kGetVersion);
    return version < 0 ? 0 : static_cast<int>(version);
}

UniqueFd make_ruleset_without_rights() {
    return make_ruleset({}, false);
}

UniqueFd make_ruleset(std::span<const LandlockPlace> places, bool connects) {
    const int version = landlock_version();
    if (version == 0) {
        return {};
    }
    const auto known = std::min<std::size_t>(static_cast<std::size_t>(version), kFileRights.size() - 1);
    const bool has_network = version >= kFirstWithNetwork;
    const RulesetAttributes attributes{.handled_access_fs = (std::uint64_t{1} << kFileRights[known]) - 1,
                                       .handled_access_net = !has_network ? 0
                                                             : connects   ? kToBindAPort
                                                                          : kToBindAPort | kToConnectAPort};
    // An older kernel gets only the members that it knows.
    const std::size_t bytes = has_network ? sizeof attributes : sizeof attributes.handled_access_fs;
    UniqueFd ruleset(static_cast<int>(::syscall(SYS_landlock_create_ruleset, &attributes, bytes, 0)));
    if (!ruleset) {
        throw_errno(errno, "make a Landlock ruleset", {{EMFILE, "raise `ulimit -n`"}});
    }
    for (const LandlockPlace& place : places) {
        allow(ruleset.get(), place);
    }
    return ruleset;
}

void restrict_this_thread(int ruleset) {
    if (::syscall(SYS_landlock_restrict_self, ruleset, 0) != 0) {
        throw_errno(errno, "restrict a thread by Landlock", {{E2BIG, "it is in 16 such domains already"}});
    }
}

} // namespace vmm
