#include "vmm/machine/arrival.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <optional>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/stoppable_read.hpp"
#include "kvm/host/stopwatch.hpp"
#include "kvm/host/thread.hpp"
#include "kvm/host/user_fault_fd.hpp"
#include "kvm/x86/saved_vcpu.hpp"
#include "vmm/machine/check_machine.hpp"
#include "vmm/machine/rebuild.hpp"
#include "vmm/machine/stop_bridge.hpp"
#include "vmm/migration/messages.hpp"
#include "vmm/migration/peer_process.hpp"
#include "vmm/migration/remote_chunks.hpp"
#include "vmm/state/state_file.hpp"

namespace vmm {

namespace {

/// If the source sends nothing on any of its connections for this long, it has gone.
constexpr std::chrono::milliseconds kPatienceWithSource{60'000};
/// How long the source may still ask whether its guest runs here. It is waited for until then.
constexpr std::chrono::seconds kPatienceWithQuestions{30};
/// How long the sending of a last message to the source may take.
constexpr std::chrono::milliseconds kPatienceToSay{300};
/// How long the connections of a post-copy are waited for. The source opens them at once.
constexpr std::chrono::seconds kPatienceWithConnections{30};
/// How long a chunk of a post-copy may take, for which the guest waits.
constexpr std::chrono::milliseconds kPatienceWithServers{20'000};
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
    source_process_ = process_at_other_end(*control_, announced.hello.process);
    streams_ = announced.hello.streams;
    report_.shared = is_shared_;
    if (guest_.may_post_copy) {
        if (const std::string problem = UserFaultFd::problem(); !problem.empty()) {
            const std::string why =
                kTriedToArrive + ("before all of its memory is here: " + problem) + " (migrate it without post-copy)";
            static_cast<void>(say(MessageType::kRefused, encode(Why{why})));
            throw Error(why);
        }
    }
}

Arrival::~Arrival() {
    say_complete(true); // A guest that has ended needs no more memory.
    give_back();
    {
        const std::lock_guard hold(lock_);
        is_closing_ = true;
        if (control_) { // Nothing more is read. A message that was sent before still arrives.
            ::shutdown(control_->fd(), SHUT_RD);
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
    files_.clear(); // GuestRam has descriptors of its own.
    ram_ = &ram;
    embedder_ = &embedder;
    embedder.log(LogLevel::kInfo, vmm::format("a guest arrives from {}", control_->name()));
    if (!is_shared_) {
        pages_ = std::make_unique<PageReceiver>(
            ram.memory(), streams_,
            PageReceiver::Callbacks{.synced = [this](std::uint64_t round) { note_synced(round); },
                                    .failed =
                                        [this](std::exception_ptr why) {
                                            try {
                                                std::rethrow_exception(std::move(why));
                                            } catch (const LinkError& error) {
                                                note_stream_cut(error.what());
                                            } catch (...) {
                                                fail(std::current_exception());
                                            }
                                        }});
    }
}

void Arrival::wait_for_state(MachineSecondLevel& second_level, std::deque<kvm::Vcpu>& vcpus) {
    const StopBridge bridge(stop_);
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
        const LastState last = std::move(*last_state_);
        last_state_.reset();
        const std::uint64_t taken_back = times_taken_back_;
        hold.unlock();
        prepare(last, taken_back, second_level, vcpus);
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
        const StopBridge bridge(stop_);
        prefault_ = second_level.fill(config_.prefault, bridge.token());
    }
    const std::lock_guard hold(lock_);
    is_full_ = true;
    report_.fill_seconds = prefault_ ? prefault_->total_seconds : 0;
}

/// Restores the last state as far as that can be undone, and tells the source that this has been done.
void Arrival::prepare(const LastState& said, std::uint64_t taken_back, MachineSecondLevel& second_level,
                      std::deque<kvm::Vcpu>& vcpus) {
    SnapshotState last = decode_state(said.state);
    check_machine_like(last.machine, config_, kTriedToArrive);
    if (last.machine.memory != state_.machine.memory || !have_same_plugged_memory(last.machine, state_.machine) ||
        last.machine.adopted_page_tables != state_.machine.adopted_page_tables) {
        throw Error(std::string(kTriedToArrive) + "it has become another machine on its way");
    }
    std::optional<PostCopy> post_copy;
    {
        const std::lock_guard hold(lock_);
        post_copy = post_copy_;
    }
    if (post_copy) {
        begin_post_copy(*post_copy); // KVM touches memory as soon as it has the registers of vCPUs.
    }
    for (std::size_t id = 0; id < vcpus.size(); ++id) {
        static_cast<void>(kvm::restore_vcpu(vcpus[id], last.machine.vcpus[id])); // refusals were reported before
    }
    const std::uint64_t mapped = second_level.mapped().bytes();
    {
        const std::lock_guard hold(lock_);
        state_ = std::move(last);
        report_.mapped_bytes = mapped;
        report_.receiving_seconds = seconds_between(begin_, *last_state_at_);
        if (phase_ != Phase::kReceiving || cut_at_ || times_taken_back_ != taken_back) {
            return; // The guest has gone on there, or the link was cut. The source will send the last state again.
        }
        starts_paused_ = said.is_paused;
        phase_ = Phase::kPrepared; // This comes before the message, because the source's answer may come at once.
    }
    static_cast<void>(say(MessageType::kPrepared, encode(Prepared{mapped, report_.fill_seconds})));
}

/// From now on, memory that the source has not sent yet comes when it is touched.
void Arrival::begin_post_copy(const PostCopy& post_copy) {
    {
        std::unique_lock hold(lock_);
        streams_are_over_ = true;
        const bool are_there = changed_.wait_for(hold, kPatienceWithConnections, [&] {
            return failure_ || std::ranges::find(serving_, nullptr) == serving_.end();
        });
        if (failure_ || !are_there) {
            throw Error(std::string(kTriedToArrive) + "the source does not offer what is left of its memory");
        }
    }
    pages_->cut();
    layout_.emplace(state_.machine.memory);
    LazyMemory::Settings settings;
    settings.workers = post_copy.connections - 1;
    settings.present.assign(layout_->chunks(), true);
    for (std::size_t chunk = 0; chunk < layout_->chunks(); ++chunk) {
        settings.present[chunk] = (post_copy.absent_chunks.at(chunk / 8) >> (chunk % 8) & std::byte{1}) == std::byte{0};
    }
    if (std::ranges::find(settings.present, false) == settings.present.end()) {
        throw Error(std::string(kTriedToArrive) + "the source says that memory is missing, and of none where");
    }
    settings.failed = [this](std::exception_ptr why) {
        try {
            std::rethrow_exception(why);
        } catch (const std::exception& error) {
            embedder_->warn(std::string("the guest cannot go on without memory that the source has not sent: ") +
                            error.what());
        } catch (...) { // note_failure() keeps it.
        }
        embedder_->note_failure(std::move(why));
    };
    settings.loaded = [this] {
        is_loaded_ = true;
        wake_.signal();
    };
    const auto next_source = [this]() -> std::unique_ptr<ChunkSource> {
        const std::lock_guard hold(lock_);
        return std::make_unique<RemoteChunks>(*layout_, serving_.at(next_serving_++));
    };
    bridge_.emplace(stop_);
    on_stop_.emplace(bridge_->token(), [this] { end_serving(); });
    lazy_.emplace(*layout_, next_source, certain_page_bytes(config_.page_size), std::move(settings));
    lazy_->serve(*ram_);
}

void Arrival::put_into(Hardware& hardware, Embedder& embedder) {
    embedder.log(LogLevel::kInfo, "the guest has arrived");
    if (lazy_) {
        const bool fills = config_.prefault.scope == prefault::Scope::kAll && config_.prefault.ranges.empty();
        lazy_->load(fills ? &hardware.second_level : nullptr, bridge_->token());
    }
}

/// Ends all waiting for pages of the source.
void Arrival::end_serving() noexcept {
    for (const std::shared_ptr<Channel>& channel : serving_) {
        if (channel) {
            channel->shut_down();
        }
    }
}

void Arrival::note_guest_runs(bool runs) noexcept {
    if (lazy_) {
        lazy_->note_guest_runs(runs);
    }
}

void Arrival::finish(const std::stop_token& stop) {
    if (lazy_) {
        lazy_->wait(stop);
    }
}

void Arrival::abandon() noexcept {
    if (lazy_) {
        if (!lazy_->report().seconds_until_loaded) {
            end_serving();
        }
        lazy_->abandon();
    }
}

void Arrival::let_go_of_memory() noexcept {
    if (pages_) {
        pages_->cut();
    }
    abandon();
    if (lazy_) {
        lazy_->let_go();
    }
}

std::optional<LazyReport> Arrival::lazy_report() const {
    return lazy_ ? std::optional(lazy_->report()) : std::nullopt;
}

void Arrival::start(Hardware& hardware) {
    restore_clocks_and_interrupts(hardware, state_.machine,
                                  {.clock = kvm::ClockPolicy::kRealtime, .generation = GenerationPolicy::kSame});
    const std::lock_guard saying(saying_); // No other message may be sent before this one.
    std::shared_ptr<Channel> source;
    {
        std::unique_lock hold(lock_);
        if (failure_) { // The source has been told, and goes on with the guest.
            hold.unlock();
            rethrow_failure();
        }
        phase_ = Phase::kRunning;
        report_.takeover_seconds = last_state_at_ ? seconds_since(*last_state_at_) : 0;
        source = control_;
    }
    if (source) {
        try {
            send_message(*source, MessageType::kRunning);
        } catch (const Error&) { // The guest stays here, whatever happens to the source. The source may ask.
        }
    }
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
    } catch (...) { // There is no memory for the message. The source sees that the connection ends.
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

/// Gives the guest back to the source if this machine owns it and has not run it.
void Arrival::give_back() noexcept {
    {
        const std::lock_guard hold(lock_);
        if (phase_ != Phase::kOurs) {
            return;
        }
    }
    note_failure("the machine that was made for the guest has ended before it ran");
}

/// Ends the arrival with a failure, and tells the source. It has an effect only once, and only before the guest runs.
void Arrival::fail(std::exception_ptr why) noexcept {
    std::string text = "it failed there";
    try {
        std::rethrow_exception(why);
    } catch (const std::exception& error) {
        text = error.what();
    } catch (...) { // The reason is not known.
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
    // A message that is being sent to the source is finished in a moment. If it is not, this one could not be sent,
    // either.
    if (const std::unique_lock saying(saying_, kPatienceToSay); source && saying) {
        try {
            source->set_patience(kPatienceToSay);
            send_message(*source, MessageType::kRefused, encode(Why{text}));
            return;
        } catch (...) { // The source has gone.
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
    } catch (...) { // The thread that receives notices it, too.
        return false;
    }
}

// ---- The thread that speaks with the source

void Arrival::converse() noexcept {
    try {
        while (serve_once()) {
        }
    } catch (...) {
        fail(std::current_exception());
    }
    try {
        answer_questions();
    } catch (...) { // There is no memory for the answers.
    }
    if (pages_) {
        pages_->cut();
    }
    const std::lock_guard hold(lock_);
    control_.reset();
    if (is_loaded_) {
        serving_.clear();
    }
    if (!lazy_ || is_loaded_) {
        guest_.reception.reset(); // No further connection is expected. This ends the connections that came through it.
    }
}

/// Waits for the next event, and handles it. Returns false if no event is expected any more.
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
    answer_questions();
    heed_last_words();
    heed_cut();
    say_complete(is_loaded_);
    return true;
}

/// Tells the source, once, that it is not needed any more. It does so only after a post-copy, and if `is_so`.
void Arrival::say_complete(bool is_so) noexcept {
    {
        const std::lock_guard hold(lock_);
        if (!is_so || phase_ != Phase::kRunning || !streams_are_over_ || std::exchange(has_said_complete_, true)) {
            return;
        }
    }
    static_cast<void>(say(MessageType::kComplete));
}

/// Answers the source's questions whether the guest has been taken. While that is not known yet, they wait.
void Arrival::answer_questions() {
    if (questions_.empty()) {
        return;
    }
    bool is_taken = false;
    {
        const std::lock_guard hold(lock_);
        if (phase_ == Phase::kOurs) {
            return;
        }
        is_taken = phase_ == Phase::kRunning || phase_ == Phase::kOver;
    }
    if (!is_taken) {
        fail(std::make_exception_ptr(Error("the guest stays where it was: it has gone on there")));
    }
    for (const std::unique_ptr<Channel>& channel : std::exchange(questions_, {})) {
        try {
            channel->set_patience(kPatienceToSay);
            send_message(*channel, MessageType::kAnswer, encode(Answer{is_taken}));
        } catch (const Error&) { // The source has gone.
        }
    }
}

void Arrival::heed(Message message) {
    std::unique_lock hold(lock_);
    switch (message.type) {
    case MessageType::kLastState:
        if (phase_ != Phase::kReceiving) {
            break;
        }
        last_state_at_ = Clock::now();
        last_state_ = decode<LastState>(message);
        changed_.notify_all();
        return;
    case MessageType::kPostCopy:
        if (phase_ != Phase::kReceiving || !guest_.may_post_copy || post_copy_) {
            break;
        }
        post_copy_ = decode<PostCopy>(message);
        if (post_copy_->absent_chunks.size() != (MemoryLayout(state_.machine.memory).chunks() + 7) / 8) {
            hold.unlock();
            throw Error(std::string(kTriedToArrive) + "the source speaks of another memory");
        }
        serving_.resize(post_copy_->connections);
        return;
    case MessageType::kAsk: {
        const bool is_full = is_full_;
        hold.unlock();
        static_cast<void>(say(MessageType::kSynced, encode(Round{decode<Round>(message).number, is_full})));
        return;
    }
    case MessageType::kNotYet:
        if (phase_ >= Phase::kOurs) {
            break;
        }
        take_back();
        return;
    case MessageType::kCommit:
        if (phase_ != Phase::kPrepared) {
            break;
        }
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

/// Handles a new connection, from the source or from somebody else.
void Arrival::greet(Reception::Visitor visitor) {
    Channel& channel = *visitor.channel;
    try {
        switch (visitor.first.type) {
        case MessageType::kStream: {
            const auto stream = decode<Stream>(visitor.first);
            bool is_expected = false;
            {
                const std::lock_guard hold(lock_);
                is_expected = stream.attempt == attempt_ && phase_ == Phase::kReceiving && !streams_are_over_;
            }
            if (stream.session != session_ || !pages_ || !is_expected) {
                throw Error("it belongs to another migration");
            }
            channel.set_patience(kPatienceWithSource);
            pages_->add(stream.index, std::move(visitor.channel));
            return;
        }
        case MessageType::kServe: {
            const auto serve = decode<Serve>(visitor.first);
            const std::lock_guard hold(lock_);
            if (serve.session != session_ || serve.index >= serving_.size() || serving_[serve.index]) {
                throw Error("it belongs to another migration");
            }
            channel.set_patience(kPatienceWithServers);
            serving_[serve.index] = std::move(visitor.channel);
            changed_.notify_all();
            return;
        }
        case MessageType::kResume:
            if (decode<Resume>(visitor.first).session != session_ || !pages_) {
                throw Error("it belongs to another migration");
            }
            resume(std::move(visitor));
            return;
        case MessageType::kQuestion:
            if (decode<Question>(visitor.first).session != session_) {
                send_message(channel, MessageType::kAnswer, encode(Answer{false}));
                return;
            }
            questions_.push_back(std::move(visitor.channel));
            return;
        default:
            throw Error("another guest arrives here already (use another address)");
        }
    } catch (const std::exception& error) {
        try {
            if (visitor.channel) {
                send_message(*visitor.channel, MessageType::kRefused, encode(Why{error.what()}));
            }
        } catch (const Error&) { // The visitor has gone.
        }
    }
}

void Arrival::resume(Reception::Visitor visitor) {
    {
        const std::lock_guard hold(lock_);
        if (phase_ > Phase::kPrepared) {
            throw Error("the guest is here already");
        }
        if (post_copy_) {
            throw Error("some of its memory is not here any more");
        }
        take_back();
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
        resumed.attempt = ++attempt_;
        ++report_.resumed;
    }
    static_cast<void>(say(MessageType::kResumed, encode(resumed)));
}

/// Handles the end of a stream. The source ends its streams when the guest has gone over.
void Arrival::note_stream_cut(const std::string& why) noexcept {
    {
        const std::lock_guard hold(lock_);
        if (phase_ >= Phase::kPrepared || streams_are_over_) { // Nothing more is expected from it.
            return;
        }
    }
    note_cut(why);
}

/// Drops the guest's last state, because the guest has gone on at the source. The lock must be held.
void Arrival::take_back() {
    phase_ = Phase::kReceiving;
    last_state_.reset();
    ++times_taken_back_;
}

/// Handles the cut of any connection. The source then makes all of them again.
void Arrival::note_cut(const std::string& why) noexcept {
    {
        const std::lock_guard hold(lock_);
        if (!cut_at_) {
            cut_at_ = Clock::now();
            try {
                cut_because_ = why;
            } catch (...) { // Then the reason is missing in messages.
            }
        }
        if (control_) {
            control_->shut_down(); // So the source notices it, too.
        }
    }
    wake_.signal();
}

/// Handles the messages that the source sent before a connection was cut.
void Arrival::heed_last_words() {
    std::shared_ptr<Channel> source;
    {
        const std::lock_guard hold(lock_);
        if (cut_at_) {
            source = control_;
        }
    }
    try {
        while (source) { // The channel has been shut down, so this loop ends.
            heed(receive_message(*source));
        }
    } catch (const LinkError&) {
    }
}

/// Decides about a guest whose source has not been heard since a cut.
void Arrival::heed_cut() {
    std::unique_lock hold(lock_);
    if (!cut_at_) {
        return;
    }
    control_.reset();
    const Clock::duration silent = Clock::now() - *cut_at_;
    switch (phase_) {
    case Phase::kPrepared:
        if (has_ended(source_process_)) { // All of the guest is here, and nobody else can have it.
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
