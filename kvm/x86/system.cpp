// The members of System that only an x86 host has: CPUID and machine checks.
#include "kvm/system.hpp"

#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "kvm/ask_advice.hpp"
#include "kvm/host/error.hpp"

namespace vmm::kvm {

std::vector<kvm_cpuid_entry2> System::supported_cpuid() const {
    // The kernel answers E2BIG until there is enough room. Its own limit is 256 entries (KVM_MAX_CPUID_ENTRIES).
    for (std::uint32_t room = 128; room <= 4096; room *= 2) {
        std::vector<std::byte> raw(sizeof(kvm_cpuid2) + room * sizeof(kvm_cpuid_entry2));
        std::memcpy(raw.data(), &room, sizeof room); // kvm_cpuid2::nent is the first member.
        if (::ioctl(fd_.get(), KVM_GET_SUPPORTED_CPUID, raw.data()) == 0) {
            std::uint32_t count = 0;
            std::memcpy(&count, raw.data(), sizeof count);
            std::vector<kvm_cpuid_entry2> entries(count);
            std::memcpy(entries.data(), raw.data() + sizeof(kvm_cpuid2), count * sizeof(kvm_cpuid_entry2));
            return entries;
        }
        if (errno != E2BIG) {
            throw_errno(errno, "ask KVM which CPUID it supports", kAskAdvice);
        }
    }
    throw Error("cannot ask KVM which CPUID it supports: it has more than 4096 entries");
}

std::uint64_t System::machine_check_capabilities() const noexcept {
    constexpr std::uint64_t kBankCount = 0xff;
    std::uint64_t capabilities = 0;
    const int banks = extension(KVM_CAP_MCE);
    if (banks <= 0 || ::ioctl(fd_.get(), KVM_X86_GET_MCE_CAP_SUPPORTED, &capabilities) != 0) {
        return 0;
    }
    return (capabilities & ~kBankCount) | std::min(static_cast<std::uint64_t>(banks), kBankCount);
}

} // namespace vmm::kvm
