#include "prefault/existing_vm.hpp"

#include <fcntl.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <string>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/uapi.hpp"
#include "kvm/vcpu.hpp"
#include "kvm/vm.hpp"
#include "prefault/host/pin.hpp"
#include "prefault/host/placement.hpp"
#include "prefault/second_level.hpp"
#include "prefault/x86/scratch.hpp"

namespace vmm::prefault {

namespace {

constexpr std::uint64_t kMostAddressBytes = 128 * kTiB;

/// The end of the highest memslot or of the first 2 MiB of the scratch window, whichever is higher. Throws Error if it
/// is above the highest possible address.
std::uint64_t address_bytes(const ExistingVm& vm) {
    std::uint64_t last = 0;
    const auto take = [&last](GuestRange range) {
        const GuestRange all{GuestAddress{0}, kMostAddressBytes};
        if (!all.contains(range)) {
            throw Error("cannot prefault the VM: " + to_string(range.base) + " and " + std::to_string(range.size) +
                        " bytes from there on pass " + format_bytes(kMostAddressBytes));
        }
        last = std::max(last, to_integer(range.end()));
    };
    take({vm.scratch_base, 2 * kMiB});
    for (const MemoryRegion& slot : vm.memslots) {
        take(slot.range);
    }
    return last;
}

Scratch::Layout scratch_layout(const ExistingVm& vm) {
    // The tables have no 1 GiB pages: only the caller knows whether the vCPUs' CPUID has them, and all vCPUs can use 2
    // MiB pages. The scratch window grows with the memory that its tables map, and they must map the window, too.
    std::uint64_t bytes = *align_up(address_bytes(vm), kGiB);
    for (;;) {
        const Scratch::Layout layout{vm.scratch_base, bytes, bytes, false};
        const std::uint64_t end = to_integer(vm.scratch_base) + Scratch::bytes_for(layout);
        if (end <= bytes) {
            return layout;
        }
        if (end > kMostAddressBytes) {
            throw Error("cannot put the prefault's own memslot at " + to_string(vm.scratch_base) + ": it would pass " +
                        format_bytes(kMostAddressBytes));
        }
        bytes = *align_up(end, kGiB);
    }
}

void check_memslots(const ExistingVm& vm) {
    const std::string tried = "cannot prefault the memslots of the VM: ";
    if (vm.memslots.empty()) {
        throw Error(tried + "there are none");
    }
    std::uint64_t last_end = 0;
    for (const MemoryRegion& slot : vm.memslots) {
        const std::uint64_t base = to_integer(slot.range.base);
        const std::string which =
            tried + to_string(slot.range.base) + " and " + std::to_string(slot.range.size) + " bytes from there on ";
        const std::uint64_t page = certain_page_bytes(vm.page_size);
        if (slot.range.size == 0 || !is_aligned(base, page) || !is_aligned(slot.range.size, page)) {
            throw Error(which + "are not whole pages of " + format_bytes(page));
        }
        if (base > kMostAddressBytes || slot.range.size > kMostAddressBytes - base) {
            throw Error(which + "pass " + format_bytes(kMostAddressBytes));
        }
        if (base < last_end) {
            throw Error(which + "do not come after the memslot before it");
        }
        if (slot.host == nullptr) {
            throw Error(which + "have no host memory");
        }
        last_end = to_integer(slot.range.end());
    }
}

void check_scratch(const ExistingVm& vm) {
    const std::string tried = "cannot put the prefault's own memslot at " + to_string(vm.scratch_base) + ": ";
    if (!is_aligned(to_integer(vm.scratch_base), 2 * kMiB)) {
        throw Error(tried + "ExistingVm::scratch_base must be a multiple of 2 MiB");
    }
    if (to_integer(vm.scratch_base) > kMostAddressBytes - 4 * kGiB) {
        throw Error(tried + "ExistingVm::scratch_base is above the highest possible address");
    }
    const GuestRange scratch{vm.scratch_base, scratch_bytes(vm)};
    for (const MemoryRegion& slot : vm.memslots) {
        if (slot.range.overlaps(scratch)) {
            throw Error(tried + "it takes " + to_string(scratch) + ", and a memslot is at " + to_string(slot.range));
        }
    }
}

UniqueFd duplicate(int fd) {
    UniqueFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    if (!copy) {
        throw_errno(errno, "use the VM's descriptor " + std::to_string(fd), {{EBADF, "ExistingVm::vm_fd is not open"}});
    }
    return copy;
}

std::size_t vcpu_mmap_bytes(int kvm_fd) {
    const int size = ::ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (size < 0 || static_cast<std::size_t>(size) < sizeof(kvm_run)) {
        throw_errno(size < 0 ? errno : EINVAL, "ask KVM for the size of a vCPU's shared area",
                    {{EBADF, "ExistingVm::kvm_fd is not open"},
                     {ENOTTY, "ExistingVm::kvm_fd is not /dev/kvm"},
                     {EINVAL, "ExistingVm::kvm_fd is not /dev/kvm"}});
    }
    return static_cast<std::size_t>(size);
}

ExistingVm checked(const ExistingVm& vm, const Options& options) {
    check_memslots(vm);
    check_scratch(vm);
    if (!vm.create_vcpu) {
        throw Error("cannot make prefault vCPUs: ExistingVm::create_vcpu is empty");
    }
    ExistingVm existing = vm;
    existing.pin = resolved(vm.pin, options.scope);
    return existing;
}

/// The memory of a VM that another program made has no known nodes.
Placement placement_of(const ExistingVm& vm) {
    Placement placement;
    for (const MemoryRegion& slot : vm.memslots) {
        placement.ranges.push_back({slot.range, std::nullopt});
    }
    return placement;
}

} // namespace

std::uint64_t scratch_bytes(const ExistingVm& vm) {
    return Scratch::bytes_for(scratch_layout(vm));
}

/// The members are declared in the order in which they depend on each other.
struct Filled::Parts {
    Parts(const ExistingVm& wanted, const Options& options)
        : existing(checked(wanted, options)), memory(existing.memslots, existing.page_size),
          placement(placement_of(existing)), pins(existing.pin),
          vm(duplicate(existing.vm_fd), vcpu_mmap_bytes(existing.kvm_fd)),
          second_level(vm, memory, placement, pins,
                       {.scratch_slot = existing.scratch_slot,
                        .scratch = scratch_layout(existing),
                        .make_vcpu = [this] { return make_vcpu(); },
                        .protect_scratch = true}) {
        check_may_pin(existing.pin, memory.size_bytes());
    }

