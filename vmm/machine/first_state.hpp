// How a machine begins.
#pragma once

#include <cstddef>
#include <deque>
#include <optional>
#include <span>
#include <stop_token>
#include <string_view>
#include <vector>

#include "kvm/host/guest_address.hpp"
#include "kvm/vcpu.hpp"
#include "prefault/report.hpp"
#include "prefault/x86/second_level_host.hpp"
#include "vmm/machine/embedder.hpp"
#include "vmm/machine/guest_ram.hpp"
#include "vmm/migration.hpp"
#include "vmm/snapshot.hpp"

namespace vmm {

struct Hardware;
class MachineSecondLevel;
struct MachineState;

/// Puts the first state into a machine's hardware: the boot of a kernel, a snapshot, or a guest that arrives. It is
/// opened before there is hardware, so that missing files are refused at once. Then put_into() is called once, and
/// finish() before the guest runs, unless it is_lazy().
///
/// Threads: one, but finish() may be called on any.
class FirstState {
  public:
    FirstState() = default;
    FirstState(const FirstState&) = delete;
    FirstState& operator=(const FirstState&) = delete;
    virtual ~FirstState() = default;

    /// The state from which the hardware is made; null: it is as after a reset.
    [[nodiscard]] virtual const MachineState* state() const noexcept { return nullptr; }

    /// The files that become guest memory; none: memory is new.
    [[nodiscard]] virtual std::vector<FileRange> memory_files() const { return {}; }

    /// Tells that guest memory is mapped and that nobody has touched it yet. It is called once, before the functions
    /// below. Throws Error.
    virtual void note_memory(const GuestRam& /*ram*/, Embedder& /*embedder*/) {}
    /// Tells that nobody will touch that memory any more. Nothing of it is used afterwards.
    virtual void let_go_of_memory() noexcept {}

    /// True if the guest goes on with the page tables of the prefault vCPUs. Without a second level in hardware, the
    /// mappings that they filled belong to these tables. A guest that says so (the built-in one does) takes the tables
    /// over.
    [[nodiscard]] virtual bool adopts_page_tables(const prefault::SecondLevelHost& host) const = 0;

    /// Whether the state is known only after memory, the VM and its vCPUs exist. This is so for a guest that arrives
    /// from elsewhere. Before that, state() says what the machine looks like.
    [[nodiscard]] virtual bool comes_later() const noexcept { return false; }
    /// Waits until such a state is there; from then on state() returns it. Memory then has its content, and
    /// `second_level` is filled as Config says. It is called once, after note_memory(). Throws Error, and StoppedError
    /// if a stop is requested.
    virtual void wait_for_state(MachineSecondLevel& /*second_level*/, std::deque<kvm::Vcpu>& /*vcpus*/) {}
    /// Tells that the machine cannot be made, and why.
    virtual void note_failure(std::string_view /*why*/) noexcept {}

    /// Puts the guest's first state into `hardware`, or begins to. If adopts_page_tables(), the second level must be
    /// prepared before. Throws Error, and what the log throws.
    virtual void put_into(Hardware& hardware, Embedder& embedder) = 0;

    /// Whether the guest may run before all of its memory has its content; whoever touches a page then waits for it.
    /// Such memory is not filled before finish().
    [[nodiscard]] virtual bool is_lazy() const noexcept { return false; }

    /// Tells whether vCPUs run from now on. Threads: any.
    virtual void note_guest_runs(bool /*runs*/) noexcept {}

    /// Waits until all of guest memory has its content. Until then only code that keeps the content, such as a
    /// prefault, may touch it. It may be called again. Throws Error if the content could not be read, and StoppedError
    /// if `stop` was requested. Threads: any.
    virtual void finish(const std::stop_token& /*stop*/ = {}) {}

    /// Ends the work for which finish() waits. Afterwards only the memory of `hardware` is used.
    virtual void abandon() noexcept {}

    /// Does the last step before a vCPU runs: it sets clocks and interrupts of a guest that goes on. Throws Error.
    virtual void start(Hardware& /*hardware*/) {}

    /// How memory came; nothing unless it is_lazy().
    [[nodiscard]] virtual std::optional<LazyReport> lazy_report() const { return std::nullopt; }

    /// Whether the guest stands still until somebody resumes it. It may be called after put_into().
    [[nodiscard]] virtual bool starts_paused() const noexcept { return false; }

    /// How the guest arrived, and what its prefault did; nothing unless it comes_later().
    [[nodiscard]] virtual std::optional<ArrivalReport> arrival_report() const { return std::nullopt; }
    [[nodiscard]] virtual std::optional<prefault::Report> arrival_prefault() const { return std::nullopt; }

    /// The address at which the guest finds its generation identifier; nothing if it has none. It may be called after
    /// put_into().
    [[nodiscard]] virtual std::optional<GuestAddress> generation_id_at() const noexcept = 0;

    /// The device tree as it was given to the guest; empty if it has none. It may be called after put_into().
    [[nodiscard]] virtual std::span<const std::byte> device_tree() const noexcept = 0;
};

} // namespace vmm
