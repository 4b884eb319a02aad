#include "vmm/machine.hpp"

#include <sys/epoll.h>

#include <cassert>
#include <latch>
#include <optional>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "kvm/error.hpp"
#include "kvm/process_memory.hpp"
#include "kvm/system.hpp"
#include "vmm/board.hpp"
#include "vmm/event_loop.hpp"
#include "vmm/guest_images.hpp"
#include "vmm/host_requirements.hpp"
#include "vmm/memory_map.hpp"
#include "vmm/serial_console.hpp"
#include "vmm/stop_bridge.hpp"
#include "vmm/vcpu_thread.hpp"
#include "vmm/x86_boot_state.hpp"
#include "vmm/x86_cpuid.hpp"

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

std::vector<std::uint64_t> second_level_faults(const std::deque<kvm::Vcpu>& vcpus) {
    std::vector<std::uint64_t> faults;
    faults.reserve(vcpus.size());
    for (const kvm::Vcpu& vcpu : vcpus) {
        const auto value = vcpu.stats().value("pf_fixed");
        if (!value) {
            throw Error("cannot count second-level faults: this host's KVM does not count pf_fixed (it came with Linux "
                        "5.14)");
        }
        faults.push_back(*value);
    }
    return faults;
}

} // namespace

/// The members stand in the order they depend on each other: memory outlives the VM, the VM its vCPUs.
struct Machine::Parts {
    Parts(Config wanted, Clock::time_point started_at);

    void log(LogLevel level, const std::string& line) const {
        if (config.log) {
            config.log(level, line);
        }
    }
    void create_vcpus();
    void create_filler();
    void load();
    [[nodiscard]] std::string command_line() const;
    void run_threads(std::deque<VcpuThread>& threads);
    [[nodiscard]] std::uint64_t measure_resident_overhead() const;
    void note_end(const std::deque<VcpuThread>& threads, const std::vector<std::uint64_t>& faults_before);

    Config config;
    Clock::time_point started;
    RunReport report;
    std::string crash;
    StopRequest stop;
    GuestFiles files;
    kvm::System system;
    GuestMemory memory;
    kvm::Vm vm;
    SerialConsole console;
    Board board;
    std::vector<kvm_cpuid_entry2> supported_cpuid;
    bool tsc_deadline = false;
    std::deque<kvm::Vcpu> vcpus; ///< a deque: a vCPU's address never changes
    std::optional<prefault::SecondLevelFiller> filler;
    bool has_run = false;
};

namespace {

kvm::System open_checked_system(const Config& config) {
    kvm::System system;
    check_host(system, config);
    return system;
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
    vm.create_pit();
    return vm;
}

} // namespace

Machine::Parts::Parts(Config wanted, Clock::time_point started_at)
    : config(validated(std::move(wanted))), started(started_at), files(GuestFiles::open(config)),
      system(open_checked_system(config)), memory(memory_map::ram_layout(config.memory_bytes), config.page_size),
      vm(create_vm(system, memory)), console(config.serial, [this] { stop.request(ExitReason::kStopped); }),
      board(vm, console.callbacks(), stop), supported_cpuid(system.supported_cpuid()),
      tsc_deadline(system.extension(KVM_CAP_TSC_DEADLINE_TIMER) != 0) {
    report.host = prefault::detect_second_level();
    report.kvm_pre_fault_memory = vm.extension(KVM_CAP_PRE_FAULT_MEMORY) != 0;
    report.memory_bytes = config.memory_bytes;
    report.page_size = config.page_size;
    report.pin = config.prefault.pin;
    report.vcpus = config.vcpus;
    create_vcpus();
    if (config.prefault.scope == prefault::Scope::kAll) {
        create_filler();
    }
    load();
}

void Machine::Parts::create_vcpus() {
    for (unsigned id = 0; id < config.vcpus; ++id) {
        kvm::Vcpu& vcpu = vcpus.emplace_back(vm, id);
        vcpu.set_cpuid(guest_cpuid(supported_cpuid, config.vcpus, id, tsc_deadline));
        set_boot_msrs(vcpu);
    }
}

void Machine::Parts::create_filler() {
    const std::uint64_t mapped_bytes = *align_up(memory_map::address_space_bytes(config.memory_bytes), kGiB);
    const prefault::Scratch::Layout scratch{memory_map::kScratchWindow.base, mapped_bytes,
                                            has_one_gib_pages(supported_cpuid)};
    assert(prefault::Scratch::bytes_for(scratch) <= memory_map::kScratchWindow.size);
    filler.emplace(
        vm, prefault::SecondLevelFiller::Place{memory_map::kScratchMemslot, scratch, config.vcpus, report.host.kind},
        guest_cpuid(supported_cpuid, config.vcpus, 0, tsc_deadline), prefault_vcpus(config));
}

std::string Machine::Parts::command_line() const {
    std::string line = Config::kDefaultCommandLine;
    if (files.kernel.takes_page_tables() && filler && report.host.kind == prefault::SecondLevelKind::kShadow) {
        // Without a second level in hardware, what the dummies filled belongs to their page tables: a guest that says
        // so (the built-in one does) adopts them.
        line += " tables=" + to_string(filler->scratch().page_tables());
    }
    if (!config.command_line.empty()) {
        line += " " + config.command_line;
    }
    return line;
}

