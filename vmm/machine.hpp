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

/// A pause failed: a device or a vCPU was not quiet in time. The message names it.
class PauseError : public Error {
  public:
    using Error::Error;
};

/// A guest: its memory, its vCPUs and its devices. Construction creates everything and loads the kernel, but populates
/// nothing and runs nothing. If a guest arrives (Config::incoming), construction makes, populates and fills its memory
/// as the configuration says, and ends when the guest is this machine's. Destruction gives everything back.
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
/// It installs no signal handler, ends no process, and writes nowhere but to the descriptors and functions it was
/// given. Any number of machines may live in a process, on any threads. A machine sends the signal SIGRTMIN to its vCPU
/// threads, which block it; it is delivered nowhere.
///
/// Threads: any may call everything, but nothing may be under way when the machine is destroyed. request_stop() and
/// is_stop_requested() may also be called from a signal handler. prefault(), add_memory() and log_dirty_pages() are
/// served one at a time, the rest at once. While run() is under way, report() and crash_description() are for the
/// thread that is in it (a sink, say); other threads get UsageError.
class Machine {
  public:
    /// Makes the machine of `config`. If it throws, nothing is left behind. `started` is when the clock of
    /// RunReport::seconds_to_first_instruction begins. Throws Error, and what a DeviceConfig::make or the log throws.
    explicit Machine(Config config, std::chrono::steady_clock::time_point started = std::chrono::steady_clock::now());
    ~Machine();
    Machine(const Machine&) = delete;
    Machine& operator=(const Machine&) = delete;

    /// Populates what `config.prefault` asks for, or what `options` ask for. It may be called at any time and again,
    /// also while the guest runs: what was lost (after dirty logging, say) is populated again, and content never
    /// changes. It ends early if a stop is requested. Throws Error: `options` ask for what cannot be, or the host
    /// fails.
    prefault::Report prefault();
    prefault::Report prefault(const prefault::Options& options);
    /// The same. It ends early if `stop` is requested, too, and the machine goes on.
    prefault::Report prefault(const prefault::Options& options, const std::stop_token& stop);

    /// Adds guest-physical memory at `range` and populates both sides of it; the guest is not told. `range` must begin
    /// at a multiple of GuestMemory::region_alignment(), be whole pages, and lie where there is neither RAM nor a
    /// device, at most 512 GiB above the RAM the machine was made with. It may be called at any time, and the memory
    /// stays as long as the machine. Throws Error; if populating failed, the memory is there all the same.
    prefault::Report add_memory(GuestRange range);
    /// The same. Populating ends early if `stop` is requested, too; the memory is there all the same.
    prefault::Report add_memory(GuestRange range, const std::stop_token& stop);

    /// Switches KVM's dirty logging of all memory on or off, at any time. Switching it on splits large second-level
    /// mappings, and switching it off drops the small ones; prefault() fills the second level again. Throws Error.
    void log_dirty_pages(bool on);

    /// Asks the guest for `bytes` of its memory, instead of what Config::balloon says. The guest gives what it can do
    /// without. Throws Error: the machine has no balloon, or cannot have one of that size.
    void set_balloon(std::uint64_t bytes);

    /// Asks the guest to have `bytes` of memory in all, from what it began with up to Config::memory_max_bytes, in
    /// whole blocks (Config::memory_max_bytes). The guest takes memory into use, or gives some back, as it can;
    /// statistics() say how far it is. What it takes is populated and mapped in the second level before it has it, as
    /// Config::prefault says, and what it gives back is the host's at once. Throws UsageError: the guest's memory
    /// cannot grow. Throws Error: it cannot be of that size, or the host has no memory for it now.
    void set_memory(std::uint64_t bytes);

    /// Gives the guest a disk while it runs, or connects it to a network. The guest is told of it, and sees it as soon
    /// as its driver has looked. Returns the name of the device ("blk1"), which statistics() have, too. A snapshot or a
    /// migration that is under way is waited for. Throws UsageError: the guest has no PCI bus (Config::transport), or
    /// does not run, or the process is confined as `vmm run` is. Throws Error: what the device stands on cannot be had,
    /// or there is no slot left on the bus.
    std::string add_disk(const DiskConfig& disk);
    std::string add_net(const NetConfig& net);
    /// These two take what is open already, and work in a confined process, too. `file` is open for reading, and for
    /// writing unless `disk` is read-only; a block device that is written to is open with O_EXCL. `tail` is the same
    /// file without O_DIRECT: it is needed if `disk` is direct and ends with a part of a block. Throws Error: it is
    /// something else.
    std::string add_disk(const DiskConfig& disk, UniqueFd file, UniqueFd tail = UniqueFd());
    /// The network stands on `opened`. For a tap interface these are its queues, as many as `net` says; each has virtio
    /// headers of 12 bytes and no packet information. In user mode the first two are connected unix stream sockets: one
    /// leads to a passt that was started for it (`--fd`), and one to passt's standard error. Unless `net` has
    /// host_loopback, one or two sockets of rtnetlink follow: the first is asked for the host's addresses, and the
    /// second tells of changes of them (RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE). passt goes on until its connection is
    /// closed. Throws Error, too, if `opened` are something else.
    std::string add_net(const NetConfig& net, std::vector<UniqueFd> opened);

