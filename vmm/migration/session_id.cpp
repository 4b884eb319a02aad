#include "vmm/migration/session_id.hpp"

#include <sys/random.h>

#include <cerrno>

#include "kvm/host/error.hpp"
#include "kvm/host/retry.hpp"

namespace vmm {

SessionId new_session_id() {
    SessionId id{};
    if (uninterrupted([&id] { return ::getrandom(id.data(), id.size(), 0); }) != static_cast<ssize_t>(id.size())) {
        throw_errno(errno, "get random bytes for a migration", "free some memory, and try again");
    }
    return id;
}

} // namespace vmm
