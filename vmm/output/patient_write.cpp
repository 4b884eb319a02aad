#include "vmm/output/patient_write.hpp"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"

namespace vmm {

void WriteDeadline::note_progress() noexcept {
    quiet_end_ = Clock::now() + patience_.quiet;
}

bool WriteDeadline::wait_for(int fd, short events) noexcept {
    for (;;) {
        const auto end = hurrying_ ? std::min(quiet_end_, hurry_end_) : quiet_end_;
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now()).count();
        if (left <= 0) {
            return false;
        }
        // Negative descriptors are ignored (poll(2)).
        std::array<pollfd, 2> watched{{{fd, events, 0}, {hurrying_ ? -1 : patience_.hurry_fd, POLLIN, 0}}};
        const int ready = ::poll(watched.data(), watched.size(), static_cast<int>(left));
        if (ready < 0 && errno != EINTR) {
            return false;
        }
        if (ready > 0 && watched[1].revents != 0) {
            hurrying_ = true;
            hurry_end_ = Clock::now() + patience_.hurried;
        }
        if (ready > 0 && watched[0].revents != 0) {
            return true;
        }
    }
}

Written write_patiently(const NonblockingOutput& output, std::string_view text, const WritePatience& patience) {
    WriteDeadline deadline(patience);
    Written result;
    bool promised = false; // poll() has promised room
    while (result.bytes < text.size()) {
        const auto written = output.write(std::as_bytes(std::span(text.substr(result.bytes))));
        switch (written.status) {
        case NonblockingOutput::Status::kWritten:
            result.bytes += written.written;
            deadline.note_progress();
            promised = false;
            break;
        case NonblockingOutput::Status::kWouldBlock:
            if (promised) { // There is room for something, but not for this text. The next attempt is made in a moment.
                ::poll(nullptr, 0, 2);
            }
            promised = deadline.wait_for(output.fd(), POLLOUT);
            if (!promised) {
                result.error_number = ETIMEDOUT;
                return result;
            }
            break;
        case NonblockingOutput::Status::kClosed:
            result.error_number = written.error_number;
            return result;
        }
    }
    return result;
}

std::string describe_failure(const Written& written, const WritePatience& patience) {
    if (written.error_number == ETIMEDOUT) {
        return vmm::format("nobody read it for {:.1f} s, after {} bytes (see that its reader runs)",
                           std::chrono::duration<double>(patience.quiet).count(), written.bytes);
    }
    const std::string_view advice = errno_advice(written.error_number);
    return errno_reason(written.error_number) + (advice.empty() ? "" : " (" + std::string(advice) + ")");
}

bool print_result(std::string_view text, const WritePatience& patience) {
    const NonblockingOutput output(STDOUT_FILENO);
    const Written written = write_patiently(output, text, patience);
    if (written.bytes == text.size() || written.error_number == EPIPE) {
        return true;
    }
    print_message("vmm: error: cannot write to standard output: " + describe_failure(written, patience) + "\n");
    return false;
}

void print_message(std::string_view text) noexcept {
    const NonblockingOutput output(STDERR_FILENO);
    [[maybe_unused]] const Written ignored = write_patiently(output, text, {std::chrono::milliseconds(1000), -1, {}});
}

} // namespace vmm
