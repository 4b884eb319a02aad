#include "vmm/machine.hpp"

#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cassert>
#include <exception>
#include <functional>
#include <latch>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "devices/disk_io.hpp"
#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/process_memory.hpp"
#include "kvm/host/timer_fd.hpp"
#include "kvm/system.hpp"
#include "vmm/host/capabilities.hpp"
#include "vmm/host/memory_need.hpp"
#include "vmm/machine/background_prefault.hpp"
#include "vmm/machine/board.hpp"
#include "vmm/machine/character_console.hpp"
#include "vmm/machine/custom_devices.hpp"
#include "vmm/machine/event_loop.hpp"
#include "vmm/machine/fault_counters.hpp"
#include "vmm/machine/guest_images.hpp"
#include "vmm/machine/guest_ram.hpp"
#include "vmm/machine/machine_second_level.hpp"
#include "vmm/machine/memory_map.hpp"
#include "vmm/machine/pause_gate.hpp"
#include "vmm/machine/stop_bridge.hpp"
#include "vmm/machine/vcpu_thread.hpp"
#include "vmm/machine/virtio_devices.hpp"
#include "vmm/machine/x86/boot_state.hpp"
#include "vmm/machine/x86/cpu_model.hpp"
#include "vmm/machine/x86/cpuid.hpp"

namespace vmm {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point start, Clock::time_point end) {
    return std::chrono::duration<double>(end - start).count();
}

Config validated(Config config) {
    validate(config);
    return config;
}

} // namespace

/// The members stand in the order they depend on each other: memory outlives the VM, the VM its vCPUs.
struct Machine::Parts {
    Parts(Config wanted, Clock::time_point started_at);

    void log(LogLevel level, const std::string& line);
    /// Something that the embedding program gave us threw: the run ends, and the first of these comes out of it.
    void note_failure(std::exception_ptr failure) noexcept;
    void rethrow_failure();
    /// Devices that go on when the machine is gone have nobody any more whom they could tell of it.
    void part_from_user() {
        const std::lock_guard hold(warning);
        parted_from_user = true;
    }
    void check_reader() const;
    /// What vCPU `id` is told by CPUID; a prefault vCPU is told what vCPU 0 is.
    [[nodiscard]] std::vector<kvm_cpuid_entry2> cpuid_of(unsigned id) const;
    /// Makes `virtio_console`, too, which the devices stand on.
    [[nodiscard]] DeviceServices device_services();
    void create_vcpus();
    void load();
    [[nodiscard]] bool adopts_page_tables() const;
    [[nodiscard]] std::string command_line() const;
    [[nodiscard]] prefault::CpuList cpus_of(unsigned vcpu) const;
    prefault::Report prefault(const prefault::Options& options);
    void run_threads(std::deque<VcpuThread>& threads);
    void watch(EventLoop& loop, TimerFd& timer);
    void watch_terminal_size(EventLoop& loop);
    [[nodiscard]] std::optional<std::uint64_t> measure_resident_overhead() const;
    void note_background(BackgroundPrefault::Result result, const std::deque<VcpuThread>& threads);
    void flush_output() noexcept;
    void note_output(const char* device, const CharacterConsole& output);
    void note_end(const std::deque<VcpuThread>& threads);

    Config config;
    CpuModel cpu;
    Clock::time_point started;
    RunReport report;
    std::string crash;
    std::shared_ptr<StopRequest> shared_stop;
    StopRequest& stop;
    std::mutex warning; ///< while a device tells the user something
    bool parted_from_user = false;
    std::mutex failure_lock;
    std::exception_ptr failure;
    PauseGate gate;
    std::atomic<MachineState> state{MachineState::kReady};
    std::atomic<std::thread::id> runner; ///< who is in run()
    GuestFiles files;
    std::optional<CharacterConsole> virtio_console;
    VirtioSet virtio_devices; ///< the devices themselves until `virtio` has them
    kvm::System system;
    GuestRam ram;
    kvm::Vm vm;
    CharacterConsole console;
    VirtioDevices virtio;
    CustomDevices custom;
    Board board;
    std::vector<kvm_cpuid_entry2> supported_cpuid;
    bool tsc_deadline = false;
    std::uint64_t machine_check_capabilities = 0; ///< of KVM
    std::deque<kvm::Vcpu> vcpus;                  ///< a deque: a vCPU's address never changes
    mutable std::mutex counting;                  ///< while the counters begin anew
    std::optional<FaultCounters> faults;
    std::vector<std::uint64_t> watched_faults; ///< the counts of the last sample
    std::optional<MachineSecondLevel> second_level;
    std::vector<std::byte> device_tree; ///< what the guest is given, or empty
    std::atomic<bool> has_run{false};
};

