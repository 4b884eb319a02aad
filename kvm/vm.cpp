#include "kvm/vm.hpp"

#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <string>

#include "kvm/host/error.hpp"
#include "kvm/host/retry.hpp"
#include "kvm/own_thread.hpp"
#include "kvm/stats_advice.hpp"

namespace vmm::kvm {

namespace {

std::string creation_advice(int error_number) {
    switch (error_number) {
    case EBUSY:
        return "another hypervisor uses the processor's virtualisation";
    case EINTR:
        return "signals interrupt this program all the time: stop whoever sends them, a profiler for example";
    case EAGAIN:
        return own_thread_advice();
    default:
        return {};
    }
}

UniqueFd create_vm(const System& system) {
    // KVM answers EINTR if a signal came while it registered with the memory manager. Then it has created nothing.
    Retries retries;
    int fd = -1;
    do {
        fd = ::ioctl(system.fd(), KVM_CREATE_VM, 0);
    } while (fd < 0 && (errno == EINTR || errno == EAGAIN) && retries.again());
    if (fd < 0) {
        const int error_number = errno;
        throw_errno(error_number, "create a virtual machine", creation_advice(error_number));
    }
    return UniqueFd(fd);
}

} // namespace

Vm::Vm(const System& system) : fd_(create_vm(system)), vcpu_mmap_bytes_(system.vcpu_mmap_bytes()) {}

int Vm::extension(int capability) const noexcept {
    const int answer = ::ioctl(fd_.get(), KVM_CHECK_EXTENSION, capability);
    return answer < 0 ? 0 : answer;
}

namespace {

std::uint32_t in_space(std::uint32_t slot, AddressSpace address_space) {
    constexpr unsigned kAddressSpaceShift = 16; // api.rst, 4.35
    return slot | static_cast<std::uint32_t>(address_space) << kAddressSpaceShift;
}

kvm_userspace_memory_region memslot(std::uint32_t slot, GuestRange range, std::byte* host, AddressSpace address_space) {
    kvm_userspace_memory_region region{};
    region.slot = in_space(slot, address_space);
    region.guest_phys_addr = to_integer(range.base);
    region.memory_size = range.size;
    // The kernel takes the host address as an integer; it checks it against this process's address space.
    region.userspace_addr = reinterpret_cast<std::uintptr_t>(host);
    return region;
}

} // namespace

void Vm::set_memslot(const kvm_userspace_memory_region& region, const char* tried) {
    if (::ioctl(fd_.get(), KVM_SET_USER_MEMORY_REGION, &region) != 0) {
        throw_errno(errno, std::string(tried) + " memslot " + std::to_string(region.slot) + " for guest memory " +
                               to_string(GuestRange{GuestAddress{region.guest_phys_addr}, region.memory_size}));
    }
}

void Vm::add_memslot(std::uint32_t slot, GuestRange range, std::byte* host, AddressSpace address_space,
                     MemslotAccess access) {
    kvm_userspace_memory_region region = memslot(slot, range, host, address_space);
    region.flags = access == MemslotAccess::kReadOnly ? KVM_MEM_READONLY : 0;
    set_memslot(region, "add");
}

void Vm::log_dirty_pages(std::uint32_t slot, GuestRange range, std::byte* host, bool on, AddressSpace address_space) {
    kvm_userspace_memory_region region = memslot(slot, range, host, address_space);
    region.flags = on ? KVM_MEM_LOG_DIRTY_PAGES : 0;
    set_memslot(region, on ? "log the dirty pages of" : "end the dirty log of");
}

std::vector<std::uint64_t> Vm::take_dirty_log(std::uint32_t slot, std::uint64_t bytes,
                                              AddressSpace address_space) const {
    constexpr std::uint64_t kPagesPerWord = 64;
    constexpr std::uint64_t kBytesPerWord = kPagesPerWord * kSmallPageBytes;
    std::vector<std::uint64_t> pages((bytes + kBytesPerWord - 1) / kBytesPerWord);
    kvm_dirty_log log{};
    log.slot = in_space(slot, address_space);
    log.dirty_bitmap = pages.data();
    if (::ioctl(fd_.get(), KVM_GET_DIRTY_LOG, &log) != 0) {
        throw_errno(errno, "read the dirty log of memslot " + std::to_string(slot));
    }
    // KVM holds its lock while it works on a piece, and vCPUs that fault wait for that lock. So the pieces are small.
    constexpr std::size_t kWordsAtOnce = 1024; // 256 MiB
    const std::uint64_t all = bytes / kSmallPageBytes;
    for (std::size_t word = 0; watches_by_piece_ && word < pages.size(); word += kWordsAtOnce) {
        const std::span<const std::uint64_t> piece =
            std::span(pages).subspan(word, std::min(kWordsAtOnce, pages.size() - word));
        if (std::ranges::any_of(piece, [](std::uint64_t bits) { return bits != 0; })) {
            const std::uint64_t first = word * kPagesPerWord;
            watch_pages(slot, first, std::min<std::uint64_t>(piece.size() * kPagesPerWord, all - first), piece,
                        address_space);
        }
    }
    return pages;
}

bool Vm::watch_by_piece(bool on) noexcept {
    kvm_enable_cap cap{};
    cap.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2;
    cap.args[0] = on ? KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET : 0;
    // KVM before 5.7 cannot begin with all pages set. Without that, watching by piece is not worth it.
    const int can = extension(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
    const bool done = (can & KVM_DIRTY_LOG_INITIALLY_SET) != 0 && ::ioctl(fd_.get(), KVM_ENABLE_CAP, &cap) == 0;
    watches_by_piece_ = on && done;
    return watches_by_piece_;
}

void Vm::watch_pages(std::uint32_t slot, std::uint64_t first_page, std::uint64_t count,
                     std::span<const std::uint64_t> pages, AddressSpace address_space) const {
    kvm_clear_dirty_log log{};
    log.slot = in_space(slot, address_space);
    log.num_pages = static_cast<std::uint32_t>(count);
    log.first_page = first_page;
    // KVM only reads the bitmap, but the structure has the same pointer type for all uses.
    log.dirty_bitmap = const_cast<std::uint64_t*>(pages.data());
    if (::ioctl(fd_.get(), KVM_CLEAR_DIRTY_LOG, &log) != 0) {
        throw_errno(errno, "watch the pages of memslot " + std::to_string(slot));
    }
}

void Vm::attach_irqfd(int event_fd, std::uint32_t gsi) {
    kvm_irqfd irqfd{};
    irqfd.fd = static_cast<std::uint32_t>(event_fd);
    irqfd.gsi = gsi;
    if (::ioctl(fd_.get(), KVM_IRQFD, &irqfd) != 0) {
        throw_errno(errno, "attach an event to interrupt line " + std::to_string(gsi));
    }
}

bool Vm::set_interrupt_line(std::uint32_t gsi, bool up) const noexcept {
    kvm_irq_level line{};
    line.irq = gsi;
    line.level = up ? 1 : 0;
    return ::ioctl(fd_.get(), KVM_IRQ_LINE, &line) == 0;
}

void Vm::attach_ioeventfd(int event_fd, GuestAddress address, std::uint32_t value) {
    kvm_ioeventfd doorbell{};
    doorbell.addr = to_integer(address);
    doorbell.len = sizeof(value);
    doorbell.datamatch = value;
    doorbell.fd = event_fd;
    doorbell.flags = KVM_IOEVENTFD_FLAG_DATAMATCH;
    if (::ioctl(fd_.get(), KVM_IOEVENTFD, &doorbell) != 0) {
        throw_errno(errno, "attach an event to writes of " + std::to_string(value) + " at " + to_string(address));
    }
}

namespace {

/// A length of 0 means any length; KVM then ignores the value.
kvm_ioeventfd doorbell_of_any_length(int event_fd, GuestAddress address) noexcept {
    kvm_ioeventfd doorbell{};
    doorbell.addr = to_integer(address);
    doorbell.fd = event_fd;
    return doorbell;
}

} // namespace

void Vm::attach_ioeventfd(int event_fd, GuestAddress address) {
    kvm_ioeventfd doorbell = doorbell_of_any_length(event_fd, address);
    if (::ioctl(fd_.get(), KVM_IOEVENTFD, &doorbell) != 0) {
        throw_errno(errno, "attach an event to writes at " + to_string(address));
    }
}

void Vm::detach_ioeventfd(int event_fd, GuestAddress address) const noexcept {
    kvm_ioeventfd doorbell = doorbell_of_any_length(event_fd, address);
    doorbell.flags = KVM_IOEVENTFD_FLAG_DEASSIGN;
    static_cast<void>(::ioctl(fd_.get(), KVM_IOEVENTFD, &doorbell));
}

void Vm::signal_msi(std::uint64_t address, std::uint32_t data) const noexcept {
    constexpr unsigned kHighShift = 32;
    kvm_msi message{};
    message.address_lo = static_cast<std::uint32_t>(address);
    message.address_hi = static_cast<std::uint32_t>(address >> kHighShift);
    message.data = data;
    // The call returns how many processors took the message. There are none if the guest's message goes nowhere.
    static_cast<void>(::ioctl(fd_.get(), KVM_SIGNAL_MSI, &message));
}

Stats Vm::stats() const {
    UniqueFd fd(::ioctl(fd_.get(), KVM_GET_STATS_FD, nullptr));
    if (!fd) {
        throw_errno(errno, "open KVM's statistics of the VM", kStatsAdvice);
    }
    return Stats(std::move(fd));
}

} // namespace vmm::kvm
