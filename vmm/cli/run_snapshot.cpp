#include "vmm/cli/run_snapshot.hpp"

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <span>
#include <string>

#include <nlohmann/json.hpp>

#include "kvm/host/format.hpp"
#include "kvm/host/guest_address.hpp"
#include "prefault/host/cpu_list.hpp"
#include "vmm/cli/snapshot_info.hpp"
#include "vmm/limits.hpp"
#include "vmm/output/nonblocking_output.hpp"
#include "vmm/output/patient_write.hpp"
#include "vmm/state/snapshot_reader.hpp"
#include "vmm/state/verify_memory.hpp"

namespace vmm {

namespace {

/// A line on standard error, if that is a terminal. It shows the progress, and is removed at the end. Threads: one at a
/// time.
class VerifyLine {
  public:
    VerifyLine() : is_terminal_(::isatty(STDERR_FILENO) != 0) {}
    ~VerifyLine() {
        if (is_drawn_) {
            write("\r\x1b[K");
        }
    }
    VerifyLine(const VerifyLine&) = delete;
    VerifyLine& operator=(const VerifyLine&) = delete;

    void show(std::uint64_t done_bytes, std::uint64_t all_bytes) noexcept {
        constexpr std::chrono::milliseconds kPause{100};
        const auto now = std::chrono::steady_clock::now();
        if (!is_terminal_ || now < next_) {
            return;
        }
        next_ = now + kPause;
        is_drawn_ = true;
        write(format("\rvmm snapshot: {} of {} of memory checked\x1b[K", format_bytes(done_bytes),
                     format_bytes(all_bytes)));
    }

  private:
    /// If the terminal takes no text, the line is dropped.
    void write(const std::string& text) const { static_cast<void>(output_.write(std::as_bytes(std::span(text)))); }

    NonblockingOutput output_{STDERR_FILENO};
    bool is_terminal_;
    bool is_drawn_ = false;
    std::chrono::steady_clock::time_point next_;
};

std::string verify(const SnapshotCommand& command, const SnapshotReader& snapshot) {
    const unsigned threads =
        command.workers != 0 ? command.workers : static_cast<unsigned>(prefault::usable_cpu_list().size());
    {
        VerifyLine line;
        verify_memory(snapshot, threads,
                      [&line](std::uint64_t done_bytes, std::uint64_t all_bytes) { line.show(done_bytes, all_bytes); });
    }
    if (command.json) {
        nlohmann::ordered_json answer;
        answer["directory"] = snapshot.directory().string();
        answer["verified"] = true; // a failure is an error
        answer["memory_bytes"] = snapshot.layout().memory_bytes();
        return answer.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + '\n';
    }
    return format("{}: its state and {} of memory are as they were saved\n", snapshot.directory().string(),
                  format_bytes(snapshot.layout().memory_bytes()));
}

} // namespace

int run_snapshot(const SnapshotCommand& command) {
    const SnapshotReader snapshot(command.directory);
    std::string text;
    switch (command.action) {
    case SnapshotCommand::Action::kInfo:
        text = command.json ? snapshot_info_json(snapshot) : snapshot_info_text(snapshot);
        break;
    case SnapshotCommand::Action::kVerify:
        text = verify(command, snapshot);
        break;
    }
    return print_result(text) ? exit_codes::kSuccess : exit_codes::kHostFailed;
}

} // namespace vmm
