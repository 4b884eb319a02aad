#include "vmm/machine/run.hpp"

#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <exception>
#include <functional>
#include <latch>
#include <span>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/process_memory.hpp"
#include "kvm/host/stopwatch.hpp"
#include "kvm/x86/registers.hpp"

namespace vmm {

namespace {

using Clock = std::chrono::steady_clock;

} // namespace

Run::Run(const Config& config, Hardware& hardware, FirstState& first, StopRequest& stop, Embedder& embedder,
         RunReport& report, Clock::time_point started)
    : config_(config), hardware_(hardware), first_(first), stop_(stop), embedder_(embedder), report_(report),
      started_(started), pause_(hardware.virtio, stop), sandbox_(config.sandbox) {}

ExitReason Run::execute() {
    if (has_begun_.exchange(true)) {
        throw UsageError("cannot run the machine: it runs or has run, and a machine runs once (make another one)");
    }
    struct Running {
        explicit Running(Run& of) : run(of) {
            run.runner_ = std::this_thread::get_id();
            run.state_ = RunState::kRunning;
            run.embedder_.set_guest_runs();
        }
        ~Running() {
            run.pause_.close();
            run.state_ = RunState::kEnded;
        }
        Running(const Running&) = delete;
        Running& operator=(const Running&) = delete;
        Run& run;
    };
    const Running running(*this);
    {
        const std::lock_guard hold(counting_);
        hardware_.faults.reset();
    }
    if (!first_.is_lazy()) {
        first_.finish();
    }
    std::deque<VcpuThread> threads;
    try {
        run_threads(threads);
    } catch (...) {
        flush_output();
        throw;
    }
    flush_output();
    embedder_.rethrow_failure();
    for (const VcpuThread& thread : threads) {
        if (thread.failure()) {
            std::rethrow_exception(thread.failure());
        }
    }
    report_.exit = stop_.reason();
    note_end(threads);
    log_end();
    if (config_.ended) {
        config_.ended(report_.exit);
    }
    embedder_.rethrow_failure(); // the log may have thrown
    return report_.exit;
}

void Run::run_threads(std::deque<VcpuThread>& threads) {
    EventLoop loop;
    std::latch start(1);
    bool stopping = false;
    [[maybe_unused]] const bool watched =
        loop.watch(stop_.fd(), EPOLLIN, [&stopping](std::uint32_t) { stopping = true; });
    assert(watched);
    std::optional<TimerFd> watch_timer;
    std::optional<TimerFd> arrival_timer;
    std::optional<BackgroundPrefault> background;
    std::optional<Keeper> keeper;
    std::deque<MemoryGrower> growers; // they serve until the devices have ended
    try {
        hardware_.serial_console.attach(hardware_.board.serial(), loop);
        if (hardware_.virtio_console) {
            hardware_.virtio_console->attach(*hardware_.virtio_devices.console, loop);
            watch_terminal_size(loop);
        }
        if (config_.watch) {
            watch_second_level(loop, watch_timer.emplace(1.0));
        }
        if (hardware_.virtio.has_pci()) {
            [[maybe_unused]] const bool follows = loop.watch(hardware_.virtio.let_go_fd(), EPOLLIN,
                                                             [this](std::uint32_t) { hardware_.virtio.take_away(); });
            assert(follows);
        }
        if (first_.comes_later()) {
            watch_arrival(loop, arrival_timer.emplace(1.0));
        }
        if (first_.starts_paused()) {
            pause_.pause(std::chrono::milliseconds(0)); // there are no threads to wait for yet
        }
        // All threads are made first, and wait. From start() on, an arrived guest belongs to this machine alone.
        pause_.start_devices(stop_, sandbox_);
        const VcpuEnvironment environment{
            hardware_.board.ports(), hardware_.board.mmio(), stop_, pause_.gate(), sandbox_, start};
        for (kvm::Vcpu& vcpu : hardware_.vcpus) {
            threads.emplace_back(vcpu, cpus_of(vcpu.id()), environment);
        }
        first_.start(hardware_);
        pause_.let_devices_begin();
        pause_.open(threads.size(), [&threads] {
            for (VcpuThread& thread : threads) {
                thread.kick();
            }
        });
        hardware_.second_level.note_guest_runs();
        first_.note_guest_runs(true);
        start.count_down(); // Every thread exists now. A guest that has begun cannot be given back.
        if (config_.prefault_when == PrefaultWhen::kBackground) {
            background.emplace(first_, hardware_.second_level, background_options(), stop_, [this] { note_full(); });
        }
        for (devices::virtio::MemoryDevice* const memory : hardware_.virtio_devices.memories) {
            growers.emplace_back(*memory, first_, hardware_.second_level, stop_, embedder_);
        }
        if (config_.prefault_keep) {
            keeper.emplace(config_, hardware_.second_level, hardware_.faults, stop_, embedder_);
        }
        if (config_.started) {
            config_.started();
        }
        // Both are checked, because signals may interrupt the loop again and again.
        while (!stopping && !stop_.is_requested()) {
            loop.run_once(-1);
        }
    } catch (...) {
        first_.note_failure("its machine failed before the guest ran");
        stop_.request_for_failure();
        pause_.close();
        if (!start.try_wait()) {
            start.count_down();
        }
        threads.clear(); // The destructors kick and join.
        first_.note_guest_runs(false);
        hardware_.virtio.abandon();
        throw;
    }
    pause_.close();
    report_.guest_ended = Clock::now();
    for (VcpuThread& thread : threads) {
        thread.kick();
    }
    for (VcpuThread& thread : threads) {
        thread.join();
    }
    first_.note_guest_runs(false);
    if (background) {
        note_background(background->join(), threads);
    }
    if (keeper) {
        report_.kept = keeper->join();
    }
    hardware_.virtio.join();
    for (const std::string& line : hardware_.virtio.failures()) {
        embedder_.log(LogLevel::kWarning, line);
    }
}

prefault::CpuList Run::cpus_of(unsigned vcpu) const {
    return config_.vcpu_cpus.empty() ? hardware_.ram.vcpu_cpus(vcpu, config_.vcpus)
                                     : prefault::CpuList{config_.vcpu_cpus[vcpu % config_.vcpu_cpus.size()]};
}

prefault::Options Run::background_options() {
    prefault::Options options = config_.prefault;
    options.background = true;
    if (options.progress) { // What the observer throws is a failure of the embedding program, not of the prefault.
        options.progress = [this, sink = std::move(options.progress)](const prefault::Progress& now) {
            try {
                sink(now);
            } catch (...) {
                embedder_.note_failure(std::current_exception());
            }
        };
    }
    return options;
}

void Run::watch_second_level(EventLoop& loop, TimerFd& timer) {
    watched_faults_.assign(hardware_.vcpus.size(), 0);
    [[maybe_unused]] const bool watched =
        loop.watch(timer.fd(), EPOLLIN, [this, &timer, begin = Clock::now()](std::uint32_t) {
            timer.clear();
            std::vector<std::uint64_t> now = hardware_.faults.counts();
            std::vector<std::uint64_t> fresh = now;
            std::ranges::transform(fresh, watched_faults_, fresh.begin(), std::minus<>());
            config_.watch({seconds_since(begin), hardware_.second_level.mapped(), std::move(fresh)});
            watched_faults_ = std::move(now);
        });
    assert(watched);
}

/// Counts the faults that a guest takes in its first seconds here.
void Run::watch_arrival(EventLoop& loop, TimerFd& timer) {
    constexpr unsigned kLast = 10;
    [[maybe_unused]] const bool watched =
        loop.watch(timer.fd(), EPOLLIN, [this, &timer, &loop, seconds = 0U](std::uint32_t) mutable {
            timer.clear();
            if (++seconds == 1) {
                faults_in_first_second_ = hardware_.faults.total();
            } else if (seconds == kLast) {
                faults_in_ten_seconds_ = hardware_.faults.total();
                loop.unwatch(timer.fd());
            }
        });
    assert(watched);
}

void Run::watch_terminal_size(EventLoop& loop) {
    const int fd = config_.console->resized_fd;
    if (fd < 0 || !config_.console->size) {
        return;
    }
    const auto tell = [this] {
        if (const auto size = config_.console->size()) {
            hardware_.virtio_devices.console->resize(*size);
        }
    };
    tell(); // The size may have changed since the machine was made.
    const bool watched = loop.watch(fd, EPOLLIN, [fd, tell](std::uint32_t) {
        std::uint64_t count = 0;
        [[maybe_unused]] const ssize_t ignored = ::read(fd, &count, sizeof(count));
        tell();
    });
    if (!watched) {
        throw Error("cannot watch Config::console.resized_fd: it has to be an eventfd");
    }
}

void Run::note_full() {
    report_.faults_until_full = hardware_.faults.total();
    if (config_.filled) {
        try {
            config_.filled();
        } catch (...) {
            embedder_.note_failure(std::current_exception());
        }
    }
}

void Run::note_background(BackgroundPrefault::Result result, const std::deque<VcpuThread>& threads) {
    if (result.failure) {
        result.report.scope = config_.prefault.scope;
        result.report.ranges = config_.prefault.ranges;
        try {
            std::rethrow_exception(result.failure);
        } catch (const std::exception& error) {
            result.report.problem = error.what();
        } catch (...) { // The embedding program's observer may have thrown it.
            result.report.problem = "an exception of unknown type ended it";
        }
    }
    report_.prefault = std::move(result.report);
    report_.locked_bytes = locked_bytes();
    report_.pinned_bytes = pinned_bytes();
    if (result.full_at && threads.front().first_entry()) {
        report_.seconds_until_full = seconds_between(*threads.front().first_entry(), *result.full_at);
    }
}

void Run::flush_output() noexcept {
    using std::chrono::milliseconds;
    // A person who has asked for the stop does not wait long for a slow reader.
    const CharacterConsole::Patience patience =
        stop_.is_requested_for(ExitReason::kSignal)
            ? CharacterConsole::Patience{milliseconds(150), milliseconds(150)}
            : CharacterConsole::Patience{milliseconds(1000), milliseconds(5000)};
    for (CharacterConsole* const output : {&hardware_.serial_console, hardware_.virtio_console.get()}) {
        if (output != nullptr) {
            try {
                output->flush(patience);
            } catch (...) {
                embedder_.note_failure(std::current_exception());
            }
        }
    }
}

void Run::note_output(const char* device, const CharacterConsole& output) {
    LostOutput lost = output.lost_output();
    if (lost.bytes != 0) {
        embedder_.log(LogLevel::kWarning,
                      vmm::format("{} bytes of {} output were dropped: {}", lost.bytes, device, lost.why));
    }
    report_.output.push_back({device, output.output_bytes(), lost.bytes, std::move(lost.why)});
}

void Run::note_end(const std::deque<VcpuThread>& threads) {
    if (const auto first_entry = threads.front().first_entry()) {
        report_.guest_seconds = seconds_between(*first_entry, report_.guest_ended);
        report_.seconds_to_first_instruction = seconds_between(started_, *first_entry);
    }
    report_.second_level_faults = hardware_.faults.counts();
    report_.exits = hardware_.faults.exits();
    report_.mapped = hardware_.second_level.mapped_at_rest();
    report_.lazy = first_.lazy_report();
    report_.arrival = first_.arrival_report();
    if (report_.arrival) {
        report_.arrival->faults_in_first_second = faults_in_first_second_;
        report_.arrival->faults_in_ten_seconds = faults_in_ten_seconds_;
    }
    for (std::size_t i = 0; i < threads.size(); ++i) {
        if (report_.exit == ExitReason::kCrash && !threads[i].crash().empty()) {
            const kvm::Vcpu& vcpu = hardware_.vcpus[i];
            crash_ += vmm::format("vCPU {}: {}\n{}", i, threads[i].crash(),
                                  kvm::describe_registers(vcpu.registers(), vcpu.special_registers()));
        }
    }
    report_.resident_overhead_bytes = measure_resident_overhead();
}

void Run::log_end() {
    for (const auto& kept : hardware_.virtio_devices.kept_frames) {
        if (kept && kept->count() > 1) { // a single frame was reported when it came
            embedder_.log(LogLevel::kInfo, kept->summary());
        }
    }
    if (hardware_.virtio_devices.balloon != nullptr) {
        const auto balloon = hardware_.virtio_devices.balloon->statistics();
        embedder_.log(LogLevel::kInfo,
                      vmm::format("balloon: the guest put {} in and took {} out, and reported {} as free",
                                  format_bytes(balloon.inflated), format_bytes(balloon.deflated),
                                  format_bytes(balloon.reported)));
    }
    note_output("serial", hardware_.serial_console);
    if (hardware_.virtio_console) {
        note_output("console", *hardware_.virtio_console);
    }
    const devices::Bus& ports = hardware_.board.ports();
    const devices::Bus& mmio = hardware_.board.mmio();
    embedder_.log(LogLevel::kDebug, vmm::format("accesses to addresses of no device: {} port reads, {} port writes, "
                                                "{} MMIO reads, {} MMIO writes",
                                                ports.unclaimed_reads(), ports.unclaimed_writes(),
                                                mmio.unclaimed_reads(), mmio.unclaimed_writes()));
}

std::optional<std::uint64_t> Run::measure_resident_overhead() const {
    // If it is known how much of guest memory is resident, a subtraction is enough. Otherwise the kernel must look at
    // each page.
    const bool from_pool = is_from_pool(config_.page_size);
    const bool all_resident = report_.prefault.scope != prefault::Scope::kNone && report_.prefault.complete &&
                              report_.prefault.ranges.empty();
    const GuestMemory& memory = hardware_.ram.memory();
    if (from_pool || all_resident) {
        const std::optional<std::uint64_t> resident = resident_bytes();
        const std::uint64_t guest_bytes = from_pool ? 0 : hardware_.ram.present_bytes();
        return resident ? std::optional(*resident > guest_bytes ? *resident - guest_bytes : 0) : std::nullopt;
    }
    std::vector<std::span<std::byte>> guest;
    for (const prefault::PlacedRange& placed : hardware_.ram.placement().ranges) {
        guest.push_back(memory.at(placed.range).value());
    }
    return resident_bytes_outside(guest);
}

Statistics Run::statistics() const {
    Statistics statistics;
    statistics.state = state_;
    if (statistics.state == RunState::kRunning && pause_.is_paused()) {
        statistics.state = RunState::kPaused;
    }
    std::vector<std::uint64_t> faults;
    std::vector<std::uint64_t> exits;
    {
        const std::lock_guard hold(counting_);
        faults = hardware_.faults.counts();
        exits = hardware_.faults.exits();
    }
    for (std::size_t vcpu = 0; vcpu < faults.size(); ++vcpu) {
        statistics.vcpus.push_back({vcpu < exits.size() ? exits[vcpu] : 0, faults[vcpu]});
    }
    statistics.mapped = hardware_.second_level.mapped();
    statistics.devices = hardware_.virtio.statistics();
    if (const auto* const balloon = hardware_.virtio_devices.balloon; balloon != nullptr) {
        const auto counted = balloon->statistics();
        const auto found = std::ranges::find(statistics.devices, balloon->identity().name, &DeviceStatistics::name);
        assert(found != statistics.devices.end());
        found->counters.push_back({"inflated_bytes", counted.inflated});
        found->counters.push_back({"deflated_bytes", counted.deflated});
        found->counters.push_back({"reported_bytes", counted.reported});
    }
    statistics.memory = {config_.memory_bytes, config_.memory_bytes,
                         std::max(config_.memory_bytes, config_.memory_max_bytes)};
    for (const devices::virtio::MemoryDevice* const memory : hardware_.virtio_devices.memories) {
        const auto counted = memory->statistics();
        statistics.memory.bytes += counted.plugged;
        statistics.memory.requested_bytes += counted.requested;
        const auto found = std::ranges::find(statistics.devices, memory->identity().name, &DeviceStatistics::name);
        assert(found != statistics.devices.end());
        found->counters.push_back({"refused", counted.refused});
    }
    return statistics;
}

void Run::check_reader() const {
    if (state_ == RunState::kRunning && runner_.load() != std::this_thread::get_id()) {
        throw UsageError("cannot read the report of a machine that runs from another thread than the one that runs it "
                         "(Machine::statistics() can be read from any)");
    }
}

} // namespace vmm
