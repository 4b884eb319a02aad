// One virtual CPU of KVM: its registers, and how it is run.
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

/// Whether a vCPU may run, if KVM has the local APIC (api.rst, 4.39 KVM_SET_MP_STATE).
enum class MpState : std::uint32_t {
    kRunnable = KVM_MP_STATE_RUNNABLE,
    kUninitialized = KVM_MP_STATE_UNINITIALIZED, ///< waits for INIT and SIPI: run() blocks
};

/// A vCPU. KVM frees it only with its VM.
///
/// Threads: one at a time. KVM is quickest if it is always the same thread; that thread has called
/// block_signals_in_this_thread(). Any thread may read what stats() returned at the same time.
///
/// Members that read or set state throw Error if KVM refuses.
class Vcpu {
  public:
    /// KVM_CREATE_VCPU. `id` is also the APIC id. Throws Error.
    Vcpu(const Vm& vm, unsigned id);
    /// A vCPU of `vm` that exists already; `id` is for messages. Throws Error.
    Vcpu(const Vm& vm, UniqueFd vcpu, unsigned id);

    [[nodiscard]] unsigned id() const noexcept { return id_; }

    /// Runs the guest until it exits to us; a kick ends the call at any time. Memory that an exit refers to is valid
    /// until the next run(). Throws Error if the *host* fails: it has no memory for a page of a memslot, such a page is
    /// broken, or KVM cannot start its own thread although run() tried for almost a second.
    [[nodiscard]] Exit run();

    /// Finishes the access of the last exit without entering the guest: the data read for the guest goes into its
    /// registers, so that the register state is complete. If the access has a further part, the function returns that
    /// part as an exit; the caller must serve it and call this again. Throws as run() does.
    [[nodiscard]] std::optional<Exit> finish_exit();

    void set_mp_state(MpState state);
    /// KVM's own number for the state (KVM_MP_STATE_HALTED, ...); nothing if KVM does not say.
    [[nodiscard]] std::optional<std::uint32_t> mp_state() const noexcept;

    /// How far pre_fault() came.
    struct PreFaulted {
        std::uint64_t bytes;  ///< mapped, from the start of the range on
        int error_number = 0; ///< a value of errno: why it stopped there; 0 if all was mapped
    };
    /// KVM_PRE_FAULT_MEMORY (api.rst, 4.143): maps `range` (page-aligned) in this vCPU's second level, as a read of the
    /// guest would. Repeats the call if KVM was interrupted or has mapped only a part. If KVM maps nothing for a
    /// second, or `stop` is requested, the error is that of the last call: EINTR or EAGAIN. Without
    /// KVM_CAP_PRE_FAULT_MEMORY the error is EOPNOTSUPP, and without a memslot it is ENOENT.
    [[nodiscard]] PreFaulted pre_fault(GuestRange range, const std::stop_token& stop = {});

    /// Opens the counters of this vCPU, e.g. "pf_fixed", "exits". If run() is under way, this call waits until it ends,
    /// but counters that are already open can be read meanwhile. Throws Error if the kernel (before 5.14) has no
    /// counters.
    [[nodiscard]] Stats stats() const;

    /// How many bytes KVM_GET_XSAVE2 writes (api.rst, 4.134); 0 if KVM has only KVM_GET_XSAVE.
    [[nodiscard]] std::size_t xsave_bytes() const noexcept { return static_cast<std::size_t>(xsave_bytes_); }
    /// The most bytes that KVM_GET_NESTED_STATE writes (api.rst, 4.114); 0 if KVM has no such call.
    [[nodiscard]] std::size_t nested_bytes() const noexcept { return static_cast<std::size_t>(nested_bytes_); }

    // The members below exist on an x86 vCPU only: kvm/x86/vcpu_state.cpp.

    [[nodiscard]] kvm_regs registers() const;
    void set_registers(const kvm_regs& registers);
    [[nodiscard]] kvm_sregs special_registers() const;
    void set_special_registers(const kvm_sregs& registers);
    /// Reads one model-specific register; nothing if KVM refuses it.
    [[nodiscard]] std::optional<std::uint64_t> msr(std::uint32_t index) const;
    /// Sets one model-specific register; false if KVM refuses it.
    [[nodiscard]] bool set_msr(std::uint32_t index, std::uint64_t value);
    /// Sets the CPUID, at most 256 entries. Must be called before the first run().
    void set_cpuid(std::span<const kvm_cpuid_entry2> entries);
    /// KVM_X86_SETUP_MCE (api.rst, 4.104): sets up the machine-check banks and the other features in `mcg_cap` and
    /// enables all of them. `mcg_cap` must be within System::machine_check_capabilities().
    void set_up_machine_checks(std::uint64_t mcg_cap);
    /// The registers of the in-kernel local APIC, 16 bytes each as in memory (api.rst, 4.57, KVM_GET_LAPIC).
    [[nodiscard]] kvm_lapic_state local_apic() const;
    void set_local_apic(const kvm_lapic_state& registers);
    /// Chooses the address space that the vCPU sees: that of system management mode, or the normal one
    /// (KVM_SET_VCPU_EVENTS). Needs KVM_CAP_X86_SMM.
    void set_system_management_mode(bool on);
    /// Clears exceptions, interrupts and NMIs that are injected or pending, and unblocks NMIs.
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
    // The VM was asked. KVM does not answer KVM_CHECK_EXTENSION of a vCPU.
    int xsave_bytes_;
    int nested_bytes_;
    /// Counts the tries of KVM_RUN that got EAGAIN. A kick during the pause does not reset the count, because some
    /// kicks come regularly.
    Retries retries_;
};

} // namespace vmm::kvm
