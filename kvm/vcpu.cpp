#include "kvm/vcpu.hpp"

#include <sys/ioctl.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <new>
#include <utility>
#include <variant>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/retry.hpp"
#include "kvm/kick.hpp"
#include "kvm/kick_signal.hpp"
#include "kvm/own_thread.hpp"
#include "kvm/stats_advice.hpp"

namespace vmm::kvm {

namespace {

constexpr std::chrono::milliseconds kLongPause{10};
/// The offset of the guest-physical address of KVM_EXIT_MEMORY_FAULT in kvm_run's union (api.rst, 5): after the flags.
constexpr std::size_t kMemoryFaultAddress = 8;

UniqueFd create_vcpu(const Vm& vm, unsigned id) {
    Retries retries;
    int fd = -1;
    do {
        fd = ::ioctl(vm.fd(), KVM_CREATE_VCPU, id);
    } while (fd < 0 && (errno == EINTR || errno == EAGAIN) && retries.again());
    if (fd < 0) {
        const int error_number = errno;
        throw_errno(error_number, "create vCPU " + std::to_string(id),
                    error_number == EAGAIN ? own_thread_advice() : "");
    }
    return UniqueFd(fd);
}

/// Blocks every signal inside KVM_RUN but the kick and SIGBUS. KVM reports a broken page of the guest by SIGBUS; with
/// SIGBUS blocked, the vCPU would run into that page for ever.
void set_signal_mask_inside_run(int fd) {
    constexpr std::uint32_t kKernelSigsetBytes = 8; // the kernel's own type, shorter than the C library's sigset_t
    struct {
        std::uint32_t length;
        std::array<std::uint8_t, kKernelSigsetBytes> mask;
    } request{};
    static_assert(sizeof request == sizeof(kvm_signal_mask) + kKernelSigsetBytes);
    const std::uint64_t all_but_these = ~(1ULL << (kick_signal() - 1) | 1ULL << (SIGBUS - 1));
    request.length = kKernelSigsetBytes;
    std::memcpy(request.mask.data(), &all_but_these, kKernelSigsetBytes);
    if (::ioctl(fd, KVM_SET_SIGNAL_MASK, &request) != 0) {
        throw_errno(errno, "set the signal mask of a vCPU");
    }
}

} // namespace

Vcpu::Vcpu(const Vm& vm, unsigned id) : Vcpu(vm, create_vcpu(vm, id), id) {}

Vcpu::Vcpu(const Vm& vm, UniqueFd vcpu, unsigned id)
    : id_(id), fd_(std::move(vcpu)),
      shared_(Mapping::shared_file(fd_.get(), vm.vcpu_mmap_bytes(), "the shared area of vCPU " + std::to_string(id))),
      run_(std::launder(reinterpret_cast<kvm_run*>(shared_.data()))), xsave_bytes_(vm.extension(KVM_CAP_XSAVE2)),
      nested_bytes_(vm.extension(KVM_CAP_NESTED_STATE)) {
    set_signal_mask_inside_run(fd_.get());
}

std::string Vcpu::name() const {
    return "vCPU " + std::to_string(id_);
}

Exit Vcpu::run() {
    for (;;) {
        if (::ioctl(fd_.get(), KVM_RUN, 0) == 0) {
            retries_.forget();
            return decode_exit();
        }
        switch (errno) {
        case EINTR:
            retries_.forget();
            discard_pending_kicks();
            return KickedExit{};
        case EAGAIN: {
            // There are two cases of EAGAIN. An application processor got an INIT or a start-up interrupt, and may run
            // afterwards. Or KVM cannot start its own thread; then any vCPU gets EAGAIN, and KVM looks at no signal.
            auto pause = retries_.next();
            if (!pause && waits_for_startup()) {
                // The guest may send such interrupts without end, so this vCPU waits without a limit. If KVM could not
                // start its thread, the vCPUs that are ready to run would report it.
                retries_.forget();
                pause = kLongPause;
            }
            if (!pause) {
                throw_errno(EAGAIN, "run " + name(), own_thread_advice());
            }
            if (was_kicked_within(*pause)) {
                return KickedExit{};
            }
            continue;
        }
        case EFAULT:
            if (run_->exit_reason == KVM_EXIT_MEMORY_FAULT) {
                return decode_exit();
            }
            throw_errno(EFAULT, "run " + name(),
                        "the host has no memory for a page of the guest: free memory, or enough huge pages");
        case EHWPOISON:
            throw_errno(EHWPOISON, "run " + name(), broken_page_advice());
        case ENOMEM: // Linux 6.13 answers this, too, if KVM cannot start its thread.
            throw_errno(ENOMEM, "run " + name(),
                        "free memory of the host, or of the memory cgroup; or " + own_thread_advice());
        default:
            throw_errno(errno, "run " + name());
        }
    }
}

std::optional<Exit> Vcpu::finish_exit() {
    // KVM first finishes the access, and then looks at the flag before it enters the guest (api.rst, 5,
    // immediate_exit).
    run_->immediate_exit = 1;
    struct Reset {
        ~Reset() { run->immediate_exit = 0; }
        kvm_run* run;
    };
    const Reset reset{run_};
    Exit exit = run();
    return std::holds_alternative<KickedExit>(exit) ? std::nullopt : std::optional(std::move(exit));
}

bool Vcpu::waits_for_startup() const noexcept {
    const auto state = mp_state();
    return state == KVM_MP_STATE_UNINITIALIZED;
}

std::optional<std::uint32_t> Vcpu::mp_state() const noexcept {
    kvm_mp_state state{};
    return ::ioctl(fd_.get(), KVM_GET_MP_STATE, &state) == 0 ? std::optional(state.mp_state) : std::nullopt;
}

std::string Vcpu::broken_page_advice() const {
    std::string where = "a page of the guest's memory";
    if (run_->exit_reason == KVM_EXIT_MEMORY_FAULT) {
        std::uint64_t address = 0;
        std::memcpy(&address, &run_->padding[kMemoryFaultAddress], sizeof address);
        where += ", the one at " + to_string(GuestAddress{address}) + ",";
    }
    return where + " lies in host memory that is broken: start the guest again, and look into the host's kernel log";
}

Exit Vcpu::decode_exit() {
    // The guest cannot write this area. The kernel writes it, and only inside KVM_RUN.
    switch (run_->exit_reason) {
    case KVM_EXIT_IO: {
        const auto& io = run_->io;
        const std::size_t size = std::size_t{io.size} * io.count;
        const bool sane = io.data_offset <= shared_.size() && size <= shared_.size() - io.data_offset;
        if (!sane) {
            return FaultExit{"KVM reported port data outside of the shared area"};
        }
        return PioExit{io.port, io.size, io.direction == KVM_EXIT_IO_OUT,
                       shared_.bytes().subspan(io.data_offset, size)};
    }
    case KVM_EXIT_MMIO: {
        auto& mmio = run_->mmio;
        const std::size_t size = std::min<std::size_t>(mmio.len, sizeof mmio.data);
        return MmioExit{mmio.phys_addr, mmio.is_write != 0, std::as_writable_bytes(std::span(mmio.data).first(size))};
    }
    case KVM_EXIT_HLT:
        return HaltExit{};
    case KVM_EXIT_SHUTDOWN:
        return ShutdownExit{};
    case KVM_EXIT_INTR:
        discard_pending_kicks();
        return KickedExit{};
    case KVM_EXIT_FAIL_ENTRY:
        return FaultExit{vmm::format("the processor refused to enter the guest: hardware reason {:#x}",
                                     run_->fail_entry.hardware_entry_failure_reason)};
    case KVM_EXIT_INTERNAL_ERROR: {
        const auto& internal = run_->internal;
        std::string what = vmm::format("KVM internal error {}", internal.suberror);
        if (internal.suberror == KVM_INTERNAL_ERROR_EMULATION) {
            what += " (it could not emulate an instruction)";
        }
        for (std::size_t i = 0; i < std::min<std::size_t>(internal.ndata, std::size(internal.data)); ++i) {
            what += vmm::format(" {:#x}", internal.data[i]);
        }
        return FaultExit{what};
    }
    case KVM_EXIT_MEMORY_FAULT:
        return FaultExit{"the guest used memory in a way its memslot does not allow"};
    default:
        return FaultExit{vmm::format("unexpected exit reason {}", run_->exit_reason)};
    }
}

void Vcpu::set_mp_state(MpState state) {
    kvm_mp_state request{};
    request.mp_state = static_cast<std::uint32_t>(state);
    if (::ioctl(fd_.get(), KVM_SET_MP_STATE, &request) != 0) {
        throw_errno(errno, "start or park " + name());
    }
}

Vcpu::PreFaulted Vcpu::pre_fault(GuestRange range, const std::stop_token& stop) {
    kvm_pre_fault_memory request{};
    request.gpa = to_integer(range.base);
    request.size = range.size;
    Retries retries;
    // The kernel advances gpa and size past what it has mapped, even if the call fails.
    while (request.size != 0) {
        const std::uint64_t before = request.size;
        const bool failed = ::ioctl(fd_.get(), KVM_PRE_FAULT_MEMORY, &request) != 0;
        const int error_number = failed ? errno : EAGAIN;
        if (request.size < before) {
            retries.forget();
        }
        if ((error_number != EINTR && error_number != EAGAIN) || (request.size == before && !retries.again(stop))) {
            return {range.size - request.size, error_number};
        }
    }
    return {range.size};
}

Stats Vcpu::stats() const {
    UniqueFd fd(::ioctl(fd_.get(), KVM_GET_STATS_FD, nullptr));
    if (!fd) {
        throw_errno(errno, "open KVM's statistics of " + name(), kStatsAdvice);
    }
    return Stats(std::move(fd));
}

} // namespace vmm::kvm
