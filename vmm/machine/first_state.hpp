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

/// What puts the first state into a machine's hardware: the boot of a kernel, a snapshot, or a guest that arrives. It
/// is opened before there is hardware, so that what is missing is refused at once. Then put_into() is called once, and
/// finish() before the guest runs, unless it is_lazy().
///
/// Threads: one, but for finish().
class FirstState {
  public:
    FirstState() = default;
    FirstState(const FirstState&) = delete;
    FirstState& operator=(const FirstState&) = delete;
    virtual ~FirstState() = default;

    /// What the hardware is made from; null: it is as after a reset.
    [[nodiscard]] virtual const MachineState* state() const noexcept { return nullptr; }

    /// The files that are its memory; none: memory is new.
    [[nodiscard]] virtual std::vector<FileRange> memory_files() const { return {}; }

    /// Guest memory is mapped, and nobody has touched it yet. Once, before all below. Throws Error.
    virtual void note_memory(const GuestRam& /*ram*/, Embedder& /*embedder*/) {}
    /// Nobody touches that memory any more, nor will. Nothing of it is used afterwards.
    virtual void let_go_of_memory() noexcept {}

    /// True if the guest goes on with the page tables of the prefault vCPUs. Without a second level in hardware, what
    /// they filled belongs to these tables; a guest that says so (the built-in one does) adopts them.
    [[nodiscard]] virtual bool adopts_page_tables(const prefault::SecondLevelHost& host) const = 0;

    /// Whether the state is known only after memory, the VM and its vCPUs exist: a guest that arrives from elsewhere.
    /// state() tells beforehand what the machine looks like.
    [[nodiscard]] virtual bool comes_later() const noexcept { return false; }
    /// Waits until such a state is there; state() is it from then on. Memory has its content then, and `second_level`
    /// is filled as Config says. Once, after note_memory(). Throws Error, and StoppedError if a stop is requested.
    virtual void wait_for_state(MachineSecondLevel& /*second_level*/, std::deque<kvm::Vcpu>& /*vcpus*/) {}
    /// The machine cannot be made: `why`.
    virtual void note_failure(std::string_view /*why*/) noexcept {}

    /// Puts what the guest begins with into `hardware`, or begins to. The second level has to be prepared if
    /// adopts_page_tables(). Throws Error, and what the log throws.
    virtual void put_into(Hardware& hardware, Embedder& embedder) = 0;

    /// Whether the guest may run before all of its memory has its content, because whoever touches a page waits for it.
    /// Such memory is not filled before finish().
    [[nodiscard]] virtual bool is_lazy() const noexcept { return false; }

    /// Whether vCPUs run from now on. Threads: any.
    virtual void note_guest_runs(bool /*runs*/) noexcept {}

    /// Waits until all of guest memory has its content. Until then only what keeps the content of memory may touch it,
    /// as a prefault does. It may be called again. Throws Error: it could not be had; StoppedError: `stop` was
    /// requested. Threads: any.
    virtual void finish(const std::stop_token& /*stop*/ = {}) {}

    /// Ends what finish() waits for. Nothing of `hardware` but its memory is used afterwards.
    virtual void abandon() noexcept {}

    /// What is to be done last, before a vCPU runs: clocks and interrupts of a guest that goes on. Throws Error.
    virtual void start(Hardware& /*hardware*/) {}

    /// How memory came; nothing unless it is_lazy().
    [[nodiscard]] virtual std::optional<LazyReport> lazy_report() const { return std::nullopt; }

    /// Whether the guest stands still until somebody lets it go on. After put_into().
    [[nodiscard]] virtual bool starts_paused() const noexcept { return false; }

    /// How the guest arrived, and what its prefault did; nothing unless it comes_later().
    [[nodiscard]] virtual std::optional<ArrivalReport> arrival_report() const { return std::nullopt; }
    [[nodiscard]] virtual std::optional<prefault::Report> arrival_prefault() const { return std::nullopt; }

    /// Where in its memory the guest finds its generation identifier; nothing if it has none. After put_into().
    [[nodiscard]] virtual std::optional<GuestAddress> generation_id_at() const noexcept = 0;

    /// The device tree as the guest was given it; empty if it has none. After put_into().
    [[nodiscard]] virtual std::span<const std::byte> device_tree() const noexcept = 0;
};

} // namespace vmm
