#include "vmm/machine/arrival.hpp"

#include <fcntl.h>
#include <poll.h>

#include <array>
#include <cerrno>
#include <optional>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/stoppable_read.hpp"
#include "kvm/x86/saved_vcpu.hpp"
#include "vmm/machine/check_machine.hpp"
#include "vmm/machine/rebuild.hpp"
#include "vmm/machine/stop_bridge.hpp"
#include "vmm/machine/vcpu_thread.hpp"
#include "vmm/migration/messages.hpp"
#include "vmm/migration/peer_process.hpp"
#include "vmm/state/state_file.hpp"

namespace vmm {

namespace {

/// A source that says nothing for so long, on none of its connections, has gone.
constexpr std::chrono::milliseconds kPatienceWithSource{60'000};
/// How long the source is waited for that may ask whether its guest runs here.
constexpr std::chrono::seconds kPatienceWithQuestions{30};
/// How long a last word to the source may take.
constexpr std::chrono::milliseconds kPatienceToSay{2000};
constexpr int kTurnMs = 100;

constexpr const char* kTriedToArrive = "cannot go on with the guest that arrives: ";

} // namespace

Arrival::Arrival(const Config& config, const StopRequest& stop)
    : config_(config), stop_(stop), guest_(config.incoming->impl()),
      session_((guest_.check_announced(), guest_.announced.hello.session)),
      is_shared_(guest_.announced.hello.shares_memory), state_(guest_.announced.first_state) {
    try {
        check_machine_like(state_.machine, config, kTriedToArrive);
    } catch (const Error& error) {
        guest_.refuse(error.what());
        throw;
    }
    IncomingGuest::Impl::Announced announced = std::exchange(guest_.announced, {});
    control_ = std::move(announced.control);
    files_ = std::move(announced.files);
    shared_memory_ = std::move(announced.shared_memory);
    control_->set_patience(kPatienceWithSource);
    if (control_->peer_process()) {
        source_process_ = UniqueFd(::fcntl(control_->peer_process().get(), F_DUPFD_CLOEXEC, 0));
    }
    streams_ = announced.hello.streams;
    report_.shared = is_shared_;
}

Arrival::~Arrival() {
    {
        const std::lock_guard hold(lock_);
        is_closing_ = true;
        if (control_ && (phase_ == Phase::kReceiving || phase_ == Phase::kPrepared)) {
            control_->shut_down();
        }
    }
    wake_.signal();
    if (thread_.joinable()) {
        thread_.join();
    }
}

std::vector<FileRange> Arrival::memory_files() const {
    std::vector<FileRange> ranges;
    for (const SharedFile& part : shared_memory_.files) {
        ranges.push_back({part.range, files_[part.descriptor].get(), part.file_offset, Sharing::kShared});
    }
    return ranges;
}

bool Arrival::adopts_page_tables(const prefault::SecondLevelHost& /*host*/) const {
    return state_.machine.adopted_page_tables.has_value();
}

void Arrival::note_memory(const GuestRam& ram, Embedder& embedder) {
    files_.clear(); // GuestRam has its own.
    embedder.log(LogLevel::kInfo, vmm::format("a guest arrives from {}", control_->name()));
    if (!is_shared_) {
        pages_ = std::make_unique<PageReceiver>(
            ram.memory(), streams_,
            PageReceiver::Callbacks{.synced = [this](std::uint64_t round) { note_synced(round); },
                                    .failed =
                                        [this](std::exception_ptr why) {
                                            try {
                                                std::rethrow_exception(why);
                                            } catch (const LinkError& error) {
                                                note_stream_cut(error.what());
                                            } catch (...) {
                                                fail(std::current_exception());
                                            }
                                        }});
    }
}

void Arrival::wait_for_state(MachineSecondLevel& second_level, std::deque<kvm::Vcpu>& vcpus) {
    StopBridge bridge(stop_);
    const auto stopped = [this] {
        fail(std::make_exception_ptr(StoppedError(std::string(kTriedToArrive) + "a stop was requested")));
    };
    const std::stop_callback on_stop(bridge.token(), stopped);
    if (adopts_page_tables(second_level.host())) {
        second_level.prepare(bridge.token());
        if (second_level.page_tables() != *state_.machine.adopted_page_tables) {
            throw Error(std::string(kTriedToArrive) +
                        "it uses page tables that this version of vmm has elsewhere: use the version that it runs in");
        }
    }
    thread_ = start_thread("the source of a guest", [this] { converse(); });
    if (!say(MessageType::kAccept)) {
        note_cut("the source has gone");
    }
    fill(second_level);
    std::unique_lock hold(lock_);
    for (;;) {
        changed_.wait(hold, [this] { return failure_ || phase_ >= Phase::kOurs || last_state_; });
        if (failure_) {
            hold.unlock();
            rethrow_failure();
        }
        if (phase_ >= Phase::kOurs) {
            break;
        }
        std::vector<std::byte> bytes = std::move(*last_state_);
        last_state_.reset();
        hold.unlock();
        prepare(std::move(bytes), second_level, vcpus);
        hold.lock();
    }
    hold.unlock();
    if (pages_) {
        pages_->cut(); // The source sends nothing more.
        report_.received_bytes = pages_->received_bytes();
    }
}

void Arrival::fill(MachineSecondLevel& second_level) {
    if (config_.prefault.scope != prefault::Scope::kNone && config_.prefault_when == PrefaultWhen::kBefore) {
        StopBridge bridge(stop_);
        prefault_ = second_level.fill(config_.prefault, bridge.token());
    }
    const std::lock_guard hold(lock_);
    is_full_ = true;
    report_.fill_seconds = prefault_ ? prefault_->total_seconds : 0;
}

/// Puts the last state where it belongs, as far as that can be undone, and says so.
void Arrival::prepare(std::vector<std::byte> bytes, MachineSecondLevel& second_level, std::deque<kvm::Vcpu>& vcpus) {
    SnapshotState last = decode_state(bytes);
    check_machine_like(last.machine, config_, kTriedToArrive);
    if (last.machine.memory != state_.machine.memory ||
        last.machine.adopted_page_tables != state_.machine.adopted_page_tables) {
        throw Error(std::string(kTriedToArrive) + "it has become another machine on its way");
    }
    for (std::size_t id = 0; id < vcpus.size(); ++id) {
        static_cast<void>(kvm::restore_vcpu(vcpus[id], last.machine.vcpus[id])); // What is refused was said before.
    }
    const std::uint64_t mapped = second_level.mapped().bytes();
    {
        const std::lock_guard hold(lock_);
        state_ = std::move(last);
        report_.mapped_bytes = mapped;
        report_.receiving_seconds = std::chrono::duration<double>(*last_state_at_ - begin_).count();
        if (phase_ != Phase::kReceiving || !control_ || last_state_) {
            return; // The link was cut meanwhile, and all that will come again.
        }
        phase_ = Phase::kPrepared; // Before the source knows it: its answer may be here at once.
    }
    static_cast<void>(say(MessageType::kPrepared, encode(Prepared{mapped, report_.fill_seconds})));
}

void Arrival::put_into(Hardware& /*hardware*/, Embedder& /*embedder*/) {}

void Arrival::start(Hardware& hardware) {
    restore_clocks_and_interrupts(hardware, state_.machine,
                                  {.clock = kvm::ClockPolicy::kRealtime, .generation = GenerationPolicy::kSame});
    {
        const std::lock_guard hold(lock_);
        phase_ = Phase::kRunning;
        report_.takeover_seconds = std::chrono::duration<double>(Clock::now() - *last_state_at_).count();
    }
    static_cast<void>(say(MessageType::kRunning)); // It is ours whatever becomes of the source, which may ask.
}

bool Arrival::starts_paused() const noexcept {
    const std::lock_guard hold(lock_);
    return starts_paused_;
}

std::optional<ArrivalReport> Arrival::arrival_report() const {
    const std::lock_guard hold(lock_);
    return report_;
}

void Arrival::note_failure(std::string_view why) noexcept {
    try {
        fail(std::make_exception_ptr(Error(std::string(why))));
    } catch (...) { // There is no memory even to say so: the source sees that the connection ends.
    }
}

void Arrival::rethrow_failure() {
    std::exception_ptr failure;
    {
        const std::lock_guard hold(lock_);
        failure = failure_;
    }
    std::rethrow_exception(failure);
}

/// Once, unless the guest runs. The source hears of it.
void Arrival::fail(std::exception_ptr why) noexcept {
    std::string text = "it failed there";
    try {
        std::rethrow_exception(why);
    } catch (const std::exception& error) {
        text = error.what();
    } catch (...) { // It is not said what it is.
    }
    std::shared_ptr<Channel> source;
    {
        const std::lock_guard hold(lock_);
        if (phase_ >= Phase::kRunning) {
            return;
        }
        phase_ = Phase::kFailed;
        failure_ = std::move(why);
        source = control_;
    }
    changed_.notify_all();
    wake_.signal();
    // Who cannot say anything else to the source at this moment cannot say this, either.
    if (const std::unique_lock saying(saying_, std::try_to_lock); source && saying) {
        try {
            source->set_patience(kPatienceToSay);
            send_message(*source, MessageType::kRefused, encode(Why{text}));
            return;
        } catch (...) { // It has gone.
        }
    }
    if (source) {
        source->shut_down();
    }
}

std::shared_ptr<Channel> Arrival::control() const {
    const std::lock_guard hold(lock_);
    return control_;
}

bool Arrival::say(MessageType type, std::span<const std::byte> body) noexcept {
    const std::shared_ptr<Channel> source = control();
    if (!source) {
        return false;
    }
    const std::lock_guard saying(saying_);
    try {
        send_message(*source, type, body);
        return true;
    } catch (...) { // The thread that receives sees it, too.
        return false;
    }
}

// ---- the thread that speaks with the source

void Arrival::converse() noexcept {
    try {
        while (serve_once()) {
        }
    } catch (...) {
        fail(std::current_exception());
    }
    if (pages_) {
        pages_->cut();
    }
    guest_.reception.reset(); // Nobody is waited for any more.
}

/// Waits for whatever happens next, and heeds it. False: there is nothing to be waited for.
bool Arrival::serve_once() {
    {
        const std::lock_guard hold(lock_);
        if (is_closing_ || phase_ >= Phase::kOver) {
            return false;
        }
    }
    const std::shared_ptr<Channel> source = control();
    std::array<pollfd, 3> fds{
        {{wake_.fd(), POLLIN, 0}, {source ? source->fd() : -1, POLLIN, 0}, {guest_.reception->fd(), POLLIN, 0}}};
    if (::poll(fds.data(), fds.size(), kTurnMs) < 0 && errno != EINTR) {
        throw_errno(errno, "wait for the source of a guest");
    }
    wake_.clear();
    if (fds[1].revents != 0) {
        try {
            heed(receive_message(*source));
        } catch (const LinkError& error) {
            note_cut(error.what());
        }
    }
    while (auto visitor = guest_.reception->take()) {
        greet(std::move(*visitor));
    }
    heed_cut();
    return true;
}

void Arrival::heed(Message message) {
    std::unique_lock hold(lock_);
    switch (message.type) {
    case MessageType::kLastState:
        if (phase_ != Phase::kReceiving) {
            break;
        }
        last_state_at_ = Clock::now();
        last_state_ = std::move(message.body);
        changed_.notify_all();
        return;
    case MessageType::kAsk: {
        const bool is_full = is_full_;
        hold.unlock();
        static_cast<void>(say(MessageType::kSynced, encode(Round{decode<Round>(message).number, is_full})));
        return;
    }
    case MessageType::kCommit:
        if (phase_ != Phase::kPrepared) {
            break;
        }
        starts_paused_ = decode<Commit>(message).is_paused;
        phase_ = Phase::kOurs;
        changed_.notify_all();
        return;
    case MessageType::kAbort:
        if (phase_ >= Phase::kOurs) {
            break;
        }
        hold.unlock();
        throw Error("the guest stays where it was: " + decode<Why>(message).text);
    case MessageType::kFarewell:
        if (phase_ == Phase::kRunning) {
            phase_ = Phase::kOver;
            return;
        }
        break;
    default:
        break;
    }
    hold.unlock();
    throw Error(vmm::format("{}the source sends a message of type {} where there can be none", kTriedToArrive,
                            static_cast<unsigned>(message.type)));
}

/// Somebody else has connected, or the source anew.
void Arrival::greet(Reception::Visitor visitor) {
    Channel& channel = *visitor.channel;
    try {
        switch (visitor.first.type) {
        case MessageType::kStream: {
            const auto stream = decode<Stream>(visitor.first);
            std::uint32_t attempt = 0;
            {
                const std::lock_guard hold(lock_);
                attempt = attempt_;
            }
            if (stream.session != session_ || !pages_ || stream.attempt != attempt) {
                throw Error("it belongs to another migration");
            }
            channel.set_patience(kPatienceWithSource);
            pages_->add(stream.index, std::move(visitor.channel));
            return;
        }
        case MessageType::kResume:
            if (decode<Resume>(visitor.first).session != session_ || !pages_) {
                throw Error("it belongs to another migration");
            }
            resume(std::move(visitor));
            return;
        case MessageType::kQuestion: {
            const bool is_known = decode<Question>(visitor.first).session == session_;
            bool is_taken = false;
            {
                const std::lock_guard hold(lock_);
                is_taken = is_known && (phase_ == Phase::kOurs || phase_ == Phase::kRunning);
            }
            if (is_known && !is_taken) {
                fail(std::make_exception_ptr(Error("the guest stays where it was: it has gone on there")));
            }
            send_message(channel, MessageType::kAnswer, encode(Answer{is_taken}));
            return;
        }
        default:
            throw Error("another guest arrives here already (use another address)");
        }
    } catch (const std::exception& error) {
        try {
            if (visitor.channel) {
                send_message(*visitor.channel, MessageType::kRefused, encode(Why{error.what()}));
            }
        } catch (const Error&) { // They have gone.
        }
    }
}

void Arrival::resume(Reception::Visitor visitor) {
    {
        const std::lock_guard hold(lock_);
        if (phase_ > Phase::kPrepared) {
            throw Error("the guest is here already");
        }
        phase_ = Phase::kReceiving;
        last_state_.reset();
        if (control_) {
            control_->shut_down();
        }
    }
    pages_->cut();
    Resumed resumed;
    resumed.applied_frames = pages_->applied_frames();
    visitor.channel->set_patience(kPatienceWithSource);
    {
        const std::lock_guard hold(lock_);
        cut_at_.reset();
        control_ = std::move(visitor.channel);
        ++attempt_;
        ++report_.resumed;
    }
    static_cast<void>(say(MessageType::kResumed, encode(resumed)));
}

/// The source ends its streams when the guest is ours.
void Arrival::note_stream_cut(const std::string& why) noexcept {
    {
        const std::lock_guard hold(lock_);
        if (phase_ >= Phase::kOurs) {
            return;
        }
    }
    note_cut(why);
}

/// Of any of the connections: the source makes all of them anew.
void Arrival::note_cut(const std::string& why) noexcept {
    {
        const std::lock_guard hold(lock_);
        if (!cut_at_) {
            cut_at_ = Clock::now();
            try {
                cut_because_ = why;
            } catch (...) { // Then it is not said.
            }
        }
        if (control_) {
            control_->shut_down(); // So the source notices, too.
        }
    }
    wake_.signal();
}

/// What becomes of a guest whose source is not heard any more.
void Arrival::heed_cut() {
    std::unique_lock hold(lock_);
    if (!cut_at_) {
        return;
    }
    control_.reset();
    const Clock::duration silent = Clock::now() - *cut_at_;
    switch (phase_) {
    case Phase::kPrepared:
        if (has_ended(source_process_)) { // All that there is of the guest is here, and nobody else can have it.
            phase_ = Phase::kOurs;
            changed_.notify_all();
            return;
        }
        [[fallthrough]];
    case Phase::kReceiving:
        if (has_ended(source_process_) || silent >= guest_.options.reconnect) {
            const std::string why = cut_because_;
            hold.unlock();
            throw Error(std::string(kTriedToArrive) + why + " (it stays where it was, if its machine still runs)");
        }
        return;
    case Phase::kRunning:
        if (has_ended(source_process_) || silent >= kPatienceWithQuestions) {
            phase_ = Phase::kOver;
        }
        return;
    case Phase::kOurs:
    case Phase::kOver:
    case Phase::kFailed:
        return;
    }
}

void Arrival::note_synced(std::uint64_t round) noexcept {
    bool is_full = false;
    {
        const std::lock_guard hold(lock_);
        is_full = is_full_;
    }
    if (!say(MessageType::kSynced, encode(Round{round, is_full}))) {
        note_cut("the source has gone");
    }
}

} // namespace vmm
