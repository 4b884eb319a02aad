// One virtual CPU of KVM: registers, and running it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <stop_token>
#include <string>

#include "kvm/exit.hpp"
#include "kvm/host/mapping.hpp"
#include "kvm/host/retry.hpp"
#include "kvm/host/unique_fd.hpp"
#include "kvm/stats.hpp"
#include "kvm/uapi.hpp"
#include "kvm/vm.hpp"

namespace vmm::kvm {

/// Whether a vCPU may run, with an in-kernel local APIC (api.rst, 4.39 KVM_SET_MP_STATE).
enum class MpState : std::uint32_t {
    kRunnable = KVM_MP_STATE_RUNNABLE,
    kUninitialized = KVM_MP_STATE_UNINITIALIZED, ///< waits for INIT and SIPI: run() blocks
};

/// A vCPU. KVM frees it only with its VM.
///
/// Threads: one at a time; KVM is quickest where it is always the same one, which has called
/// block_signals_in_this_thread(). What stats() returned may be read from any thread meanwhile.
///
/// Members that read or set state throw Error if KVM refuses.
class Vcpu {
  public:
    /// KVM_CREATE_VCPU. `id` is the APIC id too. Throws Error.
    Vcpu(const Vm& vm, unsigned id);
    /// A vCPU of `vm` that exists already; `id` is for messages. Throws Error.
    Vcpu(const Vm& vm, UniqueFd vcpu, unsigned id);

    [[nodiscard]] unsigned id() const noexcept { return id_; }

    /// Runs the guest until something needs us. Memory an exit refers to is valid until the next run(). Throws Error
    /// if the *host* fails: memory behind a memslot that cannot be had or is broken; KVM that cannot start its own
    /// thread, after less than a second of trying. A kick is heard meanwhile, too.
    [[nodiscard]] Exit run();

    /// Finishes the access of the last exit without entering the guest: what was read for the guest goes into its
    /// registers, so that they are whole. If the access has a further part, that is the exit returned, and it is to be
    /// served and finished in its turn. Throws as run() does.
    [[nodiscard]] std::optional<Exit> finish_exit();

    void set_mp_state(MpState state);
    /// KVM's own number for it (KVM_MP_STATE_HALTED, ...); nothing if KVM does not say.
    [[nodiscard]] std::optional<std::uint32_t> mp_state() const noexcept;

    /// How far pre_fault() came.
    struct PreFaulted {
        std::uint64_t bytes;  ///< from the start of the range on
        int error_number = 0; ///< why no further, a value of errno; 0 if all was done
    };
    /// KVM_PRE_FAULT_MEMORY (api.rst, 4.143): maps `range` (page-aligned) in this vCPU's second level, as a read would.
    /// Repeats the call if KVM was interrupted or has done a part; if it does nothing for a second, or `stop` is
    /// requested, the error is the last call's, EINTR or EAGAIN. Needs KVM_CAP_PRE_FAULT_MEMORY; without it, or if
    /// there is no memslot, the error is EOPNOTSUPP or ENOENT.
    [[nodiscard]] PreFaulted pre_fault(GuestRange range, const std::stop_token& stop = {});

    /// Opens the counters of this vCPU, e.g. "pf_fixed", "exits". While run() is under way this waits for its end;
    /// reading what was opened before does not. Throws Error if the kernel (before 5.14) has none.
    [[nodiscard]] Stats stats() const;

    // What only an x86 vCPU has: kvm/x86/vcpu_state.cpp.

    [[nodiscard]] kvm_regs registers() const;
    void set_registers(const kvm_regs& registers);
    [[nodiscard]] kvm_sregs special_registers() const;
    void set_special_registers(const kvm_sregs& registers);
    /// One model-specific register; nothing if KVM refuses that one.
    [[nodiscard]] std::optional<std::uint64_t> msr(std::uint32_t index) const;
    /// Sets one model-specific register; false if KVM refuses that one.
    [[nodiscard]] bool set_msr(std::uint32_t index, std::uint64_t value);
    /// Before the first run(). At most 256 entries.
    void set_cpuid(std::span<const kvm_cpuid_entry2> entries);
    /// KVM_X86_SETUP_MCE (api.rst, 4.104): the machine-check banks and what else MCG_CAP says, all of them enabled. At
    /// most what System::machine_check_capabilities() has.
    void set_up_machine_checks(std::uint64_t mcg_cap);
    /// The registers of the in-kernel local APIC, 16 bytes each as in memory (api.rst, 4.57, KVM_GET_LAPIC).
    [[nodiscard]] kvm_lapic_state local_apic() const;
    void set_local_apic(const kvm_lapic_state& registers);
    /// Chooses the address space that the vCPU sees: that of system management mode, or the normal one
    /// (KVM_SET_VCPU_EVENTS). Needs KVM_CAP_X86_SMM.
    void set_system_management_mode(bool on);
    /// Forgets exceptions, interrupts and NMIs that are injected or pending, and that NMIs are blocked.
    void forget_events();

    /// The descriptor, on loan.
    [[nodiscard]] int fd() const noexcept { return fd_.get(); }

  private:
    [[nodiscard]] Exit decode_exit();
    [[nodiscard]] std::string name() const;
    [[nodiscard]] bool waits_for_startup() const noexcept;
    [[nodiscard]] std::string broken_page_advice() const;

    unsigned id_;
    UniqueFd fd_;
    Mapping shared_;
    kvm_run* run_; ///< the start of shared_, whose size System::vcpu_mmap_bytes() has checked
    /// The tries of KVM_RUN since KVM last got to it. Kicks do not end the count: some come regularly.
    Retries retries_;
};

} // namespace vmm::kvm
