#include "vmm/cli/command_rows.hpp"

#include <algorithm>
#include <array>

#include "vmm/cli/control_options.hpp"

namespace vmm {

namespace {

constexpr const char* kIntroduction = "vmm runs virtual machines on KVM whose memory is populated beforehand: guest "
                                      "memory is pinned, and the second-level\n"
                                      "page table (EPT, NPT) maps all of it before the guest's first instruction, so "
                                      "that the guest takes no second-level\n"
                                      "page fault.";

constexpr const char* kExamples =
    "Examples:\n"
    "  vmm doctor                                 what this host offers\n"
    "  vmm run --prefault=all                     the built-in guest, which measures its first touch of memory\n"
    "  vmm run --prefault=all -m 4G -c 4 vmlinuz --initrd initrd.img --cmdline \"root=/dev/ram0\"\n"
    "  vmm run --prefault=all --report r.json bzImage; jq .guest.second_level_faults_total r.json\n"
    "  vmm run --api /run/guest.sock & vmm ctl /run/guest.sock status; vmm ctl /run/guest.sock stop\n"
    "  vmm pool --size 8G --socket /run/vmm.pool  memory that is ready: vmm run --memory-from /run/vmm.pool "
    "--page-size 2M\n"
    "  vmm bench quick                            what each method of populating costs and saves on this host\n"
    "\n"
    "`vmm run --help` and `vmm bench --help` list every option.";

constexpr const char* kRunNotes =
    "Sizes take K, M, G or T (powers of 1024); a number alone is bytes.\n"
    "At a terminal: Ctrl-A x stops the guest, Ctrl-A h helps, Ctrl-A Ctrl-A sends Ctrl-A.\n"
    "\n"
    "Exit status:\n"
    "  0  the guest powered off or rebooted, or was stopped by Ctrl-A x\n"
    "  1  the host or a file failed, or an option asks for what cannot be\n"
    "  2  the command line was not understood\n"
    "  3  the guest crashed (triple fault, or KVM could not go on); its registers are printed\n"
    "  4  a signal stopped it";

constexpr const char* kSnapshotNotes =
    "info says when, where and by which version the snapshot was made, and which machine is in it. verify reads all "
    "of\n"
    "it and compares every checksum. docs/snapshots.md describes the files of a snapshot.\n"
    "\n"
    "Exit status: 0; 1 if the snapshot cannot be read or is damaged; 2 if the command line was not understood.";

constexpr const char* kPoolNotes =
    "Sizes take K, M, G or T (powers of 1024); a number alone is bytes.\n"
    "The pool serves `vmm run --memory-from` of its own user and of root. Each piece is handed out once: when its "
    "guest\n"
    "ends, its memory goes back to the kernel, and the pool makes new pieces in the background, at low priority. A\n"
    "guest takes as much of its last piece as it needs. docs/pool.md has an example.\n"
    "\n"
    "Exit status: 0 if a signal ended it, which leaves running guests alone; 1 if the host failed or an option asks\n"
    "for what cannot be; 2 if the command line was not understood.";

constexpr const char* kBenchNotes =
    "Lists have commas: --memory 256M,1G --vcpus 1,2,4. Every combination is measured, each run in a process of its\n"
    "own, round by round over all combinations. Huge pages that the pool lacks are added for the time of the "
    "benchmark\n"
    "(needs root). docs/bench.md describes figures, files and presets. `vmm bench state --help`, `vmm bench "
    "migrate\n"
    "--help`, `vmm bench merge --help` and `vmm bench compare --help` say what these take.\n"
    "\n"
    "Presets (options given beside them count more):\n"
    "  quick    64M or 128M by every method, in less than a minute\n"
    "  rfc      32 vCPUs and 64 GiB scaled to this host; with --full, as they are\n"
    "  scale    memory doubling, workers doubling, and the costs for a GiB and for a fault fitted to them\n"
    "\n"
    "Exit status: 0; 1 if something could not be measured, or compare finds something worse; 2 if the command line "
    "was\n"
    "not understood; 4 if a signal stopped it, with what was done by then printed and written.";

constexpr CommandRow kProgram{"vmm", kIntroduction, kExamples, Place::kProgram};

constexpr std::array kCommands{
    CommandRow{"run", "Run a guest", kRunNotes, Place::kRun},
    CommandRow{"ctl", "Ask something of a guest that runs with --api", "", Place::kControl},
    CommandRow{"snapshot", "Say what is in a snapshot, and whether it is as it was saved", kSnapshotNotes,
               Place::kSnapshotCommand},
    CommandRow{"pool", "Keep memory ready for guests, cleared and populated", kPoolNotes, Place::kPool},
    CommandRow{"doctor", "Say what this host offers; status 1 if no guest can run", "", Place::kDoctor},
    CommandRow{"config-schema", "Print the schema of the configuration file", "", Place::kConfigSchema, false},
    CommandRow{"api-schema", "Print the OpenAPI document of the control socket", "", Place::kApiSchema, false},
    CommandRow{"bench", "Measure what populating memory costs and saves", kBenchNotes, Place::kBench},
};

constexpr const char* kStateNotes =
    "A guest is started, paused and saved; then guests go on from its snapshot, in every mode and with every size of "
    "page.\n"
    "Each aim is printed beside its figure; one that is missed is no failure. docs/bench.md describes the figures.\n"
    "\n"
    "Exit status: 0; 1 if something could not be measured; 2 if the command line was not understood; 4 if a signal\n"
    "stopped it, with what was done by then printed and written.";

constexpr const char* kMigrateNotes =
    "Lists have commas. What is measured is the first one of all lists, and what differs from it in one thing; with\n"
    "--every, every combination. Each guest migrates from one process to another one of this host, in each round "
    "anew.\n"
    "Each aim is printed beside its figure; one that is missed is no failure. docs/bench.md describes the figures.\n"
    "\n"
    "Exit status: 0; 1 if something could not be measured; 2 if the command line was not understood; 4 if a signal\n"
    "stopped it, with what was done by then printed and written.";

constexpr const char* kMergeNotes =
    "Runs on hosts of one kind are put together: the same processor and microcode, as many CPUs, the same kernel, "
    "second\n"
    "level, version and way of measuring. Other hosts have a table and a row of the picture of their own. A cell that\n"
    "failed in one file and was measured in another one counts as measured, and is named, as is what is missing of a\n"
    "matrix whose shares were measured (--cells).\n"
    "\n"
    "Exit status: 0; 1 if a cell failed or is missing, or a file is no result of `vmm bench`; 2 if the command line "
    "was\n"
    "not understood.";

constexpr std::array kOfBench{
    CommandRow{"state", "Measure pause, snapshot and restore, and how late a guest is over each", kStateNotes,
               Place::kBenchState},
    CommandRow{"migrate", "Measure live migration: how long a guest stands still, and what it finds where it arrives",
               kMigrateNotes, Place::kBenchMigrate},
    CommandRow{"merge", "Join the files of several hosts, by kind of host", kMergeNotes, Place::kBenchMerge},
    CommandRow{"compare", "Say what changed beyond noise between two files of --json; status 1 if something got worse",
               "", Place::kCompare},
};

} // namespace

const CommandRow& program_row() noexcept {
    return kProgram;
}

std::span<const CommandRow> command_rows() {
    static const auto kRows = [] {
        auto all = kCommands;
        std::ranges::find(all, Place::kControl, &CommandRow::place)->notes = control_notes().c_str();
        return all;
    }();
    return kRows;
}

std::span<const CommandRow> bench_rows() noexcept {
    return kOfBench;
}

const Option& help_option() {
    static const Option kOption{.names = "-h,--help", .help = "Print this help message and exit"};
    return kOption;
}

const Option& version_option() {
    static const Option kOption{.names = "--version", .help = "Display program version information and exit"};
    return kOption;
}

} // namespace vmm
