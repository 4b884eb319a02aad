#include "vmm/cli/broken_memory.hpp"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "vmm/cli/sandbox_alarm.hpp"
#include "vmm/limits.hpp"

namespace vmm {

namespace {

std::atomic<const GuestMemory*> watched{nullptr};
static_assert(std::atomic<const GuestMemory*>::is_always_lock_free, "for use in a signal handler");
struct sigaction action_before {};

/// A line of text that a signal handler can build.
class Line {
  public:
    Line& operator<<(std::string_view text) noexcept {
        const std::size_t count = std::min(text.size(), text_.size() - used_);
        std::copy_n(text.begin(), count, text_.begin() + static_cast<std::ptrdiff_t>(used_));
        used_ += count;
        return *this;
    }
    Line& operator<<(GuestAddress address) noexcept {
        std::array<char, 16> digits{};
        std::size_t first = digits.size();
        std::uint64_t rest = to_integer(address);
        do {
            digits[--first] = "0123456789abcdef"[rest % 16];
            rest /= 16;
        } while (rest != 0);
        return *this << "0x" << std::string_view(digits.data() + first, digits.size() - first);
    }
    /// Writes the line to standard error. Waits for a reader for at most half a second.
    void write() const noexcept {
        constexpr int kMilliseconds = 500;
        pollfd ready{STDERR_FILENO, POLLOUT, 0};
        if (::poll(&ready, 1, kMilliseconds) == 1) {
            [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, text_.data(), used_);
        }
    }

  private:
    std::array<char, 400> text_{}; ///< less than the room that poll() promises in a pipe
    std::size_t used_ = 0;
};

std::optional<GuestAddress> guest_address_of(const void* host) noexcept {
    const GuestMemory* const memory = watched.load();
    if (memory == nullptr) {
        return std::nullopt;
    }
    const auto address = reinterpret_cast<std::uintptr_t>(host); // the number is never made a pointer again
    for (const MemoryRegion& region : memory->regions()) {
        const auto begin = reinterpret_cast<std::uintptr_t>(region.host);
        if (address >= begin && address - begin < region.range.size) {
            return GuestAddress{to_integer(region.range.base) + (address - begin)};
        }
    }
    return std::nullopt;
}

void on_bus_error(int signal, siginfo_t* info, void* /*context*/) {
    if (SandboxAlarm::takes_over(on_bus_error, signal, info)) {
        return;
    }
    // A signal that somebody sends (kill(2)) has a code of 0 or less, and no address.
    const auto guest = info->si_code > 0 ? guest_address_of(info->si_addr) : std::nullopt;
    if (!guest) {
        ::sigaction(signal, &action_before, nullptr);
        ::raise(signal); // the signal is blocked until this handler returns
        return;
    }
    if (info->si_code == BUS_MCEERR_AO) {
        return;
    }
    Line line;
    line << "vmm: error: cannot use the guest's memory at " << *guest;
    if (info->si_code == BUS_MCEERR_AR) {
        line << ": a page of this host's memory is broken (see `dmesg`, and start the guest again)\n";
    } else {
        line << ": the host has no page for it (free memory, or enough huge pages)\n";
    }
    line.write();
    ::_exit(exit_codes::kHostFailed);
}

} // namespace

BrokenMemoryReport::BrokenMemoryReport(const GuestMemory& memory) {
    assert(watched.load() == nullptr);
    watched.store(&memory);
    ::sigaction(SIGBUS, nullptr, &action_before);
    struct sigaction action {};
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    sigemptyset(&action.sa_mask);
    ::sigaction(SIGBUS, &action, nullptr);
}

BrokenMemoryReport::~BrokenMemoryReport() {
    ::sigaction(SIGBUS, &action_before, nullptr);
    watched.store(nullptr);
}

} // namespace vmm
