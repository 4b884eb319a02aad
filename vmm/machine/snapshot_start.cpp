#include "vmm/machine/snapshot_start.hpp"

#include <algorithm>
#include <exception>
#include <memory>
#include <string>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/stoppable_read.hpp"
#include "kvm/host/thread.hpp"
#include "vmm/machine/check_machine.hpp"
#include "vmm/machine/rebuild.hpp"
#include "vmm/state/memory_file.hpp"
#include "vmm/state/working_set.hpp"

namespace vmm {

SnapshotStart::SnapshotStart(const Config& config, const StopRequest& stop)
    : config_(config), stop_(stop), snapshot_(config.restore.value().path), memory_(snapshot_.memory()) {
    check_machine_like(snapshot_.state().machine, config,
                       "cannot go on from the snapshot " + config.restore->path + ": ");
    if (restores_lazily(config)) {
        lazy_.emplace(
            memory_.layout, [this] { return std::make_unique<ChunkReader>(memory_); },
            certain_page_bytes(config.page_size), lazy_settings());
    }
}

LazyMemory::Settings SnapshotStart::lazy_settings() {
    constexpr unsigned kMostDemandThreads = 4; // each access that waits is made by one vCPU or one device
    LazyMemory::Settings settings;
    settings.demand_threads = std::min(config_.vcpus, kMostDemandThreads);
    settings.workers = config_.prefault.workers;
    settings.record_for = config_.restore->record_working_set;
    if (settings.record_for.count() == 0) {
        try {
            settings.working_set = read_working_set(snapshot_);
        } catch (const Error& error) { // The working set is only advice.
            working_set_problem_ = error.what();
        }
    }
    settings.recorded = [this](const WorkingSet& set) {
        try {
            write_working_set(snapshot_, set);
            embedder_->log(LogLevel::kInfo,
                           vmm::format("the working set of the snapshot {} is {} of {} chunks", config_.restore->path,
                                       set.size(), snapshot_.layout().chunks()));
        } catch (const Error& error) { // The guest does not need the working set.
            embedder_->warn(error.what());
        }
    };
    settings.failed = [this](std::exception_ptr why) {
        try {
            std::rethrow_exception(why);
        } catch (const std::exception& error) {
            embedder_->warn(std::string("the guest cannot go on without memory that cannot be had: ") + error.what());
        } catch (...) { // note_failure() keeps it.
        }
        embedder_->note_failure(std::move(why));
    };
    return settings;
}

void SnapshotStart::note_memory(const GuestRam& ram, Embedder& embedder) {
    embedder_ = &embedder;
    if (!working_set_problem_.empty()) {
        embedder.log(LogLevel::kWarning, working_set_problem_);
    }
    if (lazy_) {
        lazy_->serve(ram);
    }
}

void SnapshotStart::abandon() noexcept {
    if (reading_.joinable()) {
        bridge_->request_stop();
        reading_.join();
    }
    if (lazy_) {
        lazy_->abandon();
    }
}

void SnapshotStart::let_go_of_memory() noexcept {
    abandon();
    if (lazy_) {
        lazy_->let_go();
    }
}

std::optional<LazyReport> SnapshotStart::lazy_report() const {
    return lazy_ ? std::optional(lazy_->report()) : std::nullopt;
}

std::vector<FileRange> SnapshotStart::memory_files() const {
    std::vector<FileRange> files;
    if (config_.restore->mode != RestoreMode::kCow) {
        return files;
    }
    for (const MemoryPiece& region : memory_.layout.regions()) {
        for (std::uint64_t offset = 0; offset < region.range.size; offset += kMemoryChunkBytes) {
            const std::uint64_t file_offset = region.file_offset + offset;
            const std::size_t file = memory_.index[static_cast<std::size_t>(file_offset / kMemoryChunkBytes)].file;
            const std::uint64_t bytes = std::min(kMemoryChunkBytes, region.range.size - offset);
            // Neighbouring chunks in one file become one mapping.
            if (offset != 0 && files.back().fd == memory_.files[file].fd) {
                files.back().range.size += bytes;
            } else {
                files.push_back({{GuestAddress{to_integer(region.range.base) + offset}, bytes},
                                 memory_.files[file].fd,
                                 file_offset,
                                 Sharing::kPrivate});
            }
        }
    }
    return files;
}

bool SnapshotStart::adopts_page_tables(const prefault::SecondLevelHost& /*host*/) const {
    return state()->adopted_page_tables.has_value();
}

void SnapshotStart::put_into(Hardware& hardware, Embedder& embedder) {
    const MachineState& state = snapshot_.state().machine;
    if (state.adopted_page_tables && hardware.second_level.page_tables() != *state.adopted_page_tables) {
        throw Error("cannot go on from the snapshot " + config_.restore->path +
                    ": its guest uses page tables that this version of vmm has elsewhere (" +
                    to_string(*state.adopted_page_tables) + ", here " + to_string(hardware.second_level.page_tables()) +
                    "): use the version that took it");
    }
    embedder.log(LogLevel::kInfo, "going on from the snapshot " + config_.restore->path);
    if (config_.restore->mode == RestoreMode::kCow) {
        if (config_.prefault.scope == prefault::Scope::kNone) {
            embedder.log(LogLevel::kInfo,
                         "guest memory is the snapshot's file: the first access to each page is a fault, and the first "
                         "write copies it; a prefault does both for all of it before the guest goes on");
        }
        return;
    }
    bridge_.emplace(stop_);
    if (lazy_) {
        const bool fills = config_.prefault.scope == prefault::Scope::kAll && config_.prefault.ranges.empty();
        lazy_->load(fills ? &hardware.second_level : nullptr, bridge_->token());
        return;
    }
    std::packaged_task<void()> task([this, &ram = hardware.ram] { read(ram); });
    done_ = task.get_future().share();
    reading_ = start_thread("the memory of a snapshot",
                            [task = std::make_shared<std::packaged_task<void()>>(std::move(task))] { (*task)(); });
}

void SnapshotStart::read(const GuestRam& ram) const {
    const MemoryMovers movers{.workers = config_.prefault.workers};
    if (!read_memory(ram.memory(), ram.placement(), memory_, movers, bridge_->token())) {
        throw StoppedError("cannot go on from the snapshot " + config_.restore->path + ": a stop was requested");
    }
}

void SnapshotStart::note_guest_runs(bool runs) noexcept {
    if (lazy_) {
        lazy_->note_guest_runs(runs);
    }
}

void SnapshotStart::finish(const std::stop_token& stop) {
    if (lazy_) {
        lazy_->wait(stop);
    } else if (done_.valid()) {
        done_.get();
    }
}

void SnapshotStart::start(Hardware& hardware) {
    restore_clocks_and_interrupts(hardware, *state(),
                                  {.clock = config_.restore->clock == RestoreClock::kRealtime
                                                ? kvm::ClockPolicy::kRealtime
                                                : kvm::ClockPolicy::kStopped,
                                   .generation = GenerationPolicy::kNew});
}

} // namespace vmm