namespace {

kvm::System open_checked_system(const Config& config) {
    kvm::System system;
    check_host(system, config);
    return system;
}

GuestRam create_ram(const Config& config, const StopRequest& stop) {
    if (is_from_pool(config.page_size)) {
        const StopBridge bridge(stop); // Raising a pool may take long, and so may populating.
        return {config, bridge.token()};
    }
    return {config, {}};
}

kvm::Vm create_vm(const kvm::System& system, const GuestMemory& memory) {
    kvm::Vm vm(system);
    // Memslots first: once there are interrupt controllers, adding one waits for a grace period of the kernel's
    // (measured: 5 to 8 ms instead of 0.3 ms). The prefault's scratch slot comes later, and waits.
    std::uint32_t slot = 0;
    for (const MemoryRegion& region : memory.regions()) {
        vm.add_memslot(slot++, region.range, region.host);
    }
    assert(slot <= memory_map::kScratchMemslot);
    vm.reserve_real_mode_pages(memory_map::kRealModePages);
    vm.create_irqchip();
    set_up_pics(vm);
    vm.create_pit();
    return vm;
}

} // namespace

Machine::Parts::Parts(Config wanted, Clock::time_point started_at)
    : config(validated(std::move(wanted))), cpu(CpuModel::parse(config.cpu, config.nested)), started(started_at),
      shared_stop(config.stop ? config.stop : std::make_shared<StopRequest>()), stop(*shared_stop),
      files(GuestFiles::open(config, stop.fd())), virtio_devices(make_virtio_devices(config, device_services())),
      system(open_checked_system(config)), ram(create_ram(config, stop)), vm(create_vm(system, ram.memory())),
      console(config.serial, [this] { stop.request(ExitReason::kStopped); }),
      virtio(vm, ram.memory(), std::move(virtio_devices.devices)),
      custom(vm, ram.memory(), config.devices, [this](std::exception_ptr thrown) { note_failure(std::move(thrown)); }),
      board(vm, console.callbacks(), virtio, custom, stop),
      supported_cpuid(with_cpu_brand(system.supported_cpuid(), host_cpu_brand())),
      tsc_deadline(system.extension(KVM_CAP_TSC_DEADLINE_TIMER) != 0),
      machine_check_capabilities(system.machine_check_capabilities()) {
    report.host = prefault::detect_second_level(vm);
    for (const std::string& line : host_room_warnings(config)) {
        log(LogLevel::kWarning, line);
    }
    report.kvm_pre_fault_memory = vm.extension(KVM_CAP_PRE_FAULT_MEMORY) != 0;
    report.memory_bytes = config.memory_bytes;
    report.page_size = config.page_size;
    report.pin = config.pin;
    report.numa = config.numa;
    report.prefault_when = config.prefault_when;
    report.vcpus = config.vcpus;
    report.cpu = config.cpu;
    report.nested = config.nested;
    report.hardware = config.hardware;
    create_vcpus();
    second_level.emplace(vm, ram, config, cpuid_of(0));
    // In the background the prefault vCPUs are made there, too, unless the guest is to be told of their page tables.
    if (config.prefault.scope == prefault::Scope::kAll &&
        (config.prefault_when == PrefaultWhen::kBefore || adopts_page_tables())) {
        const StopBridge bridge(stop); // Prefault vCPUs may run already, to be counted.
        second_level->prepare(bridge.token());
    }
    load();
}

void Machine::Parts::log(LogLevel level, const std::string& line) {
    if (!config.log) {
        return;
    }
    try {
        config.log(level, line);
    } catch (...) {
        if (state == MachineState::kReady) {
            throw;
        }
        note_failure(std::current_exception());
    }
}

void Machine::Parts::note_failure(std::exception_ptr thrown) noexcept {
    {
        const std::lock_guard hold(failure_lock);
        if (!failure) {
            failure = std::move(thrown);
        }
    }
    stop.request_for_failure();
}

void Machine::Parts::rethrow_failure() {
    const std::lock_guard hold(failure_lock);
    if (failure) {
        std::rethrow_exception(failure);
    }
}

