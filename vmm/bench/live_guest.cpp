#include "vmm/bench/live_guest.hpp"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <fstream>
#include <iterator>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"

namespace vmm::bench {

namespace {

using Clock = std::chrono::steady_clock;

Clock::time_point after(double seconds) {
    return Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

} // namespace

LiveGuest::LiveGuest(std::vector<std::string> words, const std::string& errors, int stop_fd, double timeout_seconds)
    : errors_(errors), stop_fd_(stop_fd), timeout_seconds_(timeout_seconds) {
    std::array<int, 2> in{};
    std::array<int, 2> out{};
    if (::pipe2(in.data(), O_CLOEXEC) != 0) {
        throw_errno(errno, "make a pipe for a guest");
    }
    const UniqueFd guest_in(in[0]);
    in_.reset(in[1]);
    if (::pipe2(out.data(), O_CLOEXEC) != 0) {
        throw_errno(errno, "make a pipe for a guest");
    }
    out_.reset(out[0]);
    const UniqueFd guest_out(out[1]);
    const UniqueFd guest_errors(::open(errors.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    if (!guest_errors) {
        throw_errno(errno, "write " + errors);
    }
    ProgramSpec spec;
    spec.program = words.front();
    spec.arguments = std::move(words);
    spec.in = guest_in.get();
    spec.out = guest_out.get();
    spec.errors = guest_errors.get();
    spec.ends_with_us = true;
    process_.emplace(spec, "run a guest");
}

void LiveGuest::say(std::string_view bytes) {
    // A few bytes fit into an empty pipe. The write fails only if the program has gone, and the next wait notices that.
    [[maybe_unused]] const ssize_t written = ::write(in_.get(), bytes.data(), bytes.size());
}

std::string LiveGuest::wait_for(std::string_view start) {
    auto line = find(start);
    if (!line) {
        throw Error("the guest ended early: " + wait().problem());
    }
    return *std::move(line);
}

std::optional<std::string> LiveGuest::find(std::string_view start) {
    const auto deadline = after(timeout_seconds_);
    for (;;) {
        for (std::size_t end = 0; (end = output_.find('\n')) != std::string::npos;) {
            std::string line = output_.substr(0, end);
            output_.erase(0, end + 1);
            if (line.ends_with('\r')) {
                line.pop_back();
            }
            if (line.starts_with(start)) {
                return line;
            }
            if (line.starts_with("error ")) {
                throw Error("the guest says: " + line.substr(0, 200));
            }
        }
        if (!read_more(deadline)) {
            return std::nullopt;
        }
    }
}

void LiveGuest::wait_for_end() {
    const auto deadline = after(timeout_seconds_);
    while (read_more(deadline)) {
        output_.clear();
    }
    if (const ChildEnd end = wait(); !end.succeeded()) {
        throw Error(end.problem());
    }
}

bool LiveGuest::read_more(Clock::time_point deadline) {
    std::array<pollfd, 2> fds{{{out_.get(), POLLIN, 0}, {stop_fd_, POLLIN, 0}}};
    for (;;) {
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
        if (left < 0) {
            throw Error(vmm::format("the guest said nothing for {:.0f} s", timeout_seconds_));
        }
        const int ready = ::poll(fds.data(), fds.size(), static_cast<int>(std::min<long>(left + 1, 60'000)));
        if (fds[1].revents != 0) {
            throw Error("a stop was requested");
        }
        if (ready <= 0 || fds[0].revents == 0) {
            continue; // A signal came, or it takes long.
        }
        std::array<char, 4096> buffer{};
        const ssize_t count = ::read(out_.get(), buffer.data(), buffer.size());
        if (count < 0 && (errno == EINTR || errno == EAGAIN)) {
            continue;
        }
        output_.append(buffer.data(), static_cast<std::size_t>(std::max<ssize_t>(count, 0)));
        return count > 0;
    }
}

ChildEnd LiveGuest::wait() {
    ChildEnd end;
    end.status = process_->wait();
    std::ifstream said(errors_, std::ios::binary);
    end.errors.assign(std::istreambuf_iterator(said), {});
    return end;
}

} // namespace vmm::bench
