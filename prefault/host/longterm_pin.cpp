#include "prefault/host/longterm_pin.hpp"

#include <liburing.h>
#include <sys/uio.h>

#include <array>
#include <cassert>
#include <cerrno>
#include <fstream>

#include "kvm/host/error.hpp"

namespace vmm::prefault {

namespace {

constexpr const char* kOtherwise = "or take Config::pin=mlock";

/// Calls io_uring_register() and returns 0 or the errno, which is positive.
int register_with(int ring, unsigned operation, const void* argument, unsigned count) noexcept {
    const int result = ::io_uring_register(static_cast<unsigned>(ring), operation, argument, count);
    return result < 0 ? -result : 0;
}

/// An address in the form that the kernel's structures hold.
std::uint64_t address_of(const void* object) noexcept {
    return reinterpret_cast<std::uintptr_t>(object); // NOLINT(*-reinterpret-cast): an address as a number, never back.
}

UniqueFd make_disabled_ring() {
    io_uring_params parameters{};
    parameters.flags = IORING_SETUP_R_DISABLED; // Only a disabled ring accepts restrictions.
    // The ring is never mapped, and its one entry is never used.
    const int result = ::io_uring_setup(1, &parameters);
    if (result < 0) {
        throw_errno(-result, "make an io_uring for pinning guest memory", ring_advice(-result));
    }
    return UniqueFd(result);
}

void make_buffer_table(int ring, unsigned buffers) {
    io_uring_rsrc_register table{};
    table.nr = buffers;
    table.flags = IORING_RSRC_REGISTER_SPARSE;
    if (const int error = register_with(ring, IORING_REGISTER_BUFFERS2, &table, sizeof table); error != 0) {
        throw_errno(
            error, "make an io_uring's table of " + std::to_string(buffers) + " buffers",
            {{EINVAL, "Config::pin=longterm needs Linux 5.19, or take Config::pin=mlock"},
             {EPERM, "a seccomp filter or a security module forbids it: allow it, or take Config::pin=mlock"},
             {EACCES, "a seccomp filter or a security module forbids it: allow it, or take Config::pin=mlock"}});
    }
}

/// Restrictions hold from the moment the ring is enabled (io_uring/register.c).
void restrict_to_buffers(int ring) {
    constexpr std::array<std::uint8_t, 2> kAllowed{IORING_REGISTER_BUFFERS_UPDATE, IORING_UNREGISTER_BUFFERS};
    std::array<io_uring_restriction, kAllowed.size()> restrictions{};
    for (std::size_t i = 0; i < kAllowed.size(); ++i) {
        restrictions[i].opcode = IORING_RESTRICTION_REGISTER_OP;
        restrictions[i].register_op = kAllowed[i];
    }
    int error = register_with(ring, IORING_REGISTER_RESTRICTIONS, restrictions.data(), restrictions.size());
    if (error == 0) {
        error = register_with(ring, IORING_REGISTER_ENABLE_RINGS, nullptr, 0);
    }
    if (error != 0) {
        throw_errno(
            error, "restrict an io_uring to registering buffers",
            {{EINVAL, "Config::pin=longterm needs Linux 5.19, or take Config::pin=mlock"},
             {EPERM, "a seccomp filter or a security module forbids it: allow it, or take Config::pin=mlock"},
             {EACCES, "a seccomp filter or a security module forbids it: allow it, or take Config::pin=mlock"}});
    }
}

} // namespace

BufferRing::BufferRing(unsigned buffers) : fd_(make_disabled_ring()), capacity_(buffers) {
    assert(buffers > 0 && buffers <= kMaxBuffers);
    make_buffer_table(fd_.get(), buffers);
    restrict_to_buffers(fd_.get());
}

BufferRing::~BufferRing() {
    if (fd_) {
        // Closing the ring would also unpin, but only later, in a work item of the kernel.
        register_with(fd_.get(), IORING_UNREGISTER_BUFFERS, nullptr, 0);
    }
}

int BufferRing::pin(std::span<std::byte> bytes) noexcept {
    assert(used_ < capacity_ && bytes.size() <= kMaxBufferBytes);
    const iovec buffer{bytes.data(), bytes.size()};
    io_uring_rsrc_update2 update{};
    update.offset = used_;
    update.data = address_of(&buffer);
    update.nr = 1;
    const int error = register_with(fd_.get(), IORING_REGISTER_BUFFERS_UPDATE, &update, sizeof update);
    used_ += error == 0 ? 1 : 0;
    return error;
}

std::string ring_advice(int error_number, std::string_view sysctl_kernel) {
    if (error_number == ENOSYS) {
        return std::string("this kernel has no io_uring, or a seccomp filter hides it: allow it, ") + kOtherwise;
    }
    if (error_number == EINVAL) {
        return std::string("Config::pin=longterm needs Linux 5.19, ") + kOtherwise;
    }
    if (error_number == ENOMEM) { // Before Linux 5.12 the memory of the ring itself counted.
        return std::string("free memory, raise the limit on locked memory with `ulimit -l`, ") + kOtherwise;
    }
    if (error_number != EPERM && error_number != EACCES) {
        return {};
    }
    std::ifstream setting(std::string(sysctl_kernel) + "/io_uring_disabled"); // Linux 6.6
    int disabled = 0;
    if (!(setting >> disabled)) {
        return std::string(
                   "the sysctl kernel.io_uring_disabled, a seccomp filter, as containers have them, or a security "
                   "module forbids it: allow it, ") +
               kOtherwise;
    }
    switch (disabled) {
    case 0:
        return std::string("a seccomp filter, as containers have them, or a security module forbids it: allow it, ") +
               kOtherwise;
    case 1:
        return std::string("the sysctl kernel.io_uring_disabled is 1: join the group kernel.io_uring_group, set it to "
                           "0, ") +
               kOtherwise;
    default:
        return "the sysctl kernel.io_uring_disabled is " + std::to_string(disabled) + ": set it to 0, " + kOtherwise;
    }
}

} // namespace vmm::prefault
