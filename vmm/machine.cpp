#include "vmm/machine.hpp"

#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/process_memory.hpp"
#include "vmm/host/host_facts.hpp"
#include "vmm/host/memory_need.hpp"
#include "vmm/machine/arrival.hpp"
#include "vmm/machine/boot.hpp"
#include "vmm/machine/departure.hpp"
#include "vmm/machine/embedder.hpp"
#include "vmm/machine/hardware.hpp"
#include "vmm/machine/hotplug.hpp"
#include "vmm/machine/keeper.hpp"
#include "vmm/machine/pluggable_memory.hpp"
#include "vmm/machine/run.hpp"
#include "vmm/machine/snapshot_start.hpp"
#include "vmm/machine/snapshot_taking.hpp"
#include "vmm/machine/stop_bridge.hpp"

namespace vmm {

namespace {

using Clock = std::chrono::steady_clock;

Config validated(Config config) {
    const std::shared_ptr<IncomingGuest> guest = config.incoming;
    try {
        config = resolved(std::move(config));
        validate(config);
        return config;
    } catch (const std::exception& error) {
        if (guest) { // the guest's source waits for an answer
            guest->refuse(error.what());
        }
        throw;
    }
}

/// Makes the report of what is known before the guest runs.
RunReport begin_report(const Config& config, const Hardware& hardware) {
    RunReport report;
    report.host = hardware.second_level.host();
    report.kvm_pre_fault_memory = hardware.vm.extension(KVM_CAP_PRE_FAULT_MEMORY) != 0;
    report.memory_bytes = config.memory_bytes;
    report.page_size = config.page_size;
    report.pin = config.pin;
    report.warm_bytes = hardware.ram.warm_bytes();
    report.numa = config.numa;
    report.prefault_when = config.prefault_when;
    report.vcpus = config.vcpus;
    report.cpu = config.cpu;
    report.nested = config.nested;
    report.hardware = config.hardware;
    return report;
}

/// Returns what `make` returns. If `make` throws, `first` is told why, because the source of a guest may wait for an
/// answer.
template <typename Make>
auto made_or_told(FirstState& first, Make make) {
    try {
        return make();
    } catch (const std::exception& error) {
        first.note_failure(error.what());
        throw;
    }
}

std::unique_ptr<FirstState> open_first_state(const Config& config, const StopRequest& stop) {
    if (config.restore) {
        return std::make_unique<SnapshotStart>(config, stop);
    }
    if (config.incoming) {
        return std::make_unique<Arrival>(config, stop);
    }
    return std::make_unique<KernelBoot>(config, stop);
}

} // namespace

/// The order of the members follows their dependencies. The first state is opened before there is hardware, so that a
/// missing kernel is refused at once.
struct Machine::Parts {
    Parts(Config wanted, Clock::time_point started);

    /// Stands behind the hardware, so that nothing uses that any more when it is destroyed.
    struct AbandonAtEnd {
        ~AbandonAtEnd() { first.abandon(); }
        FirstState& first;
    };

