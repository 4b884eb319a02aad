// Guest memory that comes while the guest runs.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "kvm/host/event_fd.hpp"
#include "kvm/host/user_fault_fd.hpp"
#include "vmm/machine/guest_ram.hpp"
#include "vmm/machine/machine_second_level.hpp"
#include "vmm/snapshot.hpp"
#include "vmm/state/memory_source.hpp"
#include "vmm/state/working_set.hpp"

namespace vmm {

/// Gives a guest its memory while it runs, in chunks (MemoryLayout::chunk()). Whoever touches a page that is not there
/// waits until its chunk has been read. The other chunks are read in the background: the working set is first, and the
/// rest follows. Every chunk is compared with its checksum before anybody sees it. From load() on, it is also mapped in
/// the second level before those who wait for it go on. So a chunk costs the guest at most one second-level fault. When
/// the last chunk is there, the memory is ordinary memory.
///
/// Threads: one, but wait() and report() may be called on any. It has threads of its own: some wait for accesses, some
/// load the rest at low priority, and one maps.
class LazyMemory {
  public:
    struct Settings {
        unsigned demand_threads = 1; ///< threads that wait for accesses; at least 1
        unsigned workers = 1;        ///< threads that load the rest; at least 1
        WorkingSet working_set{};    ///< the chunks that are loaded first
        std::vector<bool> present{}; ///< by chunk: whether it is there already; empty: none is
        /// For this time only chunks that are touched are loaded, and the list of them is given to `recorded`. 0:
        /// never.
        std::chrono::milliseconds record_for{0};
        std::function<void(const WorkingSet&)> recorded{}; ///< on a thread of this object; what it throws is a failure
        std::function<void()> loaded{}; ///< is called when all is there, on a thread of this object; it throws nothing
        /// It is called once with what went wrong, on a thread of this object. The guest cannot go on then and must be
        /// stopped. From then on the kernel gets an error if it touches memory that is not there yet, for a vCPU or to
        /// write it to a disk. If this process touches such memory itself, it waits until no guest runs, and then finds
        /// zeros.
        std::function<void(std::exception_ptr)> failed{};
    };

    /// Makes the source from which one thread gets chunks, on that thread. Throws Error.
    using MakeSource = std::function<std::unique_ptr<ChunkSource>()>;

    /// Reads nothing yet. `layout`, and what a source refers to, must outlive this object. Throws Error if this process
    /// can have no userfaultfd.
    LazyMemory(const MemoryLayout& layout, MakeSource make_source, std::size_t page_bytes, Settings settings);
    ~LazyMemory();
    LazyMemory(const LazyMemory&) = delete;
    LazyMemory& operator=(const LazyMemory&) = delete;

    /// From now on whoever touches `ram` gets what is in the source. The memory of `ram` must be that of the layout,
    /// and must have no pages yet, except those of chunks that are present; other pages are dropped. Throws Error.
    void serve(const GuestRam& ram);
    /// Begins to load the rest, until `stop` is requested. From now on chunks that come are mapped in `second_level`,
    /// unless it is null. It is called after serve(). Throws Error.
    void load(MachineSecondLevel* second_level, const std::stop_token& stop);

    /// Tells whether the guest runs from now on. Threads: any.
    void note_guest_runs(bool runs) noexcept;

    /// Waits until all memory is there. Throws what went wrong, and StoppedError if `stop` was requested or abandon()
    /// was called. Threads: any.
    void wait(const std::stop_token& stop);
    /// Ends loading and mapping. Accesses are still served.
    void abandon() noexcept;
    /// Ends serving, too. Nobody may touch the memory any more.
    void let_go() noexcept;

    /// What has been done until now. Threads: any.
    [[nodiscard]] LazyReport report() const;

  private:
    enum class State : std::uint8_t { kAbsent, kLoading, kDemanded, kPresent };
    struct Region {
        std::span<std::byte> bytes;
        GuestAddress base{};
        std::size_t first_chunk = 0;
    };
    struct Piece {
        std::span<std::byte> bytes;
        GuestRange range;
    };
    /// A chunk that is there, and the time since which somebody has waited for it.
    struct Waited {
        std::size_t chunk = 0;
        std::optional<std::chrono::steady_clock::time_point> since;
    };
    struct RequestStop {
        std::stop_source* source;
        void operator()() const noexcept { source->request_stop(); }
    };
    class Loader;

    void leave_out_absent_memory(std::span<const prefault::PlacedRange> placed);
    void watch(const Region& region);
    [[nodiscard]] Piece piece_of(std::size_t chunk) const;
    /// The chunk that contains `page`; nothing if `page` is no guest memory.
    [[nodiscard]] std::optional<std::size_t> chunk_at(const std::byte* page) const noexcept;
    /// The page of the backing that contains `address`.
    [[nodiscard]] std::span<std::byte> page_at(std::byte* address) const;
    void serve_demand() noexcept;
    void heed(UserFaultFd::Fault fault, Loader& loader);
    void heed_without_memory(UserFaultFd::Fault fault, Loader& loader);
    void wake_all() noexcept;
    void load(std::size_t chunk, Loader& loader);
    void throw_if_needed() const;
    void load_rest() noexcept;
    void wait_for_record();
    void map_chunks(MachineSecondLevel& second_level) noexcept;
    void note_present(std::size_t chunk, std::optional<std::chrono::steady_clock::time_point> demanded);
    void let_go_on(const Waited& waited);
    void note_loaded() noexcept;
    void fail(std::exception_ptr why) noexcept;
    void start(const char* name, void (LazyMemory::*body)() noexcept);

    const MemoryLayout& layout_;
    const MakeSource make_source_;
    const std::size_t page_bytes_;
    const Settings settings_;
    std::vector<bool> present_at_first_; ///< chunks that are neither watched nor read
    UserFaultFd faults_;
    EventFd ended_; ///< wakes the threads that wait for accesses
    std::vector<Region> regions_;
    std::vector<std::span<std::byte>> watched_; ///< parts of regions
    bool is_thp_ = false;
    bool can_move_ = false; ///< whole transparent huge pages
    std::vector<std::atomic<State>> states_;
    std::vector<std::size_t> order_; ///< of loading
    std::atomic<std::size_t> next_{0};
    std::atomic<std::size_t> present_{0};
    std::atomic<bool> is_loaded_{false};
    std::atomic<bool> is_serving_{false};
    std::atomic<bool> has_failed_{false};
    std::atomic<bool> guest_runs_{false};
    std::stop_source loading_;
    std::optional<std::stop_callback<RequestStop>> stop_;
    std::chrono::steady_clock::time_point begin_;
    std::chrono::steady_clock::time_point record_until_;

    mutable std::mutex lock_; ///< guards all below
    std::condition_variable_any changed_;
    WorkingSet demanded_;
    bool records_ = false;
    double longest_wait_seconds_ = 0;
    std::optional<double> seconds_until_loaded_;
    std::exception_ptr failure_;
    bool maps_ = false;
    std::deque<Waited> to_map_; ///< chunks that somebody waits for come first

    std::vector<std::thread> demand_threads_;
    std::vector<std::thread> load_threads_;
    std::thread map_thread_;
};

} // namespace vmm