    /// Asks the guest to do without a device, by its name, and waits until it does. Throws UsageError: the guest has no
    /// PCI bus. Throws Error: there is no such device, or the guest has not given it back `within` that time (24 hours
    /// at most); it may still do so later. Throws StoppedError if `stop` is requested.
    void remove_device(const std::string& name, std::chrono::milliseconds within, const std::stop_token& stop = {});

    /// Presses the guest's power button once. What the guest does then is its own: Linux switches itself off if a
    /// program of its listens. Throws Error: the guest is told of its hardware by a device tree alone, which has no
    /// button.
    void press_power_button();

    /// Runs the guest until it ends or is stopped. The event loop runs on this thread, and each vCPU on one of its own.
    /// Throws Error if the host fails, what a function of the configuration threw (a device, a sink), and UsageError
    /// the second time.
    ExitReason run();

    /// How long pause() waits unless it is told something else.
    static constexpr std::chrono::milliseconds kPausePatience{20'000};

    /// Holds the guest. When it returns no vCPU runs and no device works, until resume() is called, unless it was
    /// called meanwhile or the machine is about to end. Devices finish what they have with the host, and take nothing
    /// more; a device of the embedding program's is not asked, and stands still as the vCPUs do. KVM's timers, output
    /// that waits for its reader, a prefault in the background and the keeper go on. If it is called before run(), the
    /// guest does not begin. A second call changes nothing.
    ///
    /// Throws PauseError if not all is quiet `within` that time (24 hours at most): the guest goes on then. Throws
    /// UsageError: the machine has ended, or a device calls it in an access.
    void pause(std::chrono::milliseconds within = kPausePatience);
    /// Lets the guest go on, and ends a pause() that is under way. Does nothing if the guest is not paused. Throws
    /// UsageError: a snapshot is being written, or the guest is being given away. Throws Error: it was given away, and
    /// another process uses a disk of its.
    void resume();

    /// Saves the machine in a directory, from which another one goes on (Config::restore, docs/snapshots.md). Memory is
    /// written while the guest runs; it stands still for what it has changed since, and for its state. Then it stays
    /// paused, or goes on as `options` say; if the snapshot fails or a stop is requested, the guest does what it did
    /// before, and there is no directory. A prefault and add_memory() wait meanwhile.
    ///
    /// The snapshot notices what the embedding program writes by GuestMemory::copy_in() and store(). It does not notice
    /// what is written through GuestMemory::at(): nobody may do that meanwhile. Throws UsageError: the machine does not
    /// run, somebody resumes it meanwhile, or dirty pages are logged already. Throws PauseError: not all is quiet in
    /// time. Throws Error: it cannot be written, or the machine has devices of the embedding program's own.
    SnapshotReport snapshot(const SnapshotOptions& options, const std::stop_token& stop = {});

    /// Moves the guest to another process or host, where an IncomingGuest waits for it (docs/migration.md). Memory is
    /// sent while the guest runs; it stands still for what it has changed last, and for its state. When it returns with
    /// a complete report, the guest runs elsewhere and run() is about to return ExitReason::kMigrated. Otherwise the
    /// guest goes on here, with a full second level if that was full before. A prefault and add_memory() wait
    /// meanwhile. What is said of writes at snapshot() holds here, too.
    ///
    /// Throws UsageError: the machine does not run, somebody resumes it meanwhile, or dirty pages are logged already.
    /// Throws PauseError: not all is quiet in time. Throws Error: nobody is there, the other end does not take the
    /// guest (a feature of its processor is missing there, say), the link was cut for too long, or it takes longer than
    /// it may. If the link is cut in the very moment in which the guest is given away, and the other end cannot be
    /// asked, the guest stands still here: resume() lets it go on, which is right only if it does not run there.
    MigrationReport migrate(const MigrationOptions& options, const std::stop_token& stop = {});

    /// What the machine is doing: before, during and after the run. Throws Error if KVM's counters cannot be read.
    [[nodiscard]] Statistics statistics() const;

    /// The guest's memory. The reference is valid as long as the machine. While the guest runs, it may change the
    /// content at any moment. That of a machine which goes on from a snapshot is there once prefault() has returned, or
    /// the guest runs.
    [[nodiscard]] const GuestMemory& memory() const noexcept;

    /// Ends prefault() and run() soon; the first request counts.
    void request_stop(ExitReason reason = ExitReason::kStopped) noexcept;

    [[nodiscard]] bool is_stop_requested() const noexcept;

    /// The device tree as it was written to guest memory; empty if the guest has none. Valid as long as the machine.
    [[nodiscard]] std::span<const std::byte> device_tree() const noexcept;

    /// What happened until now; it is complete after run(). It must not be read while a prefault is under way. Its
    /// `prefault` is that of the last call before run(), or of what run() did in the background.
    [[nodiscard]] const RunReport& report() const;
    /// Why the guest crashed, and its registers, as lines for people. Empty if it did not crash.
    [[nodiscard]] const std::string& crash_description() const;

  private:
    struct __attribute__((visibility("hidden"))) Parts;
    std::unique_ptr<Parts> parts_;
};

} // namespace vmm
VMM_API_END
