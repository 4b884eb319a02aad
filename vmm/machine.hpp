// One virtual machine, from configuration to exit.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <span>
#include <stop_token>
#include <string>

#include "kvm/host/error.hpp"
#include "kvm/host/export.hpp"
#include "vmm/config.hpp"
#include "vmm/migration.hpp"
#include "vmm/report.hpp"
#include "vmm/snapshot.hpp"
#include "vmm/statistics.hpp"
#include "vmm/stop_request.hpp"

VMM_API_BEGIN
namespace vmm {

/// Thrown if a device or a vCPU was not quiet in time. The message names it.
class PauseError : public Error {
  public:
    using Error::Error;
};

/// A guest: its memory, its vCPUs and its devices. Construction creates everything and loads the kernel, but populates
/// nothing and runs nothing. If a guest arrives (Config::incoming), construction makes, populates and fills its memory
/// as the configuration says, and returns when the guest belongs to this machine. Destruction gives everything back.
///
///     Config config;
///     config.kernel_path = "vmlinux";
///     config.prefault.scope = prefault::Scope::kAll;
///     config.serial.output_fd = STDOUT_FILENO;
///     Machine machine(config);                        // refuses what cannot be
///     const prefault::Report filled = machine.prefault();
///     const ExitReason reason = machine.run();        // until the guest ends
///     machine.report().second_level_faults_total();   // 0 is the goal
///
/// It installs no signal handler, ends no process, and writes only to the descriptors and functions it was given. Any
/// number of machines may live in a process, on any threads. A machine sends the signal SIGRTMIN to its vCPU threads.
/// They block it, so no handler runs.
///
/// Threads: any thread may call everything, but no call may be under way when the machine is destroyed. request_stop()
/// and is_stop_requested() may also be called from a signal handler. Of prefault(), add_memory() and log_dirty_pages()
/// one call is served at a time; other calls are served at once. While run() is under way, only its thread (in a sink,
/// for example) may call report() and crash_description(); other threads get UsageError.
class Machine {
  public:
    /// Makes the machine of `config`. If it throws, nothing is left behind. RunReport::seconds_to_first_instruction is
    /// counted from `started`. Throws Error, and what a DeviceConfig::make or the log throws.
    explicit Machine(Config config, std::chrono::steady_clock::time_point started = std::chrono::steady_clock::now());
    ~Machine();
    Machine(const Machine&) = delete;
    Machine& operator=(const Machine&) = delete;

    /// Populates what `config.prefault` asks for, or what `options` ask for. It may be called at any time and
    /// repeatedly, also while the guest runs: it populates again what was lost (by dirty logging, for example), and
    /// never changes content. It ends early if a stop is requested. Throws Error if `options` ask for something
    /// impossible, or if the host fails.
    prefault::Report prefault();
    prefault::Report prefault(const prefault::Options& options);
    /// The same. It also ends early if `stop` is requested; then the machine goes on.
    prefault::Report prefault(const prefault::Options& options, const std::stop_token& stop);

    /// Adds guest-physical memory at `range` and populates both sides of it; the guest is not told. `range` must begin
    /// at a multiple of GuestMemory::region_alignment(), be whole pages, and lie where there is neither RAM nor a
    /// device, at most 512 GiB above the RAM that the machine was made with. It may be called at any time, and the
    /// memory stays as long as the machine. Throws Error; if only populating failed, the memory has been added.
    prefault::Report add_memory(GuestRange range);
    /// The same. Populating also ends early if `stop` is requested; the memory has been added then, too.
    prefault::Report add_memory(GuestRange range, const std::stop_token& stop);

    /// Switches KVM's dirty logging of all memory on or off, at any time. Switching it on splits large second-level
    /// mappings, and switching it off drops the small ones; prefault() fills the second level again. Throws Error.
    void log_dirty_pages(bool on);

