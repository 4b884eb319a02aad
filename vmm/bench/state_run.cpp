#include "vmm/bench/state_run.hpp"

#include <sys/statvfs.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string_view>
#include <thread>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "vmm/bench/bare_read.hpp"
#include "vmm/bench/child.hpp"
#include "vmm/bench/guest_output.hpp"
#include "vmm/bench/heartbeat_output.hpp"
#include "vmm/bench/live_guest.hpp"
#include "vmm/bench/said_json.hpp"
#include "vmm/bench/statistics.hpp"

namespace vmm::bench {

namespace {

/// The passes of the guest over its memory on request. The first one after a restore is compared with the others.
constexpr unsigned kPasses = 5;

/// Adds the figures in the report of a `vmm run`.
void add_report(const std::string& path, bool has_prefault, StateSample& sample) {
    with_json(read_text_file(path), "the run's report", [&](const nlohmann::json& json) {
        const nlohmann::json& guest = json.at("guest");
        const nlohmann::json& prefault = json.at("prefault");
        if (guest.at("exit") != "poweroff") {
            throw Error("the guest ended by " + guest.at("exit").get<std::string>());
        }
        if (has_prefault && !prefault.at("complete").get<bool>()) {
            throw Error("the prefault was not complete: " + prefault.at("problem").get<std::string>());
        }
        sample[StateFigure::kReady] = json.at("boot").at("seconds_to_first_instruction").get<double>();
        if (has_prefault) {
            sample[StateFigure::kPrefault] = prefault.at("seconds").at("total").get<double>();
        }
        sample[StateFigure::kFaults] = guest.at("second_level_faults_total").get<double>();
        if (!guest.at("exits").empty()) {
            sample[StateFigure::kExits] = guest.at("exits_total").get<double>();
        }
    });
}

/// Faults and exits of all vCPUs until now.
struct Counts {
    double faults = 0;
    double exits = 0;
};

Counts parse_statistics(const std::string& text) {
    return with_json(text, "the answer to statistics", [](const nlohmann::json& json) {
        Counts counts;
        for (const nlohmann::json& vcpu : json.at("vcpus")) {
            counts.faults += vcpu.at("second_level_faults").get<double>();
            counts.exits += vcpu.value("exits", 0.0);
        }
        return counts;
    });
}

void add_counts(const Counts& before, const Counts& after, StateSample& sample) {
    sample[StateFigure::kFaults] = after.faults - before.faults;
    sample[StateFigure::kExits] = after.exits - before.exits;
}

/// Loads the snapshot's file into the page cache, so that a process that starts reads it from there.
void read_into_page_cache(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::vector<char> buffer(1 << 20);
    while (file.read(buffer.data(), static_cast<std::streamsize>(buffer.size()))) {
    }
}

} // namespace

StateRunner::StateRunner(const StateSettings& settings, std::string program, double timeout_seconds,
                         const StopRequest& stop)
    : settings_(settings), timeout_seconds_(timeout_seconds), stop_(stop),
      programs_(std::move(program), timeout_seconds, stop) {
    // At most two snapshots exist at a time.
    const std::uint64_t needed = 2 * settings.memory_bytes + 64 * kMiB;
    struct statvfs room {};
    if (::statvfs(folder_.file("").c_str(), &room) == 0) {
        const std::uint64_t available = std::uint64_t{room.f_bavail} * room.f_frsize;
        if (available < needed) {
            throw Error(vmm::format("cannot measure snapshots of {}: they take {} of disk, and {} has {} (name another "
                                    "folder in $TMPDIR, or --memory)",
                                    format_bytes(settings.memory_bytes), format_bytes(needed), folder_.file(""),
                                    format_bytes(available)));
        }
    }
}

StateRunner::BeforeSnapshot StateRunner::save() {
    const auto khz = static_cast<std::uint64_t>(std::llround(1e-3 / clock_.seconds_per_cycle()));
    LiveGuest guest({programs_.program(), "run", "--quiet", "--memory", std::to_string(settings_.memory_bytes),
                     "--vcpus", std::to_string(settings_.vcpus), "--page-size",
                     std::string(vmm::to_string(saved_page_size(settings_.page_sizes))), "--prefault", "all",
                     "--prefault-workers", std::to_string(settings_.workers), "--serial", "stdio", "--api",
                     folder_.file("socket"), "--cmdline", vmm::format("heartbeat={} passes={}", khz, kPasses)},
                    folder_.file("errors"), stop_.fd(), timeout_seconds_);
    const auto heartbeat = [&] {
        guest.say("h");
        return heartbeat_of(guest.wait_for("heartbeat "));
    };
    static_cast<void>(guest.wait_for("guest="));
    guest.say("p");
    static_cast<void>(guest.wait_for("summary "));

    BeforeSnapshot result;
    const std::string workers = std::to_string(settings_.workers);
    for (unsigned run = 0; run < settings_.runs; ++run) {
        static_cast<void>(heartbeat());
        Counts before = parse_statistics(programs_.ask(folder_.file("socket"), {"statistics"}));
        static_cast<void>(programs_.ask(folder_.file("socket"), {"pause"}));
        static_cast<void>(programs_.ask(folder_.file("socket"), {"resume"}));
        StateSample pause;
        add_heartbeat(heartbeat(), pause);
        Counts after = parse_statistics(programs_.ask(folder_.file("socket"), {"statistics"}));
        add_counts(before, after, pause);
        result.pauses.push_back(pause);

        const std::string directory = folder_.file(vmm::format("snapshot-{}", run));
        static_cast<void>(heartbeat());
        before = parse_statistics(programs_.ask(folder_.file("socket"), {"statistics"}));
        const std::string answer =
            programs_.ask(folder_.file("socket"), {"snapshot", directory, "--resume", "--workers", workers});
        StateSample taken;
        add_heartbeat(heartbeat(), taken);
        after = parse_statistics(programs_.ask(folder_.file("socket"), {"statistics"}));
        add_counts(before, after, taken);
        with_json(answer, "the answer to snapshot", [&](const nlohmann::json& json) {
            const nlohmann::json& cost = json.at("result");
            taken[StateFigure::kTotal] = cost.at("total_seconds").get<double>();
            taken[StateFigure::kWrittenBytes] = cost.at("written_bytes").get<double>();
            taken[StateFigure::kStopped] = cost.at("stopped_seconds").get<double>();
            taken[StateFigure::kStoppedBytes] = cost.at("stopped_bytes").get<double>();
        });
        result.snapshots.push_back(taken);
        std::error_code ignored;
        std::filesystem::remove_all(directory, ignored);
    }
    // The heartbeat runs until the state is saved, because the guest's clock goes on while it is paused.
    static_cast<void>(heartbeat());
    static_cast<void>(programs_.ask(folder_.file("socket"), {"snapshot", snapshot(), "--workers", workers}));
    static_cast<void>(programs_.ask(folder_.file("socket"), {"stop", "--force"}));
    guest.wait_for_end();
    read_into_page_cache(snapshot() + "/memory");
    if (std::ranges::find(settings_.modes, RestoreMode::kLazy) != settings_.modes.end()) {
        record_working_set();
    }
    return result;
}

void StateRunner::record_working_set() {
    // The guest works for a second longer than the working set is recorded.
    std::vector<std::string> words = restore_words(
        {Scenario::kRestore, saved_page_size(settings_.page_sizes), RestoreMode::kLazy}, folder_.file("report"));
    words.insert(words.end(), {"--record-working-set", "1000"});
    static_cast<void>(programs_.run(std::move(words), "hwwq"));
}

StateSample StateRunner::run(const StateCase& each) {
    switch (each.scenario) {
    case Scenario::kCold:
        return run_cold(each.page_size);
    case Scenario::kBareRead:
        return run_bare(each.page_size);
    case Scenario::kRestore:
        return run_restore(each);
    case Scenario::kPasses:
        return run_passes(each);
    case Scenario::kClones:
        return run_clones(each);
    case Scenario::kPause:
    case Scenario::kSnapshot:
        break;
    }
    return {};
}

StateSample StateRunner::run_cold(PageSize page_size) {
    const std::string report = folder_.file("report");
    static_cast<void>(
        programs_.run({programs_.program(), "run", "--quiet", "--memory", std::to_string(settings_.memory_bytes),
                       "--vcpus", std::to_string(settings_.vcpus), "--page-size",
                       std::string(vmm::to_string(page_size)), "--cmdline", "passes=1 stride=64M", "--report", report},
                      ""));
    StateSample sample;
    add_report(report, false, sample);
    return sample;
}

StateSample StateRunner::run_bare(PageSize page_size) const {
    const auto read = read_bare(snapshot() + "/memory", page_size, settings_.workers, stop_);
    if (!read) {
        throw Error("a stop was requested");
    }
    StateSample sample;
    sample[StateFigure::kPopulate] = read->populate_seconds;
    sample[StateFigure::kRead] = read->read_seconds;
    return sample;
}

std::vector<std::string> StateRunner::restore_words(const StateCase& each, const std::string& report) const {
    const RestoreMode mode = each.mode.value();
    return {programs_.program(),
            "run",
            "--quiet",
            "--restore",
            snapshot(),
            "--restore-mode",
            std::string(vmm::to_string(mode)),
            "--page-size",
            std::string(vmm::to_string(each.page_size)),
            "--prefault",
            mode == RestoreMode::kCow ? "none" : "all",
            "--prefault-workers",
            std::to_string(settings_.workers),
            "--serial",
            "stdio",
            "--report",
            report};
}

StateSample StateRunner::run_restore(const StateCase& each) {
    const std::string report = folder_.file("report");
    const std::string console = programs_.run(restore_words(each, report), "hwq");
    const std::vector<HeartbeatLine> lines = heartbeats_of(console);
    if (lines.size() != 2) {
        throw Error(vmm::format("the guest told {} times of its heartbeat instead of twice", lines.size()));
    }
    StateSample sample;
    sample[StateFigure::kGap] = lines[0].late_max;
    sample[StateFigure::kBackward] = lines[0].backward;
    add_heartbeat(lines[1], sample);
    add_report(report, comes_back_full(*each.mode), sample);
    return sample;
}

StateSample StateRunner::run_passes(const StateCase& each) {
    const std::string report = folder_.file("report");
    const std::string console = programs_.run(restore_words(each, report), "pwpq");
    // Caches forget the tables of memory within any second: the passes after one tell that from what a restore costs.
    const std::size_t second = console.find("\nheartbeat ");
    const auto figures_of = [this](const std::string& part) {
        Sample figures;
        add_guest_figures(parse_guest_output(part), clock_.seconds_per_cycle(), figures);
        return figures;
    };
    const Sample passes = figures_of(console.substr(0, second));
    StateSample sample;
    if (second != std::string::npos) {
        const auto first = passes[Figure::kFirst];
        const auto rested = figures_of(console.substr(second))[Figure::kFirst];
        sample[StateFigure::kRested] = rested;
        if (first && rested && *rested > 0) {
            sample[StateFigure::kFirstOverRested] = *first / *rested;
        }
    }
    sample[StateFigure::kFirst] = passes[Figure::kFirst];
    sample[StateFigure::kSteady] = passes[Figure::kSteady];
    sample[StateFigure::kFirstOverSteady] = passes[Figure::kFirstOverSteady];
    add_report(report, comes_back_full(*each.mode), sample);
    return sample;
}

StateSample StateRunner::run_clones(const StateCase& each) {
    std::vector<ChildEnd> ends(settings_.clones);
    std::vector<std::string> reports;
    for (unsigned i = 0; i < settings_.clones; ++i) {
        reports.push_back(folder_.file(vmm::format("report-{}", i)));
    }
    {
        std::vector<std::jthread> threads;
        for (unsigned i = 0; i < settings_.clones; ++i) {
            threads.emplace_back([&, i] {
                ChildSpec spec;
                spec.words = restore_words(each, reports[i]);
                spec.input = "q";
                spec.timeout_seconds = timeout_seconds_;
                spec.stop_fd = stop_.fd();
                try {
                    ends[i] = run_child(spec);
                } catch (const std::exception& error) {
                    ends[i].status = 1 << 8;
                    ends[i].errors = error.what();
                }
            });
        }
    }
    std::vector<double> ready;
    StateSample all;
    for (unsigned i = 0; i < settings_.clones; ++i) {
        if (!ends[i].succeeded()) {
            throw Error(ends[i].stopped ? "a stop was requested" : ends[i].problem());
        }
        StateSample one;
        add_report(reports[i], comes_back_full(*each.mode), one);
        ready.push_back(*one[StateFigure::kReady]);
        all[StateFigure::kFaults] = all[StateFigure::kFaults].value_or(0) + one[StateFigure::kFaults].value_or(0);
    }
    programs_.add_cost(std::ranges::max_element(ends, {}, &ChildEnd::seconds)->seconds);
    all[StateFigure::kReady] = percentile(ready, 95);
    all[StateFigure::kReadyMost] = *std::ranges::max_element(ready);
    return all;
}

} // namespace vmm::bench
