// A machine that begins by going on from a snapshot.
#pragma once

#include <cstddef>
#include <future>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "vmm/config.hpp"
#include "vmm/machine/embedder.hpp"
#include "vmm/machine/first_state.hpp"
#include "vmm/machine/hardware.hpp"
#include "vmm/machine/lazy_memory.hpp"
#include "vmm/machine/stop_bridge.hpp"
#include "vmm/state/snapshot_reader.hpp"
#include "vmm/stop_request.hpp"

namespace vmm {

/// The machine goes on from the snapshot in Config::restore. From put_into() on, threads of this object read the
/// memory. A prefault may fill the second level at the same time, because that depends on addresses alone. With
/// RestoreMode::kCow nothing is read, because the file is the memory. With RestoreMode::kLazy, memory that is touched
/// is read from note_memory() on.
///
/// Threads: one, but for finish().
class SnapshotStart final : public FirstState {
  public:
    /// Opens the snapshot and compares it with `config`. `config` and `stop` must outlive this object. Throws Error if
    /// the snapshot cannot be read, is damaged, or is of another machine than `config` describes.
    SnapshotStart(const Config& config, const StopRequest& stop);
    ~SnapshotStart() override { SnapshotStart::abandon(); }
    SnapshotStart(const SnapshotStart&) = delete;
    SnapshotStart& operator=(const SnapshotStart&) = delete;

    [[nodiscard]] const MachineState* state() const noexcept override { return &snapshot_.state().machine; }
    [[nodiscard]] std::vector<FileRange> memory_files() const override;
    void note_memory(const GuestRam& ram, Embedder& embedder) override;
    void let_go_of_memory() noexcept override;
    [[nodiscard]] bool adopts_page_tables(const prefault::SecondLevelHost& host) const override;
    void put_into(Hardware& hardware, Embedder& embedder) override;
    [[nodiscard]] bool is_lazy() const noexcept override { return lazy_.has_value(); }
    void note_guest_runs(bool runs) noexcept override;
    void finish(const std::stop_token& stop) override;
    void abandon() noexcept override;
    [[nodiscard]] std::optional<LazyReport> lazy_report() const override;
    void start(Hardware& hardware) override;
    [[nodiscard]] std::optional<GuestAddress> generation_id_at() const noexcept override {
        return snapshot_.state().machine.generation_id_at;
    }
    [[nodiscard]] std::span<const std::byte> device_tree() const noexcept override {
        return snapshot_.state().machine.device_tree;
    }

  private:
    void read(const GuestRam& ram) const;
    [[nodiscard]] LazyMemory::Settings lazy_settings();

    const Config& config_;
    const StopRequest& stop_;
    SnapshotReader snapshot_;
    const MemorySource memory_;
    Embedder* embedder_ = nullptr; ///< from note_memory() on
    std::string working_set_problem_;
    std::optional<StopBridge> bridge_; ///< ends the reading
    std::shared_future<void> done_;    ///< ready when the reading is done; throws what the reading threw
    std::thread reading_;              // It uses all of the above, and so does the next.
    std::optional<LazyMemory> lazy_;   ///< nothing unless RestoreMode::kLazy
};

} // namespace vmm