void Machine::Parts::check_reader() const {
    const MachineState now = state;
    if ((now == MachineState::kRunning || now == MachineState::kPaused) &&
        runner.load() != std::this_thread::get_id()) {
        throw UsageError("cannot read the report of a machine that runs from another thread than the one that runs it "
                         "(Machine::statistics() can be read from any)");
    }
}

DeviceServices Machine::Parts::device_services() {
    if (config.console) {
        virtio_console.emplace(*config.console, [this] { stop.request(ExitReason::kStopped); });
    }
    DeviceServices services;
    services.warn = [this](const std::string& line) {
        const std::lock_guard hold(warning);
        if (!parted_from_user) {
            log(LogLevel::kWarning, line);
        }
    };
    if (virtio_console) {
        services.console = virtio_console->callbacks();
    }
    if (config.pin == prefault::Pin::kLongterm) {
        services.pinned_memory = [this] {
            std::vector<std::span<std::byte>> pieces;
            for (const MemoryRegion& region : ram.memory().regions()) {
                for (std::uint64_t offset = 0; offset < region.range.size;
                     offset += devices::DiskIo::kMostBufferBytes) {
                    pieces.push_back(
                        region.bytes().subspan(offset, std::min<std::uint64_t>(devices::DiskIo::kMostBufferBytes,
                                                                               region.range.size - offset)));
                }
            }
            return pieces;
        };
    }
    return services;
}

std::vector<kvm_cpuid_entry2> Machine::Parts::cpuid_of(unsigned id) const {
    return cpu.applied_to(guest_cpuid(supported_cpuid, config.vcpus, id, tsc_deadline));
}

bool Machine::Parts::adopts_page_tables() const {
    // Without a second level in hardware, what the prefault vCPUs filled belongs to their page tables: a guest that
    // says so (the built-in one does) adopts them.
    return files.kernel.takes_page_tables() && config.prefault.scope == prefault::Scope::kAll &&
           report.host.may_be_shadow();
}

void Machine::Parts::create_vcpus() {
    for (unsigned id = 0; id < config.vcpus; ++id) {
        kvm::Vcpu& vcpu = vcpus.emplace_back(vm, id);
        const auto cpuid = cpuid_of(id);
        vcpu.set_cpuid(cpuid);
        set_reset_state(vcpu, cpuid, machine_check_capabilities);
    }
    faults.emplace(vcpus);
}

std::string Machine::Parts::command_line() const {
    std::string line = Config::kDefaultCommandLine;
    if (config.console) {
        line += " console=hvc0";
    }
    if (adopts_page_tables()) {
        line += " tables=" + to_string(second_level->page_tables());
    }
    if (config.hardware != HardwareDescription::kAcpi &&
        files.kernel.device_tree_hand_over() == loader::DeviceTreeHandOver::kCommandLine) {
        line += " fdt=" + to_string(kDeviceTreeAddress);
    }
    if (!config.command_line.empty()) {
        line += " " + config.command_line;
    }
    return line;
}

void Machine::Parts::load() {
    const BootPlan plan(config.memory_bytes, config.hardware);
    const std::string line = command_line();
    LoadedGuest loaded =
        load_guest(ram.memory(), files, line,
                   Board::describe(config.vcpus, ram.describe_nodes(config.vcpus), virtio.describe()), plan.layout());
    device_tree = std::move(loaded.device_tree);
    const loader::BootEntry& entry = loaded.entry;
    set_boot_state(vcpus.front(), entry, plan.layout());
    log(LogLevel::kInfo,
        vmm::format("kernel: {} ({}) at {}, entry {} by {}", files.kernel.name(), files.kernel.format_name(),
                    to_string(entry.kernel), to_string(entry.entry), to_string(entry.protocol)));
    if (entry.initrd) {
        log(LogLevel::kInfo, vmm::format("initrd: {} at {}", files.initrd->name(), to_string(*entry.initrd)));
    }
    log(LogLevel::kInfo, "command line: " + line);
    files.kernel.close_file(); // What the files held is in guest memory.
    files.initrd.reset();
    config.kernel_image.reset();
    config.initrd_image.reset();
    if (!device_tree.empty()) {
        log(LogLevel::kInfo,
            vmm::format("device tree: {} bytes at {}", device_tree.size(), to_string(kDeviceTreeAddress)));
    }
}

