#include "vmm/migration/peer_process.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

#include "kvm/host/unix_listener.hpp"

namespace vmm {

namespace {

/// Empty if the kernel does not say what is needed.
std::string process_name(pid_t process) {
    std::ifstream file("/proc/sys/kernel/random/boot_id");
    std::string boot;
    struct stat space {};
    if (process <= 0 || !std::getline(file, boot) || boot.empty() || ::stat("/proc/self/ns/pid", &space) != 0) {
        return {};
    }
    std::string name = boot + "/" + std::to_string(space.st_ino) + "/" + std::to_string(process);
    if (name.size() > kMostProcessNameBytes) {
        name.clear();
    }
    return name;
}

} // namespace

std::string own_process_name() {
    return process_name(::getpid());
}

UniqueFd process_at_other_end(const Channel& channel, std::string_view name) {
    const auto peer = channel.peer_process() ? peer_of(channel.fd()) : std::nullopt;
    if (!peer || name.empty() || process_name(peer->process) != name) {
        return {};
    }
    return UniqueFd(::fcntl(channel.peer_process().get(), F_DUPFD_CLOEXEC, 0));
}

} // namespace vmm
