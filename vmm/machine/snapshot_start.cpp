#include "vmm/machine/snapshot_start.hpp"

#include <memory>
#include <string>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "vmm/machine/rebuild.hpp"
#include "vmm/machine/vcpu_thread.hpp"
#include "vmm/state/memory_file.hpp"
#include "vmm/state/snapshot_files.hpp"

namespace vmm {

SnapshotStart::SnapshotStart(const Config& config, const StopRequest& stop)
    : config_(config), stop_(stop), snapshot_(config.restore.value().path) {
    check_machine();
}

void SnapshotStart::abandon() noexcept {
    if (reading_.joinable()) {
        bridge_->request_stop();
        reading_.join();
    }
}

/// The devices compare themselves when they are made.
void SnapshotStart::check_machine() const {
    const MachineState& state = snapshot_.state().machine;
    const std::string tried = "cannot go on from the snapshot " + config_.restore->path + ": ";
    if (state.boot_memory_bytes != config_.memory_bytes) {
        throw Error(tried + "its guest has " + format_bytes(state.boot_memory_bytes) +
                    " of memory, and this machine is to have " + format_bytes(config_.memory_bytes) +
                    " (Config::memory_bytes has to be the same)");
    }
    if (state.vcpus.size() != config_.vcpus) {
        throw Error(tried + vmm::format("its guest has {} vCPUs, and this machine is to have {} (Config::vcpus has to "
                                        "be the same)",
                                        state.vcpus.size(), config_.vcpus));
    }
    for (const GuestRange& range : state.memory) {
        if (!is_aligned(range.size, certain_page_bytes(config_.page_size))) {
            throw Error(tried + "its memory at " + to_string(range) + " is not of whole pages of " +
                        std::string(to_string(config_.page_size)) + " (Config::page_size: take smaller pages)");
        }
    }
}

std::vector<FileRange> SnapshotStart::memory_files() const {
    std::vector<FileRange> files;
    if (config_.restore->mode == RestoreMode::kCow) {
        for (const MemoryPiece& region : snapshot_.layout().regions()) {
            files.push_back({region.range, snapshot_.memory_fd(), region.file_offset, Sharing::kPrivate});
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
    std::packaged_task<void()> task([this, &ram = hardware.ram] { read(ram); });
    done_ = task.get_future().share();
    reading_ = start_thread("the memory of a snapshot",
                            [task = std::make_shared<std::packaged_task<void()>>(std::move(task))] { (*task)(); });
}

void SnapshotStart::read(const GuestRam& ram) const {
    const MemoryFile file{.fd = snapshot_.memory_fd(),
                          .name = (snapshot_.directory() / snapshot_files::kMemory).string()};
    const MemoryMovers movers{.workers = config_.prefault.workers};
    if (!read_memory(ram.memory(), ram.placement(), snapshot_.layout(), snapshot_.state().memory.value(), file, movers,
                     bridge_->token())) {
        throw Error("cannot go on from the snapshot " + config_.restore->path + ": a stop was requested");
    }
}

void SnapshotStart::finish() {
    if (done_.valid()) {
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