    /// Asks the guest for `bytes` of its memory; this replaces the target in Config::balloon. The guest gives what it
    /// can do without. Throws Error if the machine has no balloon, or cannot have one of that size.
    void set_balloon(std::uint64_t bytes);

    /// Asks the guest to have `bytes` of memory in all. `bytes` is at least what the guest began with, at most
    /// Config::memory_max_bytes, and whole blocks (see there). The guest takes memory into use or gives it back as it
    /// can; statistics() say how far it has come.
    ///
    /// Memory that the guest takes is first populated and mapped in the second level, as Config::prefault says. Memory
    /// that it gives back returns to the host at once. Throws UsageError if the guest's memory cannot grow. Throws
    /// Error if it cannot be of that size, or if the host has no memory for it now.
    void set_memory(std::uint64_t bytes);

    /// Adds a disk or a network device while the guest runs, and returns its name ("blk1"), which statistics() have,
    /// too. The guest is told of it, and sees it as soon as its driver has looked. If a snapshot or a migration is
    /// under way, the call waits for its end. Throws UsageError if the guest has no PCI bus (Config::transport) or does
    /// not run, or if the process is confined as `vmm run` is. Throws Error if the file or network behind the device
    /// cannot be opened, or if no slot is left on the bus.
    std::string add_disk(const DiskConfig& disk);
    std::string add_net(const NetConfig& net);
    /// The next two functions take descriptors that are open already, so they also work in a confined process. `file`
    /// is open for reading, and for writing unless `disk` is read-only; a block device that is written to is open with
    /// O_EXCL. `tail` is the same file without O_DIRECT: it is needed if `disk` is direct and ends with a part of a
    /// block. Throws Error, too, if a descriptor is of another kind.
    std::string add_disk(const DiskConfig& disk, UniqueFd file, UniqueFd tail = UniqueFd());
    /// Adds a network device that uses the descriptors `opened`:
    /// - For a tap interface these are its queues, as many as `net` says. Each has virtio headers of 12 bytes and no
    ///   packet information.
    /// - In user mode the first two are connected unix stream sockets: one leads to a passt that was started for it
    ///   (`--fd`), and one to passt's standard error. Unless `net` has host_loopback, one or two sockets of rtnetlink
    ///   follow: the first is asked for the host's addresses, and the second tells of changes of them
    ///   (RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE). passt goes on until its connection is closed.
    ///
    /// Throws Error, too, if `opened` are of another kind.
    std::string add_net(const NetConfig& net, std::vector<UniqueFd> opened);

    /// Asks the guest to give up the device of this name, and waits until it has. Throws UsageError if the guest has no
    /// PCI bus. Throws Error if there is no such device, or if the guest has not given it back `within` that time (24
    /// hours at most); it may still do so later. Throws StoppedError if `stop` is requested.
    void remove_device(const std::string& name, std::chrono::milliseconds within, const std::stop_token& stop = {});

    /// Presses the guest's power button once. The guest decides what it does then: Linux switches itself off if one of
    /// its programs listens for the button. Throws Error if the guest is told of its hardware by a device tree alone,
    /// because that has no button.
    void press_power_button();

    /// Runs the guest until it ends or is stopped. The event loop runs on the calling thread, and each vCPU on a thread
    /// of its own. Throws Error if the host fails, what a function of the configuration threw (a device, a sink), and
    /// UsageError if it is called a second time.
    ExitReason run();