prefault::CpuList Machine::Parts::cpus_of(unsigned vcpu) const {
    return config.vcpu_cpus.empty() ? ram.vcpu_cpus(vcpu, config.vcpus)
                                    : prefault::CpuList{config.vcpu_cpus[vcpu % config.vcpu_cpus.size()]};
}

void Machine::Parts::watch_terminal_size(EventLoop& loop) {
    const int fd = config.console->resized_fd;
    if (fd < 0 || !config.console->size) {
        return;
    }
    const auto tell = [this] {
        if (const auto size = config.console->size()) {
            virtio_devices.console->resize(*size);
        }
    };
    tell(); // It may have changed since.
    const bool watched = loop.watch(fd, EPOLLIN, [fd, tell](std::uint32_t) {
        std::uint64_t count = 0;
        static_cast<void>(::read(fd, &count, sizeof(count)));
        tell();
    });
    if (!watched) {
        throw Error("cannot watch Config::console.resized_fd: it has to be an eventfd");
    }
}

void Machine::Parts::watch(EventLoop& loop, TimerFd& timer) {
    watched_faults.assign(vcpus.size(), 0);
    [[maybe_unused]] const bool watched =
        loop.watch(timer.fd(), EPOLLIN, [this, &timer, begin = Clock::now()](std::uint32_t) {
            timer.clear();
            std::vector<std::uint64_t> now = faults->counts();
            std::vector<std::uint64_t> fresh = now;
            std::transform(fresh.begin(), fresh.end(), watched_faults.begin(), fresh.begin(), std::minus<>());
            config.watch({seconds_between(begin, Clock::now()), second_level->mapped(), std::move(fresh)});
            watched_faults = std::move(now);
        });
    assert(watched);
}

void Machine::Parts::run_threads(std::deque<VcpuThread>& threads) {
    EventLoop loop;
    std::latch start(1);
    bool stopping = false;
    [[maybe_unused]] const bool watched =
        loop.watch(stop.fd(), EPOLLIN, [&stopping](std::uint32_t) { stopping = true; });
    assert(watched);
    std::optional<TimerFd> watch_timer;
    std::optional<BackgroundPrefault> background;
    try {
        console.attach(board.serial(), loop);
        if (virtio_console) {
            virtio_console->attach(*virtio_devices.console, loop);
            watch_terminal_size(loop);
        }
        if (config.watch) {
            watch(loop, watch_timer.emplace(1.0));
        }
        virtio.start(stop);
        const VcpuEnvironment environment{board.ports(), board.mmio(), stop, gate, start};
        for (kvm::Vcpu& vcpu : vcpus) {
            threads.emplace_back(vcpu, cpus_of(vcpu.id()), environment);
        }
        gate.open(threads.size(), [&threads] {
            for (VcpuThread& thread : threads) {
                thread.kick();
            }
        });
        second_level->note_guest_runs();
        start.count_down(); // Not before every thread exists: a guest that has begun cannot be taken back.
        if (config.prefault_when == PrefaultWhen::kBackground) {
            prefault::Options options = config.prefault;
            options.background = true;
            if (options.progress) { // What it throws is the embedding program's, not the prefault's.
                options.progress = [this, sink = std::move(options.progress)](const prefault::Progress& now) {
                    try {
                        sink(now);
                    } catch (...) {
                        note_failure(std::current_exception());
                    }
                };
            }
            background.emplace(*second_level, std::move(options), stop,
                               [this] { report.faults_until_full = faults->total(); });
        }
        while (!stopping && !stop.is_requested()) { // Both: the loop may be interrupted all the time.
            loop.run_once(-1);
        }
    } catch (...) {
        stop.request_for_failure();
        gate.close();
        if (!start.try_wait()) {
            start.count_down();
        }
        threads.clear(); // Kicks and joins.
        virtio.abandon();
        throw;
    }
    gate.close();
    report.guest_ended = Clock::now();
    for (VcpuThread& thread : threads) {
        thread.kick();
    }
    for (VcpuThread& thread : threads) {
        thread.join();
    }
    if (background) {
        note_background(background->join(), threads);
    }
    virtio.join();
    for (const std::string& line : virtio.failures()) {
        log(LogLevel::kWarning, line);
    }
}

