#include "kvm/x86/saved_vcpu.hpp"

#include <sys/ioctl.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <span>

#include "kvm/ask_advice.hpp"
#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"

namespace vmm::kvm {

namespace {

constexpr std::uint32_t kTsc = 0x10;
constexpr std::uint32_t kTscAdjust = 0x3b;
constexpr std::uint32_t kMachineCheckCapabilities = 0x179; // IA32_MCG_CAP
constexpr std::uint32_t kTscDeadline = 0x6e0;
/// The range of indexes that KVM uses for its own registers (Documentation/virt/kvm/x86/msr.rst).
constexpr std::uint32_t kFirstOfKvm = 0x4b564d00;
constexpr std::uint32_t kLastOfKvm = 0x4b564dff;
constexpr std::size_t kMostXsaveBytes = 64 * 1024;
constexpr std::size_t kMostNestedBytes = 64 * 1024;

std::string name_of_vcpu(const Vcpu& vcpu) {
    return "vCPU " + std::to_string(vcpu.id());
}

/// Fills `value`, a structure of fixed size, by an ioctl.
template <typename Value>
void read(const Vcpu& vcpu, unsigned long request, Value& value, std::string_view what) {
    if (::ioctl(vcpu.fd(), request, &value) != 0) {
        const int error_number = errno;
        throw_errno(error_number, vmm::format("save the {} of {}", what, name_of_vcpu(vcpu)));
    }
}

template <typename Value>
void write(const Vcpu& vcpu, unsigned long request, const Value& value, std::string_view what) {
    Value copy = value;
    if (::ioctl(vcpu.fd(), request, &copy) != 0) {
        const int error_number = errno;
        throw_errno(error_number, vmm::format("restore the {} of {}", what, name_of_vcpu(vcpu)));
    }
}

/// kvm_sregs and kvm_sregs2 are alike up to this offset.
constexpr std::size_t kCommonSpecialBytes = offsetof(kvm_sregs, interrupt_bitmap);
static_assert(kCommonSpecialBytes == offsetof(kvm_sregs2, flags));

kvm_sregs2 save_special(const Vcpu& vcpu) {
    kvm_sregs2 special{};
    if (::ioctl(vcpu.fd(), KVM_GET_SREGS2, &special) == 0) {
        return special;
    }
    const kvm_sregs old = vcpu.special_registers();
    std::memcpy(&special, &old, kCommonSpecialBytes);
    return special;
}

void restore_special(Vcpu& vcpu, const kvm_sregs2& special) {
    kvm_sregs2 copy = special;
    if (::ioctl(vcpu.fd(), KVM_SET_SREGS2, &copy) == 0) {
        return;
    }
    if (errno != ENOTTY) {
        const int error_number = errno;
        throw_errno(error_number, "restore the special registers of " + name_of_vcpu(vcpu));
    }
    kvm_sregs old{};
    std::memcpy(&old, &special, kCommonSpecialBytes);
    vcpu.set_special_registers(old);
}

std::vector<std::byte> save_xsave(const Vcpu& vcpu) {
    const bool is_old = vcpu.xsave_bytes() == 0;
    std::vector<std::byte> xsave(is_old ? sizeof(kvm_xsave) : vcpu.xsave_bytes());
    if (::ioctl(vcpu.fd(), is_old ? KVM_GET_XSAVE : KVM_GET_XSAVE2, xsave.data()) != 0) {
        const int error_number = errno;
        throw_errno(error_number, "save the floating-point state of " + name_of_vcpu(vcpu));
    }
    return xsave;
}

void restore_xsave(const Vcpu& vcpu, const std::vector<std::byte>& saved) {
    if (saved.size() < sizeof(kvm_xsave) || saved.size() > kMostXsaveBytes) {
        throw Error(
            vmm::format("cannot restore the floating-point state of {}: it has {} bytes, and has to have {} to {} "
                        "(take a snapshot that is whole)",
                        name_of_vcpu(vcpu), saved.size(), sizeof(kvm_xsave), kMostXsaveBytes));
    }
    // KVM reads as many bytes as its guests may need. If this host's KVM reads more than the other one saved, the rest
    // is zero.
    std::vector<std::byte> xsave = saved;
    xsave.resize(std::max(saved.size(), vcpu.xsave_bytes()));
    if (::ioctl(vcpu.fd(), KVM_SET_XSAVE, xsave.data()) != 0) {
        const int error_number = errno;
        throw_errno(error_number, "restore the floating-point state of " + name_of_vcpu(vcpu),
                    "this host's processor lacks a feature that the guest uses: take a host that has it");
    }
}

/// Each call reads as many registers as KVM takes. KVM stops at the first register that it refuses; that one is left
/// out.
std::vector<Msr> save_msrs(const Vcpu& vcpu, const std::vector<std::uint32_t>& indexes) {
    std::vector<Msr> saved;
    std::vector<std::byte> raw;
    for (std::size_t first = 0; first < indexes.size();) {
        constexpr std::size_t kMostAtOnce = 128; // KVM takes fewer than 256 (MAX_IO_MSRS).
        const auto count = static_cast<std::uint32_t>(std::min(indexes.size() - first, kMostAtOnce));
        std::vector<kvm_msr_entry> entries(count);
        for (std::uint32_t i = 0; i < count; ++i) {
            entries[i].index = indexes[first + i];
        }
        raw.assign(sizeof(kvm_msrs) + count * sizeof(kvm_msr_entry), std::byte{0});
        std::memcpy(raw.data(), &count, sizeof count); // kvm_msrs::nmsrs is the first member.
        std::memcpy(raw.data() + sizeof(kvm_msrs), entries.data(), count * sizeof(kvm_msr_entry));
        const int done = ::ioctl(vcpu.fd(), KVM_GET_MSRS, raw.data());
        if (done < 0) {
            const int error_number = errno;
            throw_errno(error_number, "save the model-specific registers of " + name_of_vcpu(vcpu));
        }
        std::memcpy(entries.data(), raw.data() + sizeof(kvm_msrs), count * sizeof(kvm_msr_entry));
        for (std::size_t i = 0; i < std::min<std::size_t>(static_cast<std::size_t>(done), count); ++i) {
            saved.push_back({entries[i].index, entries[i].data});
        }
        first += static_cast<std::size_t>(done) + (static_cast<std::uint32_t>(done) < count ? 1 : 0);
    }
    return saved;
}

std::vector<std::byte> save_nested(const Vcpu& vcpu) {
    if (vcpu.nested_bytes() == 0) {
        return {};
    }
    std::vector<std::byte> raw(std::max(vcpu.nested_bytes(), sizeof(kvm_nested_state)));
    kvm_nested_state head{};
    head.size = static_cast<std::uint32_t>(raw.size());
    std::memcpy(raw.data(), &head, sizeof head);
    if (::ioctl(vcpu.fd(), KVM_GET_NESTED_STATE, raw.data()) != 0) {
        const int error_number = errno;
        throw_errno(error_number, "save what " + name_of_vcpu(vcpu) + " keeps of guests of its own");
    }
    std::memcpy(&head, raw.data(), sizeof head);
    raw.resize(std::clamp<std::size_t>(head.size, sizeof head, raw.size()));
    return raw;
}

void restore_nested(const Vcpu& vcpu, const std::vector<std::byte>& nested) {
    if (nested.empty()) {
        return;
    }
    kvm_nested_state head{};
    if (nested.size() < sizeof head || nested.size() > kMostNestedBytes) {
        throw Error(
            vmm::format("cannot restore what {} keeps of guests of its own: it has {} bytes (take a snapshot that "
                        "is whole)",
                        name_of_vcpu(vcpu), nested.size()));
    }
    std::vector<std::byte> raw = nested;
    std::memcpy(&head, raw.data(), sizeof head);
    head.size = static_cast<std::uint32_t>(raw.size()); // KVM reads this number of bytes: never more than there are.
    std::memcpy(raw.data(), &head, sizeof head);
    // An AMD processor that has never switched on virtualisation takes interrupts (the global interrupt flag is set).
    const bool has_none = (head.flags & ~KVM_STATE_NESTED_GIF_SET) == 0 && nested.size() == sizeof head;
    if (vcpu.nested_bytes() == 0) {
        if (has_none) {
            return; // The guest has no guests of its own.
        }
        throw Error("cannot restore what " + name_of_vcpu(vcpu) +
                    " keeps of guests of its own: this host's KVM has no nested virtualisation (load kvm_intel or "
                    "kvm_amd with nested=1)");
    }
    if (::ioctl(vcpu.fd(), KVM_SET_NESTED_STATE, raw.data()) != 0) {
        const int error_number = errno;
        // A vCPU that has never switched on virtualisation has no nested state to restore.
        if (has_none) {
            return;
        }
        throw_errno(error_number, "restore what " + name_of_vcpu(vcpu) + " keeps of guests of its own");
    }
}

std::optional<std::int64_t> tsc_offset(const Vcpu& vcpu) {
    std::int64_t offset = 0;
    kvm_device_attr attribute{};
    attribute.group = KVM_VCPU_TSC_CTRL;
    attribute.attr = KVM_VCPU_TSC_OFFSET;
    attribute.addr = reinterpret_cast<std::uintptr_t>(&offset);
    return ::ioctl(vcpu.fd(), KVM_GET_DEVICE_ATTR, &attribute) == 0 ? std::optional(offset) : std::nullopt;
}

/// Returns false if KVM cannot set the offset. The counter then stays as the MSR says.
bool set_tsc_offset(const Vcpu& vcpu, std::int64_t offset) {
    kvm_device_attr attribute{};
    attribute.group = KVM_VCPU_TSC_CTRL;
    attribute.attr = KVM_VCPU_TSC_OFFSET;
    attribute.addr = reinterpret_cast<std::uintptr_t>(&offset);
    return ::ioctl(vcpu.fd(), KVM_SET_DEVICE_ATTR, &attribute) == 0;
}

std::optional<std::uint64_t> value_of(const VcpuState& state, std::uint32_t index) {
    const auto found = std::ranges::find(state.msrs, index, &Msr::index);
    return found == state.msrs.end() ? std::nullopt : std::optional(found->value);
}

/// Sets one register. It also counts as set if KVM refuses it but it has that value already.
bool set_msr(Vcpu& vcpu, const Msr& msr) {
    return vcpu.set_msr(msr.index, msr.value) || vcpu.msr(msr.index) == std::optional(msr.value);
}

/// True for registers that a guest mostly reads and that a host may refuse: logged machine checks, debug controls,
/// counters, and the version of the microcode. The guest would miss the other registers if they were refused.
bool is_for_looking_only(std::uint32_t index) {
    constexpr std::array kSingle{
        0x8bU, 0xceU, 0x140U, 0x17aU, 0x17bU, 0x1d9U, 0x1dbU, 0x1dcU, 0x1ddU, 0x1deU, 0x1fcU, 0x34U, 0x345U,
    };
    const bool is_machine_check = index >= 0x400 && index < 0x480;
    const bool is_counter = (index >= 0xc1 && index < 0xc9) || (index >= 0x186 && index < 0x18e) ||
                            (index >= 0x309 && index < 0x30c) || (index >= 0x38d && index < 0x392) ||
                            (index >= 0x4c1 && index < 0x4c9) || (index >= 0xc0010000 && index < 0xc0010008) ||
                            (index >= 0xc0010200 && index < 0xc001020c);
    // Registers that describe features are the host's. A guest looks at its CPUID instead.
    const bool tells_of_features = index == 0x10a || index == 0xcf || (index >= 0x480 && index < 0x492);
    return std::ranges::find(kSingle, index) != kSingle.end() || is_machine_check || is_counter || tells_of_features;
}

/// True if no guest misses `msr` when KVM refuses it. There are two kinds. One is the base of system management mode's
/// memory with its value after a reset (Intel SDM volume 3, 32.11): a KVM that refuses it does not have that mode. The
/// others are the registers of Hyper-V, because no guest is told of Hyper-V here.
bool is_missed_by_nobody(const Msr& msr) {
    constexpr Msr kSystemManagementBase{0x9e, 0x30000};
    const bool is_of_hyper_v = msr.index >= 0x40000000 && msr.index < 0x40000200;
    return msr == kSystemManagementBase || is_of_hyper_v;
}

} // namespace

std::vector<kvm_cpuid_entry2> cpuid_of(const Vcpu& vcpu) {
    constexpr std::uint32_t kMostEntries = 256; // KVM_MAX_CPUID_ENTRIES
    std::vector<std::byte> raw(sizeof(kvm_cpuid2) + kMostEntries * sizeof(kvm_cpuid_entry2));
    std::memcpy(raw.data(), &kMostEntries, sizeof kMostEntries); // kvm_cpuid2::nent is the first member.
    if (::ioctl(vcpu.fd(), KVM_GET_CPUID2, raw.data()) != 0) {
        const int error_number = errno;
        throw_errno(error_number, "ask for the CPUID of " + name_of_vcpu(vcpu));
    }
    std::uint32_t count = 0;
    std::memcpy(&count, raw.data(), sizeof count);
    std::vector<kvm_cpuid_entry2> entries(std::min(count, kMostEntries));
    std::memcpy(entries.data(), raw.data() + sizeof(kvm_cpuid2), entries.size() * sizeof(kvm_cpuid_entry2));
    return entries;
}

std::vector<std::uint32_t> saved_msr_indexes(const System& system) {
    std::uint32_t count = 0;
    std::vector<std::byte> raw(sizeof(kvm_msr_list));
    // If there is no room for an index, KVM answers E2BIG and says how many there are.
    if (::ioctl(system.fd(), KVM_GET_MSR_INDEX_LIST, raw.data()) != 0 && errno != E2BIG) {
        const int error_number = errno;
        throw_errno(error_number, "ask KVM which model-specific registers it has", kAskAdvice);
    }
    std::memcpy(&count, raw.data(), sizeof count);
    constexpr std::uint32_t kMost = 4096;
    count = std::min(count, kMost);
    raw.resize(sizeof(kvm_msr_list) + count * sizeof(std::uint32_t));
    std::memcpy(raw.data(), &count, sizeof count);
    if (::ioctl(system.fd(), KVM_GET_MSR_INDEX_LIST, raw.data()) != 0) {
        const int error_number = errno;
        throw_errno(error_number, "ask KVM which model-specific registers it has", kAskAdvice);
    }
    std::vector<std::uint32_t> indexes(count);
    std::memcpy(indexes.data(), raw.data() + sizeof(kvm_msr_list), count * sizeof(std::uint32_t));

    const auto add_range = [&indexes](std::uint32_t first, std::uint32_t last) {
        for (std::uint32_t index = first; index <= last; ++index) {
            indexes.push_back(index);
        }
    };
    add_range(0x200, 0x20f); // the variable memory types
    add_range(0x250, 0x250);
    add_range(0x258, 0x259);
    add_range(0x268, 0x26f);
    add_range(0x2ff, 0x2ff); // the default type comes after the ranges, because it switches them on
    add_range(kMachineCheckCapabilities, kMachineCheckCapabilities);
    add_range(0x400, 0x47f); // the banks of machine checks
    add_range(0x277, 0x277); // PAT
    add_range(0x48, 0x48);   // SPEC_CTRL
    add_range(0xda0, 0xda0); // XSS
    add_range(0x6a0, 0x6a2); // CET
    add_range(0x6a4, 0x6a8);
    add_range(0xc0000103, 0xc0000103); // TSC_AUX
    add_range(kTscAdjust, kTscAdjust);
    add_range(kTscDeadline, kTscDeadline);
    // The wall clock (00, 01) is among them. A guest writes it only to ask for the time of its boot, and KVM then
    // writes guest memory.
    add_range(kFirstOfKvm, kFirstOfKvm + 8);
    add_range(kLastOfKvm - 0x3f, kLastOfKvm); // of a KVM without hardware support (PVM)
    std::ranges::sort(indexes);
    const auto repeated = std::ranges::unique(indexes);
    indexes.erase(repeated.begin(), repeated.end());
    std::erase(indexes, kTsc);
    indexes.push_back(kTsc);
    return indexes;
}

VcpuState save_vcpu(const Vcpu& vcpu, const std::vector<std::uint32_t>& indexes) {
    VcpuState state;
    kvm_mp_state run_state{};
    read(vcpu, KVM_GET_MP_STATE, run_state, "run state"); // It comes first: reading it may change the local APIC.
    state.mp_state = run_state.mp_state;
    state.registers = vcpu.registers();
    state.special = save_special(vcpu);
    state.xsave = save_xsave(vcpu);
    read(vcpu, KVM_GET_XCRS, state.xcrs, "extended control registers");
    read(vcpu, KVM_GET_DEBUGREGS, state.debug, "debug registers");
    state.local_apic = vcpu.local_apic();
    state.tsc_khz = static_cast<std::uint32_t>(std::max(::ioctl(vcpu.fd(), KVM_GET_TSC_KHZ, 0), 0));
    state.tsc_offset = tsc_offset(vcpu).value_or(0);
    state.cpuid = cpuid_of(vcpu);
    state.msrs = save_msrs(vcpu, indexes);
    state.nested = save_nested(vcpu);
    read(vcpu, KVM_GET_VCPU_EVENTS, state.events, "pending events");
    return state;
}

namespace {

void restore_tsc_khz(const Vcpu& vcpu, std::uint32_t khz) {
    const int now = ::ioctl(vcpu.fd(), KVM_GET_TSC_KHZ, 0);
    // KVM itself treats counters as equal if they differ by less than 250 parts in a million (tsc_tolerance_ppm).
    const auto difference = std::max<std::int64_t>(now, khz) - std::min<std::int64_t>(now, khz);
    if (khz == 0 || now <= 0 || difference <= std::int64_t{khz} / 4000) {
        return;
    }
    if (::ioctl(vcpu.fd(), KVM_SET_TSC_KHZ, static_cast<unsigned long>(khz)) != 0) {
        throw Error(
            vmm::format("cannot restore {}: its time stamp counter runs at {} kHz, this host's at {} kHz, and this "
                        "host cannot scale it (take a host with TSC scaling, or with the same frequency)",
                        name_of_vcpu(vcpu), khz, now));
    }
}

std::vector<std::string> restore_msrs(Vcpu& vcpu, const VcpuState& state) {
    std::vector<std::string> refused;
    // The two registers of the counter come first. The deadline is restored last, by restore_tsc(): KVM keeps a
    // deadline only if there is a counter to compare it with, and if the local APIC's timer is in deadline mode.
    std::vector<Msr> ordered;
    for (const std::uint32_t first : {kTsc, kTscAdjust}) {
        if (const auto value = value_of(state, first)) {
            ordered.push_back({first, *value});
        }
    }
    for (const Msr& msr : state.msrs) {
        if (msr.index != kTsc && msr.index != kTscAdjust && msr.index != kTscDeadline) {
            ordered.push_back(msr);
        }
    }
    for (const Msr& msr : ordered) {
        // If KVM cannot move a counter, it goes on as the host's counter does.
        if (set_msr(vcpu, msr) || msr.index == kTsc) {
            continue;
        }
        if (is_missed_by_nobody(msr)) {
            continue;
        }
        if (msr.value == 0 || is_for_looking_only(msr.index)) {
            if (msr.value != 0) {
                refused.push_back(vmm::format("{}: KVM refuses the value {:#x} of the model-specific register {:#x}",
                                              name_of_vcpu(vcpu), msr.value, msr.index));
            }
            continue;
        }
        throw Error(
            vmm::format("cannot restore {}: KVM refuses the value {:#x} of the model-specific register {:#x} (take "
                        "a host with the processor and the KVM of the host of the snapshot)",
                        name_of_vcpu(vcpu), msr.value, msr.index));
    }
    return refused;
}

/// True if the timer of the local APIC waits for a value of the time stamp counter (Intel SDM volume 3, 11.5.4.1).
bool waits_for_deadline(const kvm_lapic_state& local_apic) {
    constexpr std::size_t kTimer = 0x320;
    constexpr std::uint32_t kMode = 3U << 17U;
    constexpr std::uint32_t kDeadlineMode = 2U << 17U;
    constexpr std::uint32_t kMasked = 1U << 16U;
    std::uint32_t timer = 0;
    std::memcpy(&timer, &local_apic.regs[kTimer], sizeof timer);
    return (timer & kMode) == kDeadlineMode && (timer & kMasked) == 0;
}

} // namespace

namespace {

/// Sets up the banks of machine checks, which must exist before their registers are restored.
void restore_machine_checks(Vcpu& vcpu, const VcpuState& state) {
    const auto saved = value_of(state, kMachineCheckCapabilities);
    if (saved && vcpu.msr(kMachineCheckCapabilities) != saved) {
        vcpu.set_up_machine_checks(*saved);
    }
}

} // namespace

std::vector<std::string> restore_vcpu(Vcpu& vcpu, const VcpuState& state) {
    constexpr std::size_t kMostCpuidEntries = 256;
    if (state.cpuid.empty() || state.cpuid.size() > kMostCpuidEntries) {
        throw Error(
            vmm::format("cannot restore {}: its CPUID has {} entries, and has to have 1 to {} (take a snapshot that "
                        "is whole)",
                        name_of_vcpu(vcpu), state.cpuid.size(), kMostCpuidEntries));
    }
    vcpu.set_cpuid(state.cpuid);
    restore_machine_checks(vcpu, state);
    restore_tsc_khz(vcpu, state.tsc_khz);
    restore_special(vcpu, state.special);
    vcpu.set_registers(state.registers);
    if (state.xcrs.nr_xcrs != 0) {
        write(vcpu, KVM_SET_XCRS, state.xcrs, "extended control registers");
    }
    restore_xsave(vcpu, state.xsave);
    write(vcpu, KVM_SET_DEBUGREGS, state.debug, "debug registers");
    vcpu.set_local_apic(state.local_apic);
    std::vector<std::string> refused = restore_msrs(vcpu, state);
    restore_nested(vcpu, state.nested);
    kvm_vcpu_events events = state.events;
    // KVM_GET_VCPU_EVENTS does not set all flags that KVM_SET_VCPU_EVENTS needs to restore the same state.
    events.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR;
    write(vcpu, KVM_SET_VCPU_EVENTS, events, "pending events");
    kvm_mp_state run_state{};
    run_state.mp_state = state.mp_state;
    write(vcpu, KVM_SET_MP_STATE, run_state, "run state");
    return refused;
}

void restore_tsc(const std::vector<Vcpu*>& vcpus, const std::vector<VcpuState>& states, std::uint64_t later) {
    std::optional<std::int64_t> first;
    for (std::size_t i = 0; i < std::min(vcpus.size(), states.size()); ++i) {
        Vcpu& vcpu = *vcpus[i];
        const std::uint64_t saved = value_of(states[i], kTsc).value_or(0);
        if (i == 0) {
            static_cast<void>(vcpu.set_msr(kTsc, saved + later));
            first = tsc_offset(vcpu);
        } else if (!first || !set_tsc_offset(vcpu, *first + (states[i].tsc_offset - states[0].tsc_offset))) {
            static_cast<void>(vcpu.set_msr(kTsc, saved + later));
        }
        if (!waits_for_deadline(states[i].local_apic)) {
            continue;
        }
        // A deadline of 0 may mean that the interrupt was already on its way. So the timer fires at once.
        const std::uint64_t deadline = value_of(states[i], kTscDeadline).value_or(0);
        static_cast<void>(vcpu.set_msr(kTscDeadline, deadline != 0 ? deadline : saved + later));
    }
}

void note_paused(const Vcpu& vcpu) noexcept {
    static_cast<void>(::ioctl(vcpu.fd(), KVM_KVMCLOCK_CTRL, 0));
}

} // namespace vmm::kvm