    /// How long pause() waits by default.
    static constexpr std::chrono::milliseconds kPausePatience{20'000};

    /// Holds the guest. When it returns, no vCPU runs and no device works until resume() is called. There are two
    /// exceptions: resume() was called meanwhile, or the machine is about to end. If pause() is called before run(),
    /// the guest does not begin; a second call changes nothing.
    ///
    /// Virtio devices finish the requests that they have given to the host, and take no new ones. A custom device is
    /// not asked: it stands still because the vCPUs do. KVM's timers, output that waits for its reader, a prefault in
    /// the background and the keeper go on.
    ///
    /// Throws PauseError if not everything is quiet `within` that time (24 hours at most); the guest then goes on.
    /// Throws UsageError if the machine has ended, or if a device calls it in an access.
    void pause(std::chrono::milliseconds within = kPausePatience);
    /// Lets the guest go on, and ends a pause() that is under way. Does nothing if the guest is not paused. Throws
    /// UsageError if a snapshot is being written, or if the guest is being given away. Throws Error if it was given
    /// away and another process uses one of its disks.
    void resume();

    /// Saves the machine in a directory, from which another machine can go on (Config::restore, docs/snapshots.md).
    /// Most memory is written while the guest runs. The guest stands still while the memory that it has changed since
    /// and its state are written. Then it stays paused or goes on, as `options` say.
    ///
    /// If the snapshot fails or a stop is requested, the guest does what it did before, and there is no directory. A
    /// prefault and add_memory() wait meanwhile.
    ///
    /// The snapshot notices what the embedding program writes by GuestMemory::copy_in() and store(). It does not notice
    /// writes through GuestMemory::at(): nobody may make them meanwhile. Throws UsageError if the machine does not run,
    /// if somebody resumes it meanwhile, or if dirty pages are logged already. Throws PauseError if not everything is
    /// quiet in time. Throws Error if the snapshot cannot be written, or if the machine has custom devices.
    SnapshotReport snapshot(const SnapshotOptions& options, const std::stop_token& stop = {});

    /// Moves the guest to another process or host, where an IncomingGuest waits for it (docs/migration.md). Most memory
    /// is sent while the guest runs. The guest stands still while the memory that it has changed last and its state are
    /// sent.
    ///
    /// When it returns a complete report, the guest runs elsewhere and run() is about to return ExitReason::kMigrated.
    /// Otherwise the guest goes on here, with a full second level if that was full before. A prefault and add_memory()
    /// wait meanwhile. Writes of the embedding program are noticed as with snapshot().
    ///
    /// Throws UsageError if the machine does not run, if somebody resumes it meanwhile, or if dirty pages are logged
    /// already. Throws PauseError if not everything is quiet in time. Throws Error if nobody is there, if the other end
    /// does not take the guest (it lacks a feature of the processor, for example), if the link was cut for too long, or
    /// if it takes longer than it may.
    ///
    /// The link may be cut at the very moment at which the guest is given away. If the other end cannot be asked then,
    /// the guest stands still here. resume() lets it go on; call that only if the guest does not run at the other end.
    MigrationReport migrate(const MigrationOptions& options, const std::stop_token& stop = {});

    /// Returns what the machine is doing: before, during and after the run. Throws Error if KVM's counters cannot be
    /// read.
    [[nodiscard]] Statistics statistics() const;

    /// The guest's memory. The reference is valid as long as the machine. While the guest runs, it may change the
    /// content at any moment. If the machine goes on from a snapshot, the content is there once prefault() has
    /// returned, or once the guest runs.
    [[nodiscard]] const GuestMemory& memory() const noexcept;

    /// Ends prefault() and run() soon. The first request decides the reason.
    void request_stop(ExitReason reason = ExitReason::kStopped) noexcept;

    [[nodiscard]] bool is_stop_requested() const noexcept;

    /// The device tree as it was written to guest memory; empty if the guest has none. It is valid as long as the
    /// machine.
    [[nodiscard]] std::span<const std::byte> device_tree() const noexcept;

    /// What happened until now; it is complete after run(). It must not be read while a prefault is under way. Its
    /// `prefault` describes the last call before run(), or what run() did in the background.
    [[nodiscard]] const RunReport& report() const;
    /// Why the guest crashed, and its registers, as lines for people. Empty if it did not crash.
    [[nodiscard]] const std::string& crash_description() const;

  private:
    struct __attribute__((visibility("hidden"))) Parts;
    std::unique_ptr<Parts> parts_;
};

} // namespace vmm
VMM_API_END