void Machine::Parts::note_background(BackgroundPrefault::Result result, const std::deque<VcpuThread>& threads) {
    if (result.failure) {
        result.report.scope = config.prefault.scope;
        result.report.ranges = config.prefault.ranges;
        try {
            std::rethrow_exception(result.failure);
        } catch (const std::exception& error) {
            result.report.problem = error.what();
        } catch (...) { // What the embedding program's observer threw, perhaps.
            result.report.problem = "an exception of unknown type ended it";
        }
    }
    report.prefault = std::move(result.report);
    report.locked_bytes = locked_bytes();
    report.pinned_bytes = pinned_bytes();
    if (result.full_at && threads.front().first_entry()) {
        report.seconds_until_full = seconds_between(*threads.front().first_entry(), *result.full_at);
    }
}

void Machine::Parts::flush_output() noexcept {
    using std::chrono::milliseconds;
    // Somebody who asked us to stop is not to wait for somebody else who reads slowly.
    const CharacterConsole::Patience patience =
        stop.is_requested_for(ExitReason::kSignal) ? CharacterConsole::Patience{milliseconds(150), milliseconds(150)}
                                                   : CharacterConsole::Patience{milliseconds(1000), milliseconds(5000)};
    for (CharacterConsole* const output : {&console, virtio_console ? &*virtio_console : nullptr}) {
        if (output != nullptr) {
            try {
                output->flush(patience);
            } catch (...) {
                note_failure(std::current_exception());
            }
        }
    }
}

void Machine::Parts::note_output(const char* device, const CharacterConsole& output) {
    LostOutput lost = output.lost_output();
    if (lost.bytes != 0) {
        log(LogLevel::kWarning, vmm::format("{} bytes of {} output were dropped: {}", lost.bytes, device, lost.why));
    }
    report.output.push_back({device, output.output_bytes(), lost.bytes, std::move(lost.why)});
}

void Machine::Parts::note_end(const std::deque<VcpuThread>& threads) {
    if (const auto first_entry = threads.front().first_entry()) {
        report.guest_seconds = seconds_between(*first_entry, report.guest_ended);
        report.seconds_to_first_instruction = seconds_between(started, *first_entry);
    }
    report.second_level_faults = faults->counts();
    report.exits = faults->exits();
    report.mapped = second_level->mapped_at_rest();
    for (std::size_t i = 0; i < vcpus.size(); ++i) {
        if (report.exit == ExitReason::kCrash && !threads[i].crash().empty()) {
            crash += vmm::format("vCPU {}: {}\n{}", i, threads[i].crash(),
                                 kvm::describe_registers(vcpus[i].registers(), vcpus[i].special_registers()));
        }
    }
    report.resident_overhead_bytes = measure_resident_overhead();
    for (const auto& kept : virtio_devices.kept_frames) {
        if (kept && kept->count() > 1) { // Of a single one the user has heard.
            log(LogLevel::kInfo, kept->summary());
        }
    }
    if (virtio_devices.balloon != nullptr) {
        const auto balloon = virtio_devices.balloon->statistics();
        log(LogLevel::kInfo, vmm::format("balloon: the guest put {} in and took {} out, and reported {} as free",
                                         format_bytes(balloon.inflated), format_bytes(balloon.deflated),
                                         format_bytes(balloon.reported)));
    }
}

std::optional<std::uint64_t> Machine::Parts::measure_resident_overhead() const {
    // Where it is known how much of guest memory is resident, the quick way; else the kernel has to look at each page.
    const bool from_pool = is_from_pool(config.page_size);
    const bool all_resident =
        report.prefault.scope != prefault::Scope::kNone && report.prefault.complete && report.prefault.ranges.empty();
    if (from_pool || all_resident) {
        const std::optional<std::uint64_t> resident = resident_bytes();
        const std::uint64_t guest_bytes = from_pool ? 0 : ram.memory().size_bytes();
        return resident ? std::optional(*resident > guest_bytes ? *resident - guest_bytes : 0) : std::nullopt;
    }
    std::vector<std::span<std::byte>> guest;
    for (const MemoryRegion& region : ram.memory().regions()) {
        guest.push_back(region.bytes());
    }
    return resident_bytes_outside(guest);
}

Machine::Machine(Config config, Clock::time_point started)
    : parts_(std::make_unique<Parts>(std::move(config), started)) {}

Machine::~Machine() {
    if (parts_ && parts_->virtio.has_left_work()) {
        parts_->part_from_user();
        static_cast<void>(parts_.release()); // The host still writes to the guest's memory: all of it stays.
    }
}

prefault::Report Machine::Parts::prefault(const prefault::Options& options) {
    const StopBridge bridge(stop);
    return second_level->fill(options, bridge.token());
}

