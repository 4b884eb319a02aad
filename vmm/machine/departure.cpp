#include "vmm/machine/departure.hpp"

#include <sys/socket.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "kvm/host/error.hpp"
#include "kvm/host/event_fd.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/stoppable_read.hpp"
#include "kvm/host/stopwatch.hpp"
#include "kvm/host/thread.hpp"
#include "vmm/machine/capture.hpp"
#include "vmm/machine/vcpu_throttle.hpp"
#include "vmm/migration/channel.hpp"
#include "vmm/migration/messages.hpp"
#include "vmm/migration/page_sender.hpp"
#include "vmm/migration/peer_process.hpp"
#include "vmm/migration/session_id.hpp"
#include "vmm/state/memory_layout.hpp"
#include "vmm/state/page_bits.hpp"
#include "vmm/state/state_file.hpp"
#include "vmm/version.hpp"

namespace vmm {

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kPatienceToConnect{10'000};
/// The other end makes, pins and clears all of the guest's memory before it accepts.
constexpr milliseconds kPatienceForMemory{600'000};
constexpr milliseconds kPatience{60'000};
constexpr milliseconds kBetweenTries{200};
/// The other end fills its second level, and little changes meanwhile.
constexpr milliseconds kWhileItFills{50};
/// What is assumed of the network until it is known.
constexpr double kAssumedBytesPerSecond = 200e6;
/// Rates of less than this say more of the way than of its width, unless they are higher than what was known.
constexpr std::uint64_t kBytesToMeasure = 1 * kMiB;
/// What the switch takes beside the pages, at least.
constexpr double kSwitchSeconds = 0.005;
/// By how much less is expected of the switch after each round in which what is left does not fit.
constexpr double kSwitchDecay = 0.9;
constexpr unsigned kThrottleStep = 20;

constexpr const char* kTriedToMigrate = "migrate the machine";

/// The other end has said that it does not take the guest.
class RefusedError : public Error {
  public:
    using Error::Error;
};

class Departure {
  public:
    Departure(const MachineToSave& machine, const MigrationOptions& options, const std::stop_token& stop,
              const std::stop_token& machine_ends)
        : machine_(machine), options_(options), stop_(stop), machine_ends_(machine_ends),
          hold_(machine.hardware.second_level),
          shared_files_(options.address.kind == MigrationAddress::Kind::kUnix ? machine.hardware.ram.shared_files()
                                                                              : std::vector<FileRange>{}),
          sender_(machine.hardware.ram.memory(),
                  {.compression = options.compression,
                   .bytes_per_second = options.bytes_per_second,
                   .before =
                       [this](GuestRange part) {
                           if (log_) {
                               log_->watch(part);
                           }
                       },
                   .progress = [this](std::uint64_t done, std::uint64_t total) { tell(done, total); }}),
          throttle_(machine.pause.gate()), session_(new_session_id()) {
        report_.memory_bytes = machine.hardware.ram.present_bytes();
        report_.shared = !shared_files_.empty();
    }

    /// Returns false if a stop was requested, and the guest is here.
    bool run() {
        try {
            announce();
            return report_.shared ? hand_over() : send_and_switch();
        } catch (const StoppedError&) {
            if (is_committed_) {
                throw; // The machine is about to end.
            }
            abort("a stop was requested there");
            return false;
        } catch (const std::exception& error) {
            if (!is_committed_) {
                abort(error.what());
            }
            throw;
        }
    }

    [[nodiscard]] MigrationReport report() {
        report_.sent_bytes = sender_.sent_bytes();
        report_.total_seconds = seconds_since(start_);
        return report_;
    }

  private:
    // ---- Before there are pages

    void announce() {
        stage_ = "connecting";
        control_ = connect_channel(options_.address, options_.security, cancelled_.fd(), kPatienceToConnect);
        control_->set_patience(kPatience);
        Hello hello;
        hello.session = session_;
        hello.streams = options_.streams;
        hello.shares_memory = report_.shared;
        hello.may_post_copy = options_.post_copy_after != 0;
        hello.config = options_.config;
        hello.vmm_version = kVersion;
        hello.process = own_process_name();
        send_message(*control_, MessageType::kHello, encode(hello));
        const auto welcome = decode<Welcome>(expect(MessageType::kWelcome));
        if (welcome.protocol < kOldestProtocol || welcome.protocol > kNewestProtocol) {
            throw Error(vmm::format("{} wants version {} of the protocol of migrations, which this vmm does not speak "
                                    "(use versions of vmm that are next to each other)",
                                    control_->name(), welcome.protocol));
        }
        destination_process_ = process_at_other_end(*control_, welcome.process);
        send_message(*control_, MessageType::kFirstState, first_state());
        if (report_.shared) {
            send_shared_memory();
        }
        stage_ = "the destination makes memory";
        control_->set_patience(kPatienceForMemory);
        static_cast<void>(expect(MessageType::kAccept));
        control_->set_patience(kPatience);
        if (!report_.shared) {
            open_streams();
        }
    }

    /// What the machine looks like. The guest stands still for it, and from then on what changes in memory is known.
    std::vector<std::byte> first_state() {
        const Clock::time_point asked = Clock::now();
        pause();
        std::vector<std::byte> state;
        {
            const Resumer resumer(*this);
            state = machine_.pause.look_while_paused(kTriedToMigrate, [this] {
                if (!report_.shared) {
                    log_.emplace(hold_);
                }
                return state_now();
            });
        }
        switch_seconds_ = 2 * seconds_since(asked) + kSwitchSeconds;
        return state;
    }

    std::vector<std::byte> state_now() {
        return encode_state({.origin = origin_here(),
                             .machine = capture(machine_.hardware, machine_.config, machine_.first),
                             .memory = {},
                             .base = {}});
    }

    void send_shared_memory() {
        SharedMemory memory;
        std::vector<int> fds;
        for (const FileRange& file : shared_files_) {
            memory.files.push_back({file.range, file.file_offset, static_cast<std::uint32_t>(fds.size())});
            fds.push_back(file.fd);
        }
        send_message(*control_, MessageType::kMemory, encode(memory));
        control_->send_descriptors(fds);
    }

    void open_streams() {
        std::vector<std::unique_ptr<Channel>> streams;
        for (unsigned index = 0; index < options_.streams; ++index) {
            streams.push_back(
                connect_channel(options_.address, options_.security, cancelled_.fd(), kPatienceToConnect));
            streams.back()->set_patience(kPatience);
            send_message(*streams.back(), MessageType::kStream, encode(Stream{session_, index, attempt_}));
        }
        sender_.use(std::move(streams));
    }

    // ---- While the guest runs

    bool send_and_switch() {
        PageBits todo = present_pages();
        for (;;) {
            try {
                stage_ = report_.rounds == 0 ? "memory" : "memory that has changed";
                send_round(todo);
                todo = log_->take_of_vcpus();
                heed_time();
                if (!may_switch(todo)) {
                    continue;
                }
                if (switch_over(todo)) {
                    return true;
                }
            } catch (const LinkError& error) {
                if (is_committed_) {
                    throw;
                }
                if (report_.post_copy) { // The destination has dropped some of what it had.
                    throw Error(std::string("cannot migrate the machine, which goes on here: ") + error.what());
                }
                todo = go_on_after(error, todo);
            }
        }
    }

    /// All of memory that is there.
    [[nodiscard]] PageBits present_pages() const {
        const GuestRam& ram = machine_.hardware.ram;
        std::vector<GuestRange> ranges;
        for (const prefault::PlacedRange& placed : ram.placement().ranges) {
            ranges.push_back(placed.range);
        }
        return pages_of(ram.memory().regions(), ranges);
    }

    /// Sends `pages`, and waits until they are there.
    void send_round(const PageBits& pages) {
        const Clock::time_point begin = Clock::now();
        const std::uint64_t before = sender_.content_bytes(); // What is left is not compressed either.
        throw_if_stopped();
        if (!sender_.send(pages, ++round_, sending_.get_token())) {
            throw_if_stopped();
            heed_time(); // It is over, or else the round would not have ended.
        }
        wait_until_synced();
        const double seconds = std::max(seconds_since(begin), 1e-6);
        const std::uint64_t sent = sender_.content_bytes() - before;
        round_bytes_ = bytes_of(pages);
        round_seconds_ = seconds;
        const double rate = static_cast<double>(sent) / seconds;
        if (sent >= kBytesToMeasure || rate > bytes_per_second_) {
            bytes_per_second_ = rate;
        }
        if (report_.rounds == 0) {
            report_.first_round_bytes = sent;
            report_.first_round_seconds = seconds;
        }
        ++report_.rounds;
    }

    void wait_until_synced() {
        const Clock::time_point give_up = Clock::now() + patience_;
        for (;;) {
            while (!control_->wait_readable(milliseconds(100))) {
                if (sender_.is_cut()) { // What it has sent there may never arrive.
                    throw LinkError(control_->name() + " has ended a stream of pages");
                }
                if (Clock::now() >= give_up) {
                    throw LinkError(control_->name() + " does not say that pages have come");
                }
            }
            const auto synced = decode<Round>(expect(MessageType::kSynced));
            if (synced.number == round_) {
                is_full_there_ = is_full_there_ || synced.is_full;
                sender_.note_synced();
                return;
            }
        }
    }

    /// Whether what is left can go over while the guest stands still. Slows the guest down if that gets no better.
    bool may_switch(const PageBits& todo) {
        const std::uint64_t left = bytes_of(todo);
        dirtied_per_second_ = static_cast<double>(left) / round_seconds_;
        if (is_forced_ || (options_.post_copy_after != 0 && report_.rounds >= options_.post_copy_after)) {
            return true;
        }
        if (fits(left)) {
            if (is_full_there_) {
                return true;
            }
            wait(kWhileItFills);
            return false;
        }
        if (left < kBytesToMeasure) { // It is not the guest that is too fast.
            wait(kWhileItFills);
        }
        // What made a pause or a switch slow may have passed: less is expected from round to round, until one is tried.
        switch_seconds_ = std::max(kSwitchSeconds, switch_seconds_ * kSwitchDecay);
        // A round in which the guest changes more than half as much as was sent does not get it much nearer.
        if (report_.rounds > 1 && left > round_bytes_ / 2 && options_.most_throttled_percent != 0) {
            const unsigned percent = std::min(throttle_.percent() + kThrottleStep, options_.most_throttled_percent);
            throttle_.set_percent(percent);
            report_.throttled_percent = std::max(report_.throttled_percent, percent);
        }
        return false;
    }

    [[nodiscard]] double seconds_for(std::uint64_t bytes) const {
        return static_cast<double>(bytes) / bytes_per_second_ + switch_seconds_;
    }
    [[nodiscard]] bool fits(std::uint64_t bytes) const {
        return seconds_for(bytes) <= std::chrono::duration<double>(options_.downtime).count();
    }

    [[nodiscard]] bool is_over_time() const {
        return options_.timeout.count() != 0 && Clock::now() - start_ >= options_.timeout;
    }
    /// Throws Error if the time is over and nothing else was asked for.
    void heed_time() {
        if (!is_over_time() || is_forced_) {
            return;
        }
        if (options_.on_timeout == OnTimeout::kForce) {
            is_forced_ = true;
            return;
        }
        const std::string tried = vmm::format("cannot migrate the machine within {} s: ", options_.timeout.count());
        if (report_.shared || !is_full_there_) {
            throw Error(tried + "the destination is not ready, or would keep the guest waiting for longer than it may "
                                "stand still (allow more time, or more downtime)");
        }
        throw Error(
            vmm::format("{}the guest changes {} of memory a second, and {} a second go over (allow more time or "
                        "more downtime, let vCPUs be held more, use more streams, or force the end)",
                        tried, format_bytes(static_cast<std::uint64_t>(dirtied_per_second_)),
                        format_bytes(static_cast<std::uint64_t>(bytes_per_second_))));
    }

    /// Looks for the other end again. Returns what is to be sent then, of what was to be sent before.
    PageBits go_on_after(const LinkError& error, const PageBits& todo) {
        throw_if_refused();
        sender_.shut_down();
        const Clock::time_point deadline = Clock::now() + options_.reconnect;
        throttle_.set_percent(0);
        stage_ = "connecting again";
        while (!is_peer_gone()) {
            throw_if_stopped();
            try {
                std::unique_ptr<Channel> control =
                    connect_channel(options_.address, options_.security, cancelled_.fd(), kPatienceToConnect);
                control->set_patience(kPatience);
                send_message(*control, MessageType::kResume, encode(Resume{session_}));
                const auto resumed = decode<Resumed>(expect(MessageType::kResumed, *control));
                control_ = std::move(control); // Not before: the last word may still come by the one before.
                may_have_last_word_ = true;
                PageBits left = sender_.missing(todo, resumed.applied_frames);
                ++report_.reconnects;
                attempt_ = resumed.attempt.value_or(attempt_ + 1);
                open_streams();
                return left;
            } catch (const StoppedError&) {
                throw;
            } catch (const RefusedError&) {
                throw;
            } catch (const Error&) {
                if (Clock::now() >= deadline) {
                    break;
                }
                throw_if_refused(); // It may have come since.
                wait(kBetweenTries);
            }
        }
        throw Error(std::string("cannot migrate the machine, which goes on here: ") + error.what());
    }

    // ---- The switch

    /// Guest memory is the destination's already.
    bool hand_over() {
        try {
            PageBits nothing = no_pages(machine_.hardware.ram.memory().regions());
            do {
                wait_until_full_there();
            } while (!switch_over(nothing));
            return true;
        } catch (const LinkError& error) {
            if (is_committed_) {
                throw;
            }
            throw Error(std::string("cannot migrate the machine, which goes on here: ") + error.what());
        }
    }

    void wait_until_full_there() {
        stage_ = "the destination fills its second level";
        for (;;) {
            throw_if_stopped();
            send_message(*control_, MessageType::kAsk, encode(Round{++round_, false}));
            wait_until_synced();
            heed_time();
            if (is_full_there_ || is_forced_) {
                return;
            }
            wait(kWhileItFills);
        }
    }

    /// Stops the guest and gives it away. Returns false if it goes on here, because it changed too much at last.
    /// Adds to `todo` what is to be sent then.
    bool switch_over(PageBits& todo) {
        stage_ = "the switch";
        const Clock::time_point asked = Clock::now();
        pause();
        Resumer resumer(*this);
        const bool is_over = machine_.pause.look_while_paused(kTriedToMigrate, [&] {
            report_.pause_seconds = seconds_since(asked);
            if (log_) {
                join(todo, log_->take_all());
            }
            const std::uint64_t left = bytes_of(todo);
            const bool too_much = !report_.shared && !fits(left);
            report_.post_copy = too_much && options_.post_copy_after != 0;
            if (too_much && !is_forced_ && !report_.post_copy) {
                return false;
            }
            set_patience(is_forced_ ? kPatience : patience_while_it_stands_still());
            send_last(todo, left, asked);
            if (!is_forced_ && !report_.post_copy && !is_in_time(asked)) {
                todo = no_pages(machine_.hardware.ram.memory().regions());
                return false;
            }
            give_away();
            report_.downtime_seconds = seconds_since(asked);
            report_.takeover_seconds =
                report_.downtime_seconds - report_.pause_seconds - report_.pages_seconds - report_.state_seconds;
            return true;
        });
        if (!is_committed_) {
            set_patience(kPatience);
        }
        if (is_over) {
            resumer.dismiss();
            if (report_.post_copy) {
                serve_rest();
            }
            report_.complete = true;
        }
        return is_over;
    }

    // ---- Post-copy

    /// What is left goes over when the guest asks for it, or by and by. From here on a cut link ends the attempt: what
    /// the destination does not have, it has dropped.
    void begin_post_copy(const PageBits& todo) {
        std::vector<GuestRange> ranges;
        for (const MemoryRegion& region : machine_.hardware.ram.memory().regions()) {
            ranges.push_back(region.range);
        }
        std::ranges::sort(ranges, {}, &GuestRange::base);
        const MemoryLayout layout(ranges);
        PostCopy message;
        message.connections = options_.streams + 1; // One is for what the guest waits for.
        message.absent_chunks.resize((layout.chunks() + 7) / 8);
        for (std::size_t chunk = 0; chunk < layout.chunks(); ++chunk) {
            if (has_any(todo, layout.chunk(chunk).range)) {
                message.absent_chunks[chunk / 8] |= std::byte{1} << (chunk % 8);
            }
        }
        send_message(*control_, MessageType::kPostCopy, encode(message));
        for (unsigned index = 0; index < message.connections; ++index) {
            servers_.push_back(
                connect_channel(options_.address, options_.security, cancelled_.fd(), kPatienceToConnect));
            servers_.back()->set_patience(kPatience);
            send_message(*servers_.back(), MessageType::kServe, encode(Serve{session_, index}));
        }
        for (const std::unique_ptr<Channel>& channel : servers_) {
            serving_.threads.push_back(start_thread("memory that follows a guest", [this, &channel] {
                try {
                    sender_.serve(*channel, machine_ends_);
                } catch (const Error&) { // The destination has all, or it has gone: the control connection tells which.
                }
            }));
        }
    }

    [[nodiscard]] bool has_any(const PageBits& pages, GuestRange range) const {
        const std::span<const MemoryRegion> regions = machine_.hardware.ram.memory().regions();
        for (std::size_t i = 0; i < regions.size(); ++i) {
            if (regions[i].range.contains(range)) {
                const std::uint64_t first =
                    (to_integer(range.base) - to_integer(regions[i].range.base)) / WriteLog::kPageBytes;
                for (std::uint64_t page = first; page < first + range.size / WriteLog::kPageBytes; ++page) {
                    if (is_set(pages[i], page)) {
                        return true;
                    }
                }
            }
        }
        return false;
    }

    /// Until the destination has all of memory. The guest runs there.
    void serve_rest() {
        stage_ = "memory that the guest has not yet";
        control_->set_deadline(Channel::kNoDeadline);
        try {
            while (!control_->wait_readable(milliseconds(100))) {
                if (machine_ends_.stop_requested()) {
                    throw StoppedError("the machine ends, and the guest has not all of its memory yet");
                }
            }
            static_cast<void>(expect(MessageType::kComplete));
            send_message(*control_, MessageType::kFarewell);
        } catch (const LinkError& error) {
            throw Error(std::string("the guest is lost: it went over before all of its memory had, and the connection "
                                    "ended: ") +
                        error.what());
        }
    }

    /// Who makes a guest wait that stands still is not waited for as long as otherwise.
    [[nodiscard]] milliseconds patience_while_it_stands_still() const {
        constexpr milliseconds kLeast{5000};
        return std::max(kLeast, 4 * options_.downtime);
    }
    void set_patience(milliseconds patience) {
        patience_ = patience;
        control_->set_patience(patience);
        sender_.set_patience(patience);
    }

    /// Whether the guest has not stood still for too long yet. If it has, more is expected of the next switch.
    bool is_in_time(Clock::time_point asked) {
        const double seconds = seconds_since(asked);
        if (seconds <= std::chrono::duration<double>(options_.downtime).count()) {
            return true;
        }
        switch_seconds_ = std::max(switch_seconds_, seconds - report_.pages_seconds);
        return false;
    }

    void send_last(const PageBits& todo, std::uint64_t left, Clock::time_point asked) {
        throttle_.set_percent(0);
        const LastState last{state_now(), was_paused_};
        if (report_.post_copy) {
            begin_post_copy(todo);
        } else if (!report_.shared) {
            send_round(todo);
            report_.last_bytes = left;
        }
        report_.pages_seconds = seconds_since(asked) - report_.pause_seconds;
        has_sent_state_ = true;
        send_message(*control_, MessageType::kLastState, encode(last));
        const auto prepared = decode<Prepared>(expect(MessageType::kPrepared));
        report_.mapped_bytes = prepared.mapped_bytes;
        report_.state_seconds = seconds_since(asked) - report_.pause_seconds - report_.pages_seconds;
    }

    /// From here on the guest is the other end's, unless that says no.
    void give_away() {
        throw_if_stopped();
        on_stop_.reset(); // It would come too late. The machine's end does not.
        cancelled_.clear();
        on_machine_end_.emplace(machine_ends_, EndWaiting{this});
        control_->set_deadline(Clock::now() + kPatience);
        machine_.hardware.virtio.release_host(options_.address.kind == MigrationAddress::Kind::kTcp);
        is_committed_ = true;
        try {
            send_message(*control_, MessageType::kCommit);
            wait_until_it_runs();
        } catch (const RefusedError&) {
            take_back();
            throw;
        } catch (const LinkError& error) {
            ask_who_has_it(error);
        }
    }

    /// A stop of this attempt comes too late; that of the machine does not.
    void wait_until_it_runs() {
        const Clock::time_point deadline = Clock::now() + kPatience;
        while (!control_->wait_readable(milliseconds(100))) {
            if (machine_ends_.stop_requested()) {
                throw StoppedError("the machine ends, and the guest is the destination's");
            }
            if (Clock::now() >= deadline) {
                throw LinkError(control_->name() + " does not say that the guest runs");
            }
        }
        static_cast<void>(expect(MessageType::kRunning));
        try {
            if (!report_.post_copy) {
                send_message(*control_, MessageType::kFarewell);
            }
        } catch (const Error&) { // The guest runs there whatever we say.
        }
    }

    /// The link was cut when the guest was given away. Returns if it runs there.
    void ask_who_has_it(const LinkError& error) {
        const Clock::time_point deadline = Clock::now() + options_.reconnect;
        while (!machine_ends_.stop_requested()) {
            if (is_peer_gone()) { // It would have said that the guest runs before it did, and that would be here.
                take_back();
                throw Error(std::string("cannot migrate the machine, which goes on here: the destination has ended "
                                        "before the guest ran there: ") +
                            error.what());
            }
            try {
                const auto control =
                    connect_channel(options_.address, options_.security, cancelled_.fd(), kPatienceToConnect);
                control->set_deadline(Clock::now() + kPatienceToConnect);
                send_message(*control, MessageType::kQuestion, encode(Question{session_}));
                const Message answer = receive_message(*control);
                if (answer.type == MessageType::kAnswer && decode<Answer>(answer).is_taken) {
                    return;
                }
                if (answer.type == MessageType::kAnswer) {
                    take_back();
                    throw RefusedError("cannot migrate the machine, which goes on here: the destination has not taken "
                                       "the guest, and will not");
                }
            } catch (const RefusedError&) {
                throw;
            } catch (const StoppedError&) {
                throw;
            } catch (const Error&) { // Nobody is there, or nobody answers.
            }
            if (Clock::now() >= deadline) {
                throw Error("the guest was given to " + control_->name() +
                            ", which does not answer any more: the guest stands still here, because it may run there "
                            "(if it does not, resume it here; if it does, stop this machine)");
            }
            std::this_thread::sleep_for(kBetweenTries);
        }
        throw StoppedError("the machine ends, and the guest may be the destination's");
    }

    void take_back() {
        on_machine_end_.reset();
        machine_.hardware.virtio.reclaim_host();
        is_committed_ = false;
    }

    // ---- The other end

    /// The next message, which has to be of `type`. Throws RefusedError if it is a refusal.
    Message expect(MessageType type) { return expect(type, *control_); }
    static Message expect(MessageType type, Channel& channel) {
        Message message = receive_message(channel);
        if (message.type == MessageType::kRefused) {
            throw RefusedError("the destination does not take the guest: " + decode<Why>(message).text);
        }
        if (message.type != type) {
            throw Error(vmm::format("{} answers with a message of type {} instead of {}", channel.name(),
                                    static_cast<unsigned>(message.type), static_cast<unsigned>(type)));
        }
        return message;
    }

    /// The last word of the other end may be there, although the streams were cut. A part of one is not waited for.
    void throw_if_refused() {
        try {
            while (may_have_last_word_ && control_->wait_readable(kBetweenTries)) {
                control_->set_deadline(Clock::now() + kBetweenTries);
                const Message message = receive_message(*control_);
                if (message.type == MessageType::kRefused) {
                    throw RefusedError("the destination does not take the guest: " + decode<Why>(message).text);
                }
            }
        } catch (const RefusedError&) {
            throw;
        } catch (const StoppedError&) {
            throw;
        } catch (const Error&) { // There is none, or only a part of it.
            may_have_last_word_ = false;
        }
        ::shutdown(control_->fd(), SHUT_WR); // So the other end notices; what it says can still be heard.
    }

    /// Whether the process at the other end is known to have ended.
    [[nodiscard]] bool is_peer_gone() const { return has_ended(destination_process_); }

    /// The guest is about to go on here. The destination has to know that before it does, because it takes a guest
    /// whose source has ended. Where it cannot be told, it has closed the connection, and takes none.
    void take_state_back() noexcept {
        if (std::exchange(has_sent_state_, false)) {
            try {
                control_->set_patience(milliseconds(1000));
                send_message(*control_, MessageType::kNotYet);
                control_->set_patience(kPatience);
            } catch (...) {
            }
        }
    }

    void abort(const char* why) noexcept {
        try {
            if (control_) {
                control_->set_patience(milliseconds(300));
                on_stop_.reset();
                cancelled_.clear();
                send_message(*control_, MessageType::kAbort, encode(Why{why}));
            }
        } catch (...) { // The other end sees that the connection ends.
        }
        sender_.shut_down(); // Not before: the other end would take it for a link that was cut.
        end_serving();
    }

    void end_serving() noexcept {
        for (const std::unique_ptr<Channel>& channel : servers_) {
            channel->shut_down();
        }
    }

    // ---- This end

    struct EndWaiting {
        Departure* departure;
        void operator()() const noexcept {
            departure->sending_.request_stop();
            departure->cancelled_.signal();
        }
    };

    /// Lets the guest go on at its end, unless it was paused before, or is given away.
    class Resumer {
      public:
        explicit Resumer(Departure& departure) : departure_(departure) {}
        ~Resumer() {
            if (!is_dismissed_ && !departure_.is_committed_) {
                departure_.take_state_back();
                departure_.resume();
            }
        }
        Resumer(const Resumer&) = delete;
        Resumer& operator=(const Resumer&) = delete;
        void dismiss() noexcept { is_dismissed_ = true; }

      private:
        Departure& departure_;
        bool is_dismissed_ = false;
    };

    /// A guest that somebody has paused meanwhile stays so.
    void pause() {
        was_paused_ = machine_.pause.is_paused();
        machine_.pause.pause(options_.within);
    }
    void resume() noexcept {
        if (!was_paused_) {
            try {
                machine_.pause.resume();
            } catch (const Error&) { // Nobody looks at it any more.
            }
        }
    }

    void throw_if_stopped() const {
        if (stop_.stop_requested()) {
            throw StoppedError("cannot migrate the machine: a stop was requested");
        }
    }
    void wait(milliseconds time) {
        check_not_stopped(cancelled_.fd(), kTriedToMigrate, static_cast<int>(time.count()));
    }

    void tell(std::uint64_t done, std::uint64_t total) {
        if (is_over_time() && options_.on_timeout == OnTimeout::kCancel) {
            sending_.request_stop();
        }
        if (!options_.progress) {
            return;
        }
        MigrationProgress now;
        now.stage = stage_;
        now.round = report_.rounds + 1;
        now.done_bytes = done;
        now.total_bytes = total;
        now.sent_bytes = sender_.sent_bytes();
        now.bytes_per_second = static_cast<std::uint64_t>(bytes_per_second_);
        now.dirtied_bytes_per_second = static_cast<std::uint64_t>(dirtied_per_second_);
        now.throttled_percent = throttle_.percent();
        if (report_.rounds != 0) {
            now.left = std::chrono::seconds(
                static_cast<std::int64_t>(static_cast<double>(total - done) / bytes_per_second_ + switch_seconds_));
        }
        options_.progress(now);
    }

    const MachineToSave& machine_;
    const MigrationOptions& options_;
    const std::stop_token& stop_;
    const std::stop_token& machine_ends_;
    const Clock::time_point start_ = Clock::now();
    EventFd cancelled_;
    std::stop_source sending_; ///< a round
    std::optional<std::stop_callback<EndWaiting>> on_stop_{std::in_place, stop_, EndWaiting{this}};
    std::optional<std::stop_callback<EndWaiting>> on_machine_end_; ///< from the commit on
    MachineSecondLevel::Hold hold_;
    bool was_paused_ = false; ///< when we paused it last
    std::vector<FileRange> shared_files_;
    PageSender sender_;
    std::optional<MachineSecondLevel::DirtyLog> log_;
    VcpuThrottle throttle_;
    const SessionId session_;
    std::unique_ptr<Channel> control_;
    milliseconds patience_ = kPatience; ///< with what the destination says of pages
    bool may_have_last_word_ = true;    ///< whether `control_` can still be read
    UniqueFd destination_process_;      ///< a pidfd; empty if it is not known
    std::string_view stage_;
    std::uint32_t attempt_ = 0;     ///< Stream::attempt
    std::uint64_t round_ = 0;       ///< its number, which each attempt has anew
    std::uint64_t round_bytes_ = 0; ///< of memory, in the last one
    double round_seconds_ = 1;      ///< of the last one
    double bytes_per_second_ = kAssumedBytesPerSecond;
    double dirtied_per_second_ = 0;
    double switch_seconds_ = kSwitchSeconds; ///< what a switch takes beside the pages
    bool is_full_there_ = false;
    bool is_forced_ = false;
    bool has_sent_state_ = false; ///< the last one
    bool is_committed_ = false;
    MigrationReport report_;
    std::vector<std::unique_ptr<Channel>> servers_; ///< what the destination asks on, in a post-copy
    struct Serving {
        ~Serving() {
            departure.end_serving();
            for (std::thread& thread : threads) {
                thread.join();
            }
        }
        Departure& departure;
        std::vector<std::thread> threads{};
    } serving_{*this}; // last: its threads use all of the above
};

} // namespace

MigrationReport depart(const MachineToSave& machine, const MigrationOptions& options, const std::stop_token& stop,
                       const std::stop_token& machine_ends) {
    options.check();
    if (machine_ends.stop_requested()) {
        throw UsageError("cannot migrate the machine: it has ended, or is about to");
    }
    MigrationReport report;
    std::exception_ptr failure;
    try {
        Departure departure(machine, options, stop, machine_ends);
        departure.run();
        report = departure.report();
    } catch (...) {
        failure = std::current_exception();
    }
    if (!report.complete && !machine_ends.stop_requested()) {
        try {
            fill_again(machine, machine_ends);
        } catch (const Error&) { // The guest runs, and takes faults. What failed before is what counts.
        }
    }
    if (failure) {
        std::rethrow_exception(failure);
    }
    return report;
}

} // namespace vmm