    Config config;
    std::shared_ptr<StopRequest> shared_stop;
    StopRequest& stop;
    Embedder embedder;
    std::unique_ptr<FirstState> first;
    Hardware hardware;
    AbandonAtEnd abandon_at_end;
    RunReport report;
    Run run;
};

Machine::Parts::Parts(Config wanted, Clock::time_point started)
    : config(validated(std::move(wanted))), shared_stop(config.stop ? config.stop : std::make_shared<StopRequest>()),
      stop(*shared_stop), embedder(config.log, stop), first(open_first_state(config, stop)),
      hardware(made_or_told(*first, [&] { return Hardware(config, stop, embedder, *first); })), abandon_at_end{*first},
      report(begin_report(config, hardware)), run(config, hardware, *first, stop, embedder, report, started) {
    for (const std::string& line : host_room_warnings(config)) {
        embedder.log(LogLevel::kWarning, line);
    }
    if (config.prefault_keep) {
        check_keeper(hardware.second_level, first->adopts_page_tables(report.host));
    }
    report.prefault = first->arrival_prefault().value_or(prefault::Report{});
    // If the prefault runs in the background, it makes its prefault vCPUs there, unless the guest must be told of their
    // page tables. If a guest has arrived, they exist already.
    if (!first->comes_later() &&
        (first->adopts_page_tables(report.host) ||
         (config.prefault.scope == prefault::Scope::kAll && config.prefault_when == PrefaultWhen::kBefore))) {
        const StopBridge bridge(stop); // a prefault vCPU may run to count the scratch memslot's mappings
        hardware.second_level.prepare(bridge.token());
    }
    first->put_into(hardware, embedder);
    config.kernel_image.reset(); // guest memory now has their content
    config.initrd_image.reset();
}

Machine::Machine(Config config, Clock::time_point started)
    : parts_(std::make_unique<Parts>(std::move(config), started)) {}

Machine::~Machine() {
    if (parts_ && parts_->hardware.virtio.has_left_work()) {
        parts_->hardware.virtio.destroy_idle();
        parts_->embedder.part();
        static_cast<void>(parts_.release()); // the host still writes to guest memory, so nothing may be freed
    }
}

prefault::Report Machine::prefault() {
    return prefault(parts_->config.prefault);
}

prefault::Report Machine::prefault(const prefault::Options& options) {
    return prefault(options, {});
}

prefault::Report Machine::prefault(const prefault::Options& options, const std::stop_token& stop) {
    Parts& parts = *parts_;
    StopBridge bridge(parts.stop);
    const std::stop_callback also(stop, [&bridge] { bridge.request_stop(); });
    if (parts.first->is_lazy()) {
        parts.first->finish(bridge.token());
    }
    prefault::Report report = parts.hardware.second_level.fill(options, bridge.token());
    parts.first->finish(bridge.token());
    if (!parts.run.has_begun()) {
        parts.report.prefault = report;
        parts.report.locked_bytes = locked_bytes(); // the kernel's own figures
        parts.report.pinned_bytes = pinned_bytes();
    }
    return report;
}

prefault::Report Machine::add_memory(GuestRange range) {
    return add_memory(range, {});
}

prefault::Report Machine::add_memory(GuestRange range, const std::stop_token& stop) {
    StopBridge bridge(parts_->stop);
    const std::stop_callback also(stop, [&bridge] { bridge.request_stop(); });
    return parts_->hardware.second_level.add_memory(range, bridge.token());
}

void Machine::log_dirty_pages(bool on) {
    parts_->hardware.second_level.log_dirty_pages(on);
}

void Machine::set_balloon(std::uint64_t bytes) {
    Config wanted = parts_->config;
    if (!wanted.balloon) {
        throw Error("cannot set the size of the balloon: this machine has none");
    }
    wanted.balloon->target_bytes = bytes;
    validate_balloon(wanted);
    parts_->hardware.virtio_devices.balloon->set_target(bytes);
}

void Machine::set_memory(std::uint64_t bytes) {
    const Config& config = parts_->config;
    const std::vector<devices::virtio::MemoryDevice*>& devices = parts_->hardware.virtio_devices.memories;
    if (devices.empty()) {
        throw UsageError("cannot change the guest's memory: it was not made to grow (run it with a "
                         "Config::memory_max_bytes that is more than Config::memory_bytes)");
    }
    if (bytes < config.memory_bytes) {
        throw Error("cannot make the guest's memory " + format_bytes(bytes) + ": it began with " +
                    format_bytes(config.memory_bytes) + ", which stay");
    }
    const std::vector<std::uint64_t> shares =
        shares_of_request(parts_->hardware.ram.pluggable(), bytes - config.memory_bytes);
    std::uint64_t more = 0;
    for (std::size_t i = 0; i < devices.size(); ++i) {
        const std::uint64_t plugged = devices[i]->statistics().plugged;
        more += shares[i] > plugged ? shares[i] - plugged : 0;
    }
    if (more != 0) {
        validate_more_memory(config, more);
    }
    for (std::size_t i = 0; i < devices.size(); ++i) {
        devices[i]->set_requested(shares[i]);
    }
}

std::string Machine::add_disk(const DiskConfig& disk) {
    return vmm::add_disk(parts_->hardware, parts_->config, parts_->embedder, disk);
}

std::string Machine::add_net(const NetConfig& net) {
    return vmm::add_net(parts_->hardware, parts_->config, parts_->embedder, net);
}

std::string Machine::add_disk(const DiskConfig& disk, UniqueFd file, UniqueFd tail) {
    return vmm::add_disk(parts_->hardware, parts_->config, parts_->embedder, disk, {std::move(file), std::move(tail)});
}

std::string Machine::add_net(const NetConfig& net, std::vector<UniqueFd> opened) {
    return vmm::add_net(parts_->hardware, parts_->config, parts_->embedder, net,
                        OpenedNet::from(net, std::move(opened)));
}

void Machine::remove_device(const std::string& name, std::chrono::milliseconds within, const std::stop_token& stop) {
    StopBridge bridge(parts_->stop);
    const std::stop_callback also(stop, [&bridge] { bridge.request_stop(); });
    vmm::remove_device(parts_->hardware, name, within, bridge.token());
}

void Machine::press_power_button() {
    if (parts_->config.hardware == HardwareDescription::kFdt) {
        throw Error(
            "cannot press the guest's power button: it is told of its hardware by a device tree, which has none "
            "(Config::hardware)");
    }
    parts_->hardware.board.press_power_button();
}

ExitReason Machine::run() {
    return parts_->run.execute();
}

void Machine::pause(std::chrono::milliseconds within) {
    parts_->run.pause().pause(within);
}

SnapshotReport Machine::snapshot(const SnapshotOptions& options, const std::stop_token& stop) {
    Parts& parts = *parts_;
    StopBridge bridge(parts.stop);
    const std::stop_callback also(stop, [&bridge] { bridge.request_stop(); });
    return take_snapshot({parts.config, parts.hardware, parts.run.pause(), *parts.first}, options, bridge.token());
}

void Machine::resume() {
    parts_->run.pause().resume();
}

MigrationReport Machine::migrate(const MigrationOptions& options, const std::stop_token& stop) {
    Parts& parts = *parts_;
    const StopBridge ends(parts.stop);
    StopBridge cancelled(parts.stop);
    const std::stop_callback also(stop, [&cancelled] { cancelled.request_stop(); });
    const std::stop_token of_attempt = cancelled.token();
    const std::stop_token of_machine = ends.token();
    MigrationReport report =
        depart({parts.config, parts.hardware, parts.run.pause(), *parts.first}, options, of_attempt, of_machine);
    if (report.complete) {
        try {
            if (options.gone) {
                options.gone(report);
            }
        } catch (...) { // the guest has gone nevertheless
        }
        parts.stop.request(ExitReason::kMigrated);
    }
    return report;
}

Statistics Machine::statistics() const {
    return parts_->run.statistics();
}

const GuestMemory& Machine::memory() const noexcept {
    return parts_->hardware.ram.memory();
}

void Machine::request_stop(ExitReason reason) noexcept {
    parts_->stop.request(reason);
}

bool Machine::is_stop_requested() const noexcept {
    return parts_->stop.is_requested();
}

std::span<const std::byte> Machine::device_tree() const noexcept {
    return parts_->first->device_tree();
}

const RunReport& Machine::report() const {
    parts_->run.check_reader();
    return parts_->report;
}

const std::string& Machine::crash_description() const {
    parts_->run.check_reader();
    return parts_->run.crash();
}

} // namespace vmm