prefault::Report Machine::prefault() {
    return prefault(parts_->config.prefault);
}

prefault::Report Machine::prefault(const prefault::Options& options) {
    Parts& parts = *parts_;
    prefault::Report report = parts.prefault(options);
    if (!parts.has_run) {
        parts.report.prefault = report;
        parts.report.locked_bytes = locked_bytes(); // The kernel's own figures.
        parts.report.pinned_bytes = pinned_bytes();
    }
    return report;
}

prefault::Report Machine::add_memory(GuestRange range) {
    const StopBridge bridge(parts_->stop);
    return parts_->second_level->add_memory(range, bridge.token());
}

void Machine::log_dirty_pages(bool on) {
    parts_->second_level->log_dirty_pages(on);
}

void Machine::set_balloon(std::uint64_t bytes) {
    Config wanted = parts_->config;
    if (!wanted.balloon) {
        throw Error("cannot set the size of the balloon: this machine has none");
    }
    wanted.balloon->target_bytes = bytes;
    validate_balloon(wanted);
    parts_->virtio_devices.balloon->set_target(bytes);
}

ExitReason Machine::run() {
    Parts& parts = *parts_;
    if (parts.has_run.exchange(true)) {
        throw UsageError("cannot run the machine: it runs or has run, and a machine runs once (make another one)");
    }
    struct Running {
        explicit Running(Parts& of) : parts(of) {
            parts.runner = std::this_thread::get_id();
            parts.state = MachineState::kRunning;
        }
        ~Running() {
            parts.gate.close();
            parts.state = MachineState::kEnded;
        }
        Running(const Running&) = delete;
        Running& operator=(const Running&) = delete;
        Parts& parts;
    };
    const Running running(parts);
    {
        const std::lock_guard hold(parts.counting);
        parts.faults->reset();
    }
    std::deque<VcpuThread> threads;
    try {
        parts.run_threads(threads);
    } catch (...) {
        parts.flush_output();
        throw;
    }
    parts.flush_output();
    parts.rethrow_failure();
    for (const VcpuThread& thread : threads) {
        if (thread.failure()) {
            std::rethrow_exception(thread.failure());
        }
    }
    parts.report.exit = parts.stop.reason();
    parts.note_end(threads);
    parts.note_output("serial", parts.console);
    if (parts.virtio_console) {
        parts.note_output("console", *parts.virtio_console);
    }
    parts.log(LogLevel::kDebug,
              vmm::format("accesses to addresses of no device: {} port reads, {} port writes, {} MMIO "
                          "reads, {} MMIO writes",
                          parts.board.ports().unclaimed_reads(), parts.board.ports().unclaimed_writes(),
                          parts.board.mmio().unclaimed_reads(), parts.board.mmio().unclaimed_writes()));
    if (parts.config.ended) {
        parts.config.ended(parts.report.exit);
    }
    parts.rethrow_failure(); // The log's, perhaps.
    return parts.report.exit;
}

void Machine::pause() {
    parts_->gate.pause();
}

void Machine::resume() {
    parts_->gate.resume();
}

Statistics Machine::statistics() const {
    const Parts& parts = *parts_;
    Statistics statistics;
    statistics.state = parts.state;
    if (statistics.state == MachineState::kRunning && parts.gate.is_paused()) {
        statistics.state = MachineState::kPaused;
    }
    std::vector<std::uint64_t> faults;
    std::vector<std::uint64_t> exits;
    {
        const std::lock_guard hold(parts.counting);
        faults = parts.faults->counts();
        exits = parts.faults->exits();
    }
    for (std::size_t vcpu = 0; vcpu < faults.size(); ++vcpu) {
        statistics.vcpus.push_back({vcpu < exits.size() ? exits[vcpu] : 0, faults[vcpu]});
    }
    statistics.mapped = parts.second_level->mapped();
    return statistics;
}

const GuestMemory& Machine::memory() const noexcept {
    return parts_->ram.memory();
}

void Machine::request_stop(ExitReason reason) noexcept {
    parts_->stop.request(reason);
}

bool Machine::is_stop_requested() const noexcept {
    return parts_->stop.is_requested();
}

std::span<const std::byte> Machine::device_tree() const noexcept {
    return parts_->device_tree;
}

const RunReport& Machine::report() const {
    parts_->check_reader();
    return parts_->report;
}

const std::string& Machine::crash_description() const {
    parts_->check_reader();
    return parts_->crash;
}

} // namespace vmm
