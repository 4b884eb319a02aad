// A machine that begins with a guest that arrives from another process or host.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
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
#include <string_view>
#include <thread>
#include <vector>

#include "kvm/host/event_fd.hpp"
#include "kvm/host/unique_fd.hpp"
#include "vmm/config.hpp"
#include "vmm/machine/embedder.hpp"
#include "vmm/machine/first_state.hpp"
#include "vmm/machine/lazy_memory.hpp"
#include "vmm/machine/machine_second_level.hpp"
#include "vmm/machine/stop_bridge.hpp"
#include "vmm/migration/incoming_guest.hpp"
#include "vmm/migration/page_receiver.hpp"
#include "vmm/state/memory_layout.hpp"
#include "vmm/state/snapshot_state.hpp"
#include "vmm/stop_request.hpp"

namespace vmm {

/// The machine goes on with the guest of Config::incoming. Memory is made as Config says and gets the pages that
/// arrive; the second level is filled at the same time. A thread of this object speaks with the source until the source
/// knows that the guest runs.
///
/// One message, the commit, decides who owns the guest. Before it the source owns the guest: if anything fails, this
/// machine is not made. After it this machine owns the guest, unless it refuses the guest; then the source owns it
/// again.
///
/// Threads: one.
class Arrival final : public FirstState {
  public:
    /// Both arguments must outlive this object. Throws Error if the guest's machine is not the one that `config`
    /// describes.
    Arrival(const Config& config, const StopRequest& stop);
    ~Arrival() override;
    Arrival(const Arrival&) = delete;
    Arrival& operator=(const Arrival&) = delete;

    [[nodiscard]] const MachineState* state() const noexcept override { return &state_.machine; }
    [[nodiscard]] std::vector<FileRange> memory_files() const override;
    [[nodiscard]] bool adopts_page_tables(const prefault::SecondLevelHost& host) const override;
    void note_memory(const GuestRam& ram, Embedder& embedder) override;
    [[nodiscard]] bool comes_later() const noexcept override { return true; }
    void wait_for_state(MachineSecondLevel& second_level, std::deque<kvm::Vcpu>& vcpus) override;
    void note_failure(std::string_view why) noexcept override;
    void let_go_of_memory() noexcept override;
    [[nodiscard]] bool is_lazy() const noexcept override { return lazy_.has_value(); }
    void note_guest_runs(bool runs) noexcept override;
    void finish(const std::stop_token& stop) override;
    void abandon() noexcept override;
    [[nodiscard]] std::optional<LazyReport> lazy_report() const override;
    void put_into(Hardware& hardware, Embedder& embedder) override;
    void start(Hardware& hardware) override;
    [[nodiscard]] bool starts_paused() const noexcept override;
    [[nodiscard]] std::optional<ArrivalReport> arrival_report() const override;
    [[nodiscard]] std::optional<prefault::Report> arrival_prefault() const override { return prefault_; }
    [[nodiscard]] std::optional<GuestAddress> generation_id_at() const noexcept override {
        return state_.machine.generation_id_at;
    }
    [[nodiscard]] std::span<const std::byte> device_tree() const noexcept override {
        return state_.machine.device_tree;
    }

  private:
    using Clock = std::chrono::steady_clock;
    enum class Phase : std::uint8_t {
        kReceiving, ///< pages are being received; the guest runs at the source
        kPrepared,  ///< everything has arrived; the source may give the guest away
        kOurs,      ///< the source has given the guest away
        kRunning,   ///< the source has been told that the guest runs here
        kOver,      ///< nobody must be told anything any more
        kFailed,    ///< there will be no guest here
    };

    void fill(MachineSecondLevel& second_level);
    void begin_post_copy(const PostCopy& post_copy);
    void end_serving() noexcept;
    void say_complete(bool is_so) noexcept;
    void prepare(const LastState& said, std::uint64_t taken_back, MachineSecondLevel& second_level,
                 std::deque<kvm::Vcpu>& vcpus);
    [[noreturn]] void rethrow_failure();

    // On the thread that speaks with the source.
    void converse() noexcept;
    [[nodiscard]] bool serve_once();
    void heed(Message message);
    void greet(Reception::Visitor visitor);
    void resume(Reception::Visitor visitor);
    void answer_questions();
    void take_back();
    void note_cut(const std::string& why) noexcept;
    void heed_last_words();
    void heed_cut();
    void note_stream_cut(const std::string& why) noexcept;
    void note_synced(std::uint64_t round) noexcept;

    void fail(std::exception_ptr why) noexcept;
    void give_back() noexcept;
    [[nodiscard]] std::shared_ptr<Channel> control() const;
    bool say(MessageType type, std::span<const std::byte> body = {}) noexcept;

    const Config& config_;
    const StopRequest& stop_;
    IncomingGuest::Impl& guest_;
    const SessionId session_;
    const bool is_shared_;
    unsigned streams_ = 1;
    SnapshotState state_;         ///< the first one, then the last one
    std::vector<UniqueFd> files_; ///< the files that are guest memory; empty once they are mapped
    SharedMemory shared_memory_;
    Clock::time_point begin_ = Clock::now();
    std::optional<prefault::Report> prefault_;
    std::unique_ptr<PageReceiver> pages_;
    const GuestRam* ram_ = nullptr; ///< set by note_memory(), as embedder_
    Embedder* embedder_ = nullptr;
    std::optional<MemoryLayout> layout_;            ///< for a post-copy, as the next three
    std::vector<std::shared_ptr<Channel>> serving_; ///< channels for requests of pages; all are there once lazy_ is
    std::size_t next_serving_ = 0;                  ///< guarded by lock_; so is serving_ until lazy_ is there
    std::optional<StopBridge> bridge_;
    std::vector<std::unique_ptr<Channel>> questions_; ///< for unanswered questions of the source; the thread's
    EventFd wake_;                                    ///< wakes the thread
    std::timed_mutex saying_; ///< held while something is sent to the source; lock_ is not held then

    mutable std::mutex lock_; ///< guards all below
    std::condition_variable changed_;
    Phase phase_ = Phase::kReceiving;
    std::shared_ptr<Channel> control_;        ///< null while the connection is cut; a user of it holds a copy
    std::optional<Clock::time_point> cut_at_; ///< nothing while the connection is not cut
    std::string cut_because_;
    UniqueFd source_process_;
    std::optional<LastState> last_state_; ///< has come, and has not been looked at yet
    std::uint64_t times_taken_back_ = 0;  ///< how often the guest has gone on at the source after a last state had come
    std::exception_ptr failure_;
    bool is_full_ = false;
    std::optional<PostCopy> post_copy_; ///< the source wants a post-copy
    bool streams_are_over_ = false;     ///< the source sends no more pages by itself
    bool has_said_complete_ = false;
    bool is_closing_ = false;
    bool starts_paused_ = false;
    std::uint32_t attempt_ = 0;
    std::optional<Clock::time_point> last_state_at_;
    ArrivalReport report_;

    std::optional<LazyMemory> lazy_;     ///< nothing unless the guest came before its memory
    std::atomic<bool> is_loaded_{false}; ///< all of lazy_'s memory is there
    std::optional<std::stop_callback<std::function<void()>>> on_stop_; ///< ends what lazy_ waits for

    std::thread thread_; // last: it uses all of the above
};

} // namespace vmm
