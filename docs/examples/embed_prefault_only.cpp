// A VMM of our own, without devices, whose second level is filled by vmm::prefault::fill().
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <array>
#include <cstring>
#include <iostream>

#include <vmm/error.hpp>
#include <vmm/prefault.hpp>

#include "kvm_uapi.h"

int main() {
    constexpr std::size_t kBytes = 64 << 20;
    const vmm::UniqueFd kvm(open("/dev/kvm", O_RDWR | O_CLOEXEC));
    const vmm::UniqueFd vm(ioctl(kvm.get(), KVM_CREATE_VM, 0));
    // Host and guest address are congruent modulo 2 MiB: otherwise KVM maps no large page.
    void* const room = mmap(nullptr, kBytes + (2 << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    auto* const ram = reinterpret_cast<std::byte*>((reinterpret_cast<std::uintptr_t>(room) + 0x1fffff) & ~0x1fffffUL);
    kvm_userspace_memory_region slot{0, 0, 0, kBytes, reinterpret_cast<std::uintptr_t>(ram)};
    ioctl(vm.get(), KVM_SET_USER_MEMORY_REGION, &slot);
    ioctl(vm.get(), KVM_CREATE_IRQCHIP, 0);

    alignas(8) std::array<std::byte, 8 + 256 * sizeof(kvm_cpuid_entry2)> cpuid{};
    cpuid[1] = std::byte{1}; // room for 256 entries
    ioctl(kvm.get(), KVM_GET_SUPPORTED_CPUID, cpuid.data());
    unsigned next_id = 0;
    const auto create_vcpu = [&] {
        const int vcpu = ioctl(vm.get(), KVM_CREATE_VCPU, next_id++);
        ioctl(vcpu, KVM_SET_CPUID2, cpuid.data());
        return vcpu;
    };
    const vmm::UniqueFd vcpu(create_vcpu()); // ours, with id 0: the prefault's come above

    try {
        vmm::prefault::ExistingVm existing;
        existing.kvm_fd = kvm.get();
        existing.vm_fd = vm.get();
        existing.memslots = {{{vmm::GuestAddress{0}, kBytes}, ram}};
        existing.scratch_slot = 1;
        existing.scratch_base = vmm::GuestAddress{0xe0000000};
        existing.create_vcpu = create_vcpu;
        const vmm::prefault::Filled filled = fill(existing, {.workers = 2});

        // Our guest, in ring 3 on the prefault's page tables: writes to every 4 KiB, then to a port.
        const unsigned char code[] = {0x48, 0x83, 0x0f, 0x00, 0x48, 0x81, 0xc7, 0x00, 0x10,
                                      0x00, 0x00, 0x48, 0x39, 0xf7, 0x72, 0xf0, 0xe6, 0x80};
        std::memcpy(ram + 0x1000, code, sizeof code);
        kvm_sregs special{};
        ioctl(vcpu.get(), KVM_GET_SREGS, &special);
        special.cs = {0, 0xffffffff, 0x33, 0xb, 1, 3, 0, 1, 1, 1, 0, 0, 0};
        special.ds = special.es = special.ss = {0, 0xffffffff, 0x2b, 0x3, 1, 3, 1, 1, 0, 1, 0, 0, 0};
        special.tr = {0x2000, 0x67 + 0x12, 0, 0xb, 1, 0, 0, 0, 0, 0, 0, 0, 0};
        const std::uint16_t io_bitmap = 0x68; // of the task state: zeros, which permit each port
        std::memcpy(ram + 0x2000 + 102, &io_bitmap, sizeof io_bitmap);
        special.cr0 = 0x80010033, special.cr4 = 0x20, special.efer = 0x500;
        special.cr3 = to_integer(filled.page_tables());
        ioctl(vcpu.get(), KVM_SET_SREGS, &special);
        kvm_regs registers{};
        registers.rip = 0x1000, registers.rflags = 0x3002, registers.rdi = 0, registers.rsi = kBytes;
        ioctl(vcpu.get(), KVM_SET_REGS, &registers);

        const vmm::kvm::Stats stats(vmm::UniqueFd(ioctl(vcpu.get(), KVM_GET_STATS_FD, nullptr)));
        const int run = ioctl(vcpu.get(), KVM_RUN, 0);
        ioctl(vcpu.get(), KVM_GET_REGS, &registers);
        std::cout << "prefault " << (filled.report().complete ? "complete" : filled.report().problem) << ", touched "
                  << (run == 0 ? registers.rdi >> 20 : 0) << " MiB, faults " << stats.value("pf_fixed").value_or(~0ULL)
                  << '\n';
        return registers.rdi == kBytes && filled.report().complete ? 0 : 1;
    } catch (const vmm::Error& error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
}