void Machine::Parts::load() {
    const BootPlan plan(config.memory_bytes);
    const std::string line = command_line();
    const loader::BootEntry entry = load_guest(memory, files, line, Board::describe(config.vcpus), plan.layout());
    set_boot_state(vcpus.front(), entry, plan.layout());
    log(LogLevel::kInfo, fmt::format("kernel: {} ({}) at {}, entry {} by {}", files.kernel.name(),
                                     files.kernel.format_name(), to_string(entry.kernel), to_string(entry.entry),
                                     entry.protocol == loader::EntryProtocol::pvh ? "PVH" : "the 64-bit protocol"));
    if (entry.initrd) {
        log(LogLevel::kInfo, fmt::format("initrd: {} at {}", config.initrd_path, to_string(*entry.initrd)));
    }
    log(LogLevel::kInfo, "command line: " + line);
}

void Machine::Parts::run_threads(std::deque<VcpuThread>& threads) {
    EventLoop loop;
    std::latch start(1);
    bool stopping = false;
    [[maybe_unused]] const bool watched =
        loop.watch(stop.fd(), EPOLLIN, [&stopping](std::uint32_t) { stopping = true; });
    assert(watched);
    try {
        console.attach(board.serial(), loop);
        const VcpuEnvironment environment{board.ports(), board.mmio(), stop, start};
        for (kvm::Vcpu& vcpu : vcpus) {
            threads.emplace_back(vcpu, environment);
        }
        start.count_down(); // Not before every thread exists: a guest that has begun cannot be taken back.
        while (!stopping) {
            loop.run_once(-1);
        }
    } catch (...) {
        stop.request_for_failure();
        if (!start.try_wait()) {
            start.count_down();
        }
        threads.clear(); // Kicks and joins.
        throw;
    }
    for (VcpuThread& thread : threads) {
        thread.kick();
    }
    for (VcpuThread& thread : threads) {
        thread.join();
    }
}

void Machine::Parts::note_end(const std::deque<VcpuThread>& threads, const std::vector<std::uint64_t>& faults_before) {
    const Clock::time_point ended = Clock::now();
    if (const auto first_entry = threads.front().first_entry()) {
        report.guest_seconds = seconds_between(*first_entry, ended);
        report.seconds_to_first_instruction = seconds_between(started, *first_entry);
    }
    report.second_level_faults = second_level_faults(vcpus);
    for (std::size_t i = 0; i < vcpus.size(); ++i) {
        report.second_level_faults[i] -= faults_before[i];
        if (report.exit == ExitReason::kCrash && !threads[i].crash().empty()) {
            crash += fmt::format("vCPU {}: {}\n{}", i, threads[i].crash(),
                                 kvm::describe_registers(vcpus[i].registers(), vcpus[i].special_registers()));
        }
    }
    report.resident_overhead_bytes = measure_resident_overhead();
}

std::uint64_t Machine::Parts::measure_resident_overhead() const {
    // Where it is known how much of guest memory is resident, the quick way; else the kernel has to look at each page.
    const bool from_pool = config.page_size == PageSize::k2M || config.page_size == PageSize::k1G;
    if (from_pool || (report.prefault.scope != prefault::Scope::kNone && report.prefault.complete)) {
        const std::uint64_t resident = resident_bytes();
        const std::uint64_t guest_bytes = from_pool ? 0 : memory.size_bytes();
        return resident > guest_bytes ? resident - guest_bytes : 0;
    }
    std::vector<std::span<std::byte>> guest;
    for (const MemoryRegion& region : memory.regions()) {
        guest.push_back(region.bytes());
    }
    return resident_bytes_outside(guest);
}

Machine::Machine(Config config, Clock::time_point started)
    : parts_(std::make_unique<Parts>(std::move(config), started)) {}

Machine::~Machine() = default;

const prefault::Report& Machine::prefault() {
    Parts& parts = *parts_;
    if (parts.config.prefault.scope == prefault::Scope::kNone) {
        parts.report.prefault = prefault::run(parts.memory, nullptr, parts.config.prefault);
        return parts.report.prefault;
    }
    const StopBridge bridge(parts.stop);
    parts.report.prefault =
        prefault::run(parts.memory, parts.filler ? &*parts.filler : nullptr, parts.config.prefault, bridge.token());
    return parts.report.prefault;
}

ExitReason Machine::run() {
    Parts& parts = *parts_;
    assert(!parts.has_run);
    parts.has_run = true;
    const std::vector<std::uint64_t> faults_before = second_level_faults(parts.vcpus);
    std::deque<VcpuThread> threads;
    parts.run_threads(threads);
    constexpr int kFlushMilliseconds = 1000;
    parts.console.flush(kFlushMilliseconds);
    for (const VcpuThread& thread : threads) {
        if (thread.failure()) {
            std::rethrow_exception(thread.failure());
        }
    }
    parts.report.exit = parts.stop.reason();
    parts.note_end(threads, faults_before);
    if (const auto dropped = parts.board.serial().dropped_output_bytes() + parts.console.lost_output_bytes();
        dropped != 0) {
        parts.log(LogLevel::kWarning,
                  fmt::format("{} bytes of serial output were dropped: nobody read them in time", dropped));
    }
    parts.log(LogLevel::kDebug,
              fmt::format("accesses to addresses of no device: {} port reads, {} port writes, {} MMIO "
                          "reads, {} MMIO writes",
                          parts.board.ports().unclaimed_reads(), parts.board.ports().unclaimed_writes(),
                          parts.board.mmio().unclaimed_reads(), parts.board.mmio().unclaimed_writes()));
    return parts.report.exit;
}

void Machine::request_stop(ExitReason reason) noexcept {
    parts_->stop.request(reason);
}

bool Machine::is_stop_requested() const noexcept {
    return parts_->stop.is_requested();
}

const RunReport& Machine::report() const noexcept {
    return parts_->report;
}

const std::string& Machine::crash_description() const noexcept {
    return parts_->crash;
}

} // namespace vmm
