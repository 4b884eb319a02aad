#include "vmm/machine/snapshot_taking.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/stopwatch.hpp"
#include "prefault/options.hpp"
#include "vmm/limits.hpp"
#include "vmm/machine/capture.hpp"
#include "vmm/refuse_nul.hpp"
#include "vmm/state/memory_file.hpp"
#include "vmm/state/page_bits.hpp"
#include "vmm/state/snapshot_files.hpp"
#include "vmm/state/snapshot_reader.hpp"
#include "vmm/state/snapshot_writer.hpp"
#include "vmm/state/state_file.hpp"

namespace vmm {

namespace {

using Clock = std::chrono::steady_clock;

/// The most passes over memory while the guest runs.
constexpr unsigned kMostLivePasses = 4;
/// If at most this much is left, the guest is stopped to write it.
constexpr std::uint64_t kLittleBytes = 2 * kMiB;

void check(const SnapshotOptions& options) {
    if (options.directory.empty()) {
        throw Error("cannot take a snapshot without a name for its directory");
    }
    refuse_nul(options.directory, "the directory of a snapshot");
    refuse_nul(options.base, "the directory of the snapshot that another one builds on");
    if (options.workers > prefault::kMaxWorkers) {
        throw Error(vmm::format("cannot write a snapshot with {} threads: 1 to {} are possible", options.workers,
                                prefault::kMaxWorkers));
    }
    if (options.config.size() > snapshot_files::kMostConfigBytes) {
        throw Error("cannot keep " + format_bytes(options.config.size()) + " of configuration with a snapshot: " +
                    format_bytes(snapshot_files::kMostConfigBytes) + " is the most");
    }
}

/// The ranges of all memory, in ascending order.
std::vector<GuestRange> ranges_of(const GuestMemory& memory) {
    std::vector<GuestRange> ranges;
    for (const MemoryRegion& region : memory.regions()) {
        ranges.push_back(region.range);
    }
    std::ranges::sort(ranges, {}, &GuestRange::base);
    return ranges;
}

/// The work of one call of take_snapshot().
class Taking {
  public:
    Taking(const MachineToSave& machine, const SnapshotOptions& options, const std::stop_token& stop)
        : machine_(machine), options_(options), stop_(stop), writer_(options.directory),
          base_(options.base.empty() ? nullptr : std::make_unique<SnapshotReader>(options.base)),
          hold_(machine.hardware.second_level), layout_(ranges_of(machine.hardware.ram.memory())),
          direct_(writer_.open_memory(O_DIRECT)), file_{writer_.memory_fd(), direct_.get(),
                                                        options.directory + "/" + snapshot_files::kMemory},
          base_memory_(base_ ? std::optional(base_->memory()) : std::nullopt),
          movers_{options.workers != 0 ? options.workers : machine.config.prefault.workers,
                  [this](GuestRange part) {
                      if (log_) {
                          log_->watch(part);
                      }
                  },
                  {}},
          memory_(machine.hardware.ram.memory(), machine.hardware.ram.placement(), layout_, file_, movers_,
                  base_memory_ ? &*base_memory_ : nullptr),
          was_paused_(machine.pause.is_paused()) {
        if (::ftruncate(writer_.memory_fd(), static_cast<off_t>(layout_.file_bytes())) != 0) {
            throw_errno(errno, "give " + file_.name + " its size of " + format_bytes(layout_.file_bytes()),
                        {{EFBIG, "raise `ulimit -f`, or use another file system"}});
        }
        if (options.progress) {
            movers_.progress = [this](std::uint64_t done, std::uint64_t total) {
                options_.progress({stage_, done, total});
            };
        }
        report_.memory_bytes = machine.hardware.ram.present_bytes();
    }

    SnapshotReport run() {
        const Clock::time_point start = Clock::now();
        try {
            report_.complete = (was_paused_ || write_live()) && write_rest();
        } catch (...) {
            go_on();
            throw;
        }
        if (!report_.complete || options_.resume) {
            go_on();
        }
        if (report_.complete) {
            // The dirty log ends first, so that mappings that the guest makes while the files are written stay.
            log_.reset();
            writer_.commit(state_, options_.config);
        }
        report_.written_bytes = memory_.written_bytes();
        report_.based_bytes = memory_.based_bytes();
        report_.total_seconds = seconds_since(start);
        return report_;
    }

