#include "vmm/sandbox/filters/filter_builder.hpp"

#include <seccomp.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <new>

#include "kvm/host/error.hpp"
#include "kvm/host/retry.hpp"
#include "kvm/host/unique_fd.hpp"

namespace vmm {

namespace {

constexpr const char* kTriedToFilter = "compile a filter of system calls";
constexpr std::uint64_t kLowerHalf = 0xffffffff; // of an argument; the kernel ignores the upper half of these

/// libseccomp returns errors as negative numbers.
void check(int result) {
    if (result < 0) {
        throw_errno(-result, kTriedToFilter);
    }
}

std::uint32_t default_action(Refusal refusal, FilterBuilder::Otherwise otherwise) {
    if (refusal == Refusal::kLog) {
        return SCMP_ACT_LOG;
    }
    return otherwise == FilterBuilder::Otherwise::kEperm ? SCMP_ACT_ERRNO(EPERM) : SCMP_ACT_TRAP;
}

} // namespace

FilterBuilder::FilterBuilder(Refusal refusal, Otherwise otherwise)
    : refusal_(refusal == Refusal::kSignal ? SCMP_ACT_TRAP : SCMP_ACT_LOG),
      context_(::seccomp_init(default_action(refusal, otherwise))) {
    if (!context_) {
        throw std::bad_alloc();
    }
    constexpr std::uint32_t kBinaryTree = 2;
    check(::seccomp_attr_set(context_.get(), SCMP_FLTATR_CTL_OPTIMIZE, kBinaryTree));
    // Another architecture has other numbers of calls.
    check(::seccomp_attr_set(context_.get(), SCMP_FLTATR_ACT_BADARCH,
                             refusal == Refusal::kSignal ? SCMP_ACT_KILL_PROCESS : SCMP_ACT_LOG));
}

void FilterBuilder::Release::operator()(void* context) const noexcept {
    ::seccomp_release(context);
}

void FilterBuilder::allow(std::initializer_list<int> calls) {
    for (const int call : calls) {
        check(::seccomp_rule_add_array(context_.get(), SCMP_ACT_ALLOW, call, 0, nullptr));
    }
}

void FilterBuilder::allow_if(int call, unsigned argument, std::uint64_t mask, std::uint64_t value) {
    const scmp_arg_cmp comparison{argument, SCMP_CMP_MASKED_EQ, mask, value};
    check(::seccomp_rule_add_array(context_.get(), SCMP_ACT_ALLOW, call, 1, &comparison));
}

void FilterBuilder::answer(int call, unsigned error_number) {
    check(::seccomp_rule_add_array(context_.get(), SCMP_ACT_ERRNO(error_number), call, 0, nullptr));
}

void FilterBuilder::refuse(std::initializer_list<int> calls) {
    for (const int call : calls) {
        if (refusal_ != SCMP_ACT_LOG) { // otherwise it is the default action
            check(::seccomp_rule_add_array(context_.get(), refusal_, call, 0, nullptr));
        }
    }
}

void FilterBuilder::refuse_if(int call, unsigned argument, std::uint64_t mask, std::uint64_t value) {
    if (refusal_ != SCMP_ACT_LOG) {
        const scmp_arg_cmp comparison{argument, SCMP_CMP_MASKED_EQ, mask, value};
        check(::seccomp_rule_add_array(context_.get(), refusal_, call, 1, &comparison));
    }
}

void FilterBuilder::allow_ioctls(std::span<const unsigned long> requests) {
    for (const unsigned long request : requests) {
        allow_if(SCMP_SYS(ioctl), 1, kLowerHalf, request & kLowerHalf);
    }
}

std::vector<sock_filter> FilterBuilder::take() {
    const UniqueFd file(::memfd_create("vmm-filter", MFD_CLOEXEC));
    if (!file) {
        throw_errno(errno, kTriedToFilter);
    }
    check(::seccomp_export_bpf(context_.get(), file.get()));
    const off_t bytes = ::lseek(file.get(), 0, SEEK_END);
    if (bytes < 0) {
        throw_errno(errno, kTriedToFilter);
    }
    std::vector<sock_filter> program(static_cast<std::size_t>(bytes) / sizeof(sock_filter));
    const std::span<std::byte> to = std::as_writable_bytes(std::span(program));
    const ssize_t count = uninterrupted([&] { return ::pread(file.get(), to.data(), to.size(), 0); });
    if (count != static_cast<ssize_t>(to.size())) {
        throw_errno(count < 0 ? errno : EIO, kTriedToFilter);
    }
    return program;
}

} // namespace vmm
