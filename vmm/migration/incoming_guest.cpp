#include "vmm/migration/incoming_guest.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <exception>
#include <iterator>
#include <stop_token>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/event_fd.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/stoppable_read.hpp"
#include "vmm/migration/endpoints.hpp"
#include "vmm/migration/peer_process.hpp"
#include "vmm/state/state_file.hpp"

namespace vmm {

namespace {

/// The source pauses its guest for its first state, which may take as long as its devices do.
constexpr std::chrono::milliseconds kPatienceForState{60'000};
/// And how long all of it may take: the next guest waits for so long.
constexpr std::chrono::seconds kPatienceForAll{120};

/// Throws Error unless the files are such that nothing that the source does to them later can hurt this process.
void check_shared(const SharedMemory& memory, const std::vector<UniqueFd>& files, const SnapshotState& state) {
    const std::string tried = "cannot take over the guest's memory: ";
    if (memory.files.size() != state.machine.memory.size() || files.size() != memory.files.size()) {
        throw Error(tried + "it comes in another number of pieces than the guest has");
    }
    for (auto one = memory.files.begin(); one != memory.files.end(); ++one) {
        const SharedFile& part = *one;
        if (std::ranges::find(std::next(one), memory.files.end(), part.range, &SharedFile::range) !=
            memory.files.end()) {
            throw Error(tried + "its memory at " + to_string(part.range) + " comes twice");
        }
        if (std::ranges::find(state.machine.memory, part.range) == state.machine.memory.end()) {
            throw Error(tried + "the guest has no memory at " + to_string(part.range));
        }
        if (part.descriptor >= files.size()) {
            throw Error(tried + "a file is missing");
        }
        const int fd = files[part.descriptor].get();
        struct stat file {};
        // What is sealed cannot shrink under a mapping, which would end this process (memfd_create(2)).
        const int seals = ::fcntl(fd, F_GET_SEALS);
        if (::fstat(fd, &file) != 0 || seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
            throw Error(tried + "what comes is no sealed file in memory");
        }
        const auto size = static_cast<std::uint64_t>(file.st_size);
        if (part.file_offset > size || part.range.size > size - part.file_offset) {
            throw Error(tried + "its file is shorter than it");
        }
    }
}

} // namespace

IncomingGuest::Impl::Impl(const Options& wanted, LogSink sink)
    : options(wanted), log(std::move(sink)), reception(std::in_place, wanted.address, wanted.security,
                                                       [this](const std::string& line) {
                                                           if (log) {
                                                               log(LogLevel::kWarning, line);
                                                           }
                                                       }),
      address(reception->address()) {}

void IncomingGuest::Impl::wait(const std::stop_token& stop) {
    const EventFd stopped;
    const std::stop_callback wake(stop, [&stopped] { stopped.signal(); });
    constexpr const char* kTried = "wait for a guest";
    if (!reception) {
        throw UsageError("cannot wait for a guest: nobody listens any more (make another IncomingGuest: one that had "
                         "begun to arrive has ended this one)");
    }
    while (!announced.control) {
        std::array<pollfd, 2> fds{{{stopped.fd(), POLLIN, 0}, {reception->fd(), POLLIN, 0}}};
        if (::poll(fds.data(), fds.size(), -1) < 0 && errno != EINTR) {
            throw_errno(errno, kTried);
        }
        if (stop.stop_requested()) {
            throw StoppedError("cannot wait for a guest: a stop was requested");
        }
        if (auto visitor = reception->take()) {
            receive(std::move(*visitor), stop);
        }
    }
}

void IncomingGuest::Impl::receive(Reception::Visitor visitor, const std::stop_token& stop) {
    Channel& channel = *visitor.channel;
    try {
        const std::stop_callback hang_up(stop, [&channel] { channel.shut_down(); });
        if (visitor.first.type == MessageType::kQuestion) {
            send_message(channel, MessageType::kAnswer, encode(Answer{false}));
            return;
        }
        if (visitor.first.type != MessageType::kHello) {
            throw Error("it belongs to a migration of which nothing is known here");
        }
        Announced guest;
        guest.hello = decode<Hello>(visitor.first);
        send_message(channel, MessageType::kWelcome, encode(Welcome{choose_protocol(guest.hello), own_process_name()}));
        channel.set_patience(kPatienceForState);
        channel.set_deadline(give_up_after(kPatienceForAll));
        const Message state = receive_message(channel);
        if (state.type != MessageType::kFirstState) {
            throw Error("it does not say what the machine looks like");
        }
        guest.first_state = decode_state(state.body);
        if (guest.first_state.machine.vcpus.empty()) {
            throw Error("its machine has no vCPU");
        }
        if (guest.hello.shares_memory) {
            const Message memory = receive_message(channel);
            if (memory.type != MessageType::kMemory) {
                throw Error("it does not hand its memory over");
            }
            guest.shared_memory = decode<SharedMemory>(memory);
            guest.files = channel.receive_descriptors();
            check_shared(guest.shared_memory, guest.files, guest.first_state);
        }
        channel.set_deadline(Channel::kNoDeadline);
        hands_memory_over = guest.hello.shares_memory;
        may_post_copy = guest.hello.may_post_copy && !hands_memory_over;
        guest.control = std::move(visitor.channel);
        announced = std::move(guest);
    } catch (const std::exception& error) {
        if (log) {
            log(LogLevel::kWarning, "a guest from " + channel.name() + " is not taken: " + error.what());
        }
        try {
            send_message(channel, MessageType::kRefused, encode(Why{error.what()}));
        } catch (const Error&) { // It has gone.
        }
    }
}

void IncomingGuest::Impl::refuse(std::string_view why) noexcept {
    try {
        if (announced.control) {
            send_message(*announced.control, MessageType::kRefused, encode(Why{std::string(why)}));
        }
    } catch (...) { // It has gone.
    }
    announced = {};
}

void IncomingGuest::Impl::check_announced() const {
    if (!announced.control) {
        throw UsageError("cannot make a machine of a guest that has not arrived (call IncomingGuest::wait() first, and "
                         "make one machine of it)");
    }
}

IncomingGuest::IncomingGuest(const Options& options, LogSink log)
    : impl_(std::make_unique<Impl>(options, std::move(log))) {}
IncomingGuest::~IncomingGuest() = default;

const MigrationAddress& IncomingGuest::address() const noexcept {
    return impl_->address;
}

void IncomingGuest::wait(const std::stop_token& stop) {
    impl_->wait(stop);
}

const std::string& IncomingGuest::config() const {
    impl_->check_announced();
    return impl_->announced.hello.config;
}

bool IncomingGuest::hands_memory_over() const noexcept {
    return impl_->hands_memory_over;
}

bool IncomingGuest::may_post_copy() const noexcept {
    return impl_->may_post_copy;
}

void IncomingGuest::refuse(std::string_view why) noexcept {
    impl_->refuse(why);
}

} // namespace vmm