  private:
    /// Writes all of memory, and then what the guest changes meanwhile, until little of that is left. Returns false if
    /// a stop was requested.
    bool write_live() {
        pause();
        machine_.pause.look_while_paused(kTried, [this] { log_.emplace(hold_); });
        resume();
        stage_ = "memory";
        if (!memory_.write_all(stop_)) {
            return false;
        }
        ++report_.passes;
        left_ = log_->take_of_vcpus();
        stage_ = "memory that has changed";
        std::uint64_t before = report_.memory_bytes;
        std::uint64_t bytes = bytes_of(left_);
        // Without these limits, a guest that changes memory as fast as it is written would be written again and again.
        while (report_.passes < kMostLivePasses && bytes > kLittleBytes && bytes < before / 2) {
            if (!memory_.write_pages(left_, stop_)) {
                return false;
            }
            ++report_.passes;
            left_ = log_->take_of_vcpus();
            before = std::exchange(bytes, bytes_of(left_));
        }
        return true;
    }

    /// Stops the guest, and writes its state and the memory that is left. Returns false if a stop was requested.
    bool write_rest() {
        pause();
        return machine_.pause.look_while_paused(kTried, [this] {
            const std::uint64_t before = memory_.written_bytes();
            if (log_) {
                join(left_, log_->take_last());
            }
            stage_ = log_ ? "memory that has changed" : "memory";
            if (!(log_ ? memory_.write_pages(left_, stop_) : memory_.write_all(stop_))) {
                return false;
            }
            ++report_.passes;
            report_.stopped_bytes = memory_.written_bytes() - before;
            SnapshotState state{.origin = origin_here(),
                                .machine = capture(machine_.hardware, machine_.config, machine_.first),
                                .memory = memory_.index(),
                                .base = {}};
            if (base_ && memory_.based_bytes() != 0) { // otherwise the snapshot does not need the base
                state.base = base_->as_base(options_.directory);
            }
            state_ = encode_state(state);
            note_standstill();
            return true;
        });
    }

    void pause() {
        const Clock::time_point asked = Clock::now();
        machine_.pause.pause(options_.within);
        if (!was_paused_) {
            stands_still_since_ = asked;
        }
    }
    void resume() {
        machine_.pause.resume();
        note_standstill();
        stands_still_since_.reset();
    }
    /// Notes how long the guest has stood still. If the guest stays paused, it has stood still until its state was
    /// known.
    void note_standstill() {
        if (stands_still_since_) {
            report_.stopped_seconds = std::max(report_.stopped_seconds, seconds_since(*stands_still_since_));
        }
    }
    /// Lets the guest go on if it ran before, or if the options ask for it.
    void go_on() {
        if (!was_paused_ || (report_.complete && options_.resume)) {
            resume();
        }
    }

    static constexpr const char* kTried = "take a snapshot";

    const MachineToSave& machine_;
    const SnapshotOptions& options_;
    const std::stop_token& stop_;
    SnapshotWriter writer_;
    std::unique_ptr<SnapshotReader> base_;
    MachineSecondLevel::Hold hold_;
    MemoryLayout layout_;
    UniqueFd direct_;
    MemoryFile file_;
    std::optional<MemorySource> base_memory_;
    MemoryMovers movers_;
    MemoryWriter memory_;
    bool was_paused_;
    std::optional<MachineSecondLevel::DirtyLog> log_;
    PageBits left_; ///< pages that must be written again
    std::vector<std::byte> state_;
    std::string_view stage_;
    std::optional<Clock::time_point> stands_still_since_;
    SnapshotReport report_;
};

} // namespace

SnapshotReport take_snapshot(const MachineToSave& machine, const SnapshotOptions& options,
                             const std::stop_token& stop) {
    check(options);
    SnapshotReport report = Taking(machine, options, stop).run();
    if (report.passes > 1) {
        report.refilled = fill_again(machine, stop);
    }
    return report;
}

} // namespace vmm