    kvm::Vcpu make_vcpu() {
        UniqueFd fd(existing.create_vcpu());
        if (!fd) {
            throw Error("cannot make a prefault vCPU: ExistingVm::create_vcpu gave no descriptor");
        }
        return {vm, std::move(fd), vcpus_made++};
    }

    ExistingVm existing;
    GuestMemory memory;
    Placement placement;
    PinnedMemory pins;
    kvm::Vm vm;
    unsigned vcpus_made = 0; ///< for messages, because only the caller knows the vCPUs' ids
    SecondLevel second_level;
    Report report;
};

Filled::Filled(std::unique_ptr<Parts> parts) noexcept : parts_(std::move(parts)) {}
Filled::Filled(Filled&&) noexcept = default;
Filled& Filled::operator=(Filled&&) noexcept = default;
Filled::~Filled() = default;

const Report& Filled::report() const noexcept {
    return parts_->report;
}

const Report& Filled::again(const Options& options, bool guest_runs, const std::stop_token& stop) {
    parts_->second_level.note_guest_runs(guest_runs);
    parts_->report = parts_->second_level.fill(options, stop);
    return parts_->report;
}

GuestAddress Filled::page_tables() const noexcept {
    return parts_->second_level.page_tables();
}

MappedPages Filled::mapped() const {
    return parts_->second_level.mapped();
}

Filled fill(const ExistingVm& vm, const Options& options, const std::stop_token& stop) {
    auto parts = std::make_unique<Filled::Parts>(vm, options);
    parts->report = parts->second_level.fill(options, stop);
    return Filled(std::move(parts));
}

} // namespace vmm::prefault
