#include "vmm/bench/migrate_run.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <future>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "vmm/bench/bare_send.hpp"
#include "vmm/bench/guest_output.hpp"
#include "vmm/bench/heartbeat_output.hpp"
#include "vmm/bench/said_json.hpp"

namespace vmm::bench {

namespace {

using MigrateClock = std::chrono::steady_clock;

/// The passes of a guest over its memory on request. The first one after the switch is compared with the others.
constexpr unsigned kPassesAfterSwitch = 5;
/// The passes of a guest that writes as long as something is measured.
constexpr unsigned kPassesWithoutEnd = 1'000'000;
/// The rounds before post-copy begins. The first rounds send what the fill of the destination has time for.
constexpr unsigned kRoundsBeforePostCopy = 2;
/// The destination counts faults in the first second, and then needs a moment to note them.
constexpr std::chrono::milliseconds kFirstSecond{1200};
/// The text that `vmm run --incoming` prints before the address.
constexpr std::string_view kListens = "vmm: a guest can come to ";

} // namespace

MigrateRunner::MigrateRunner(const MigrateSettings& settings, std::string program, double timeout_seconds,
                             const StopRequest& stop)
    : settings_(settings), timeout_seconds_(timeout_seconds), stop_(stop),
      programs_(std::move(program), timeout_seconds, stop) {}

double MigrateRunner::bare_rate(const MigrateCase& each) const {
    const auto seconds = send_bare(settings_.memory_bytes, each.page_size, each.link, each.streams, stop_);
    if (!seconds) {
        throw Error("a stop was requested");
    }
    return static_cast<double>(settings_.memory_bytes) / *seconds;
}

std::vector<std::string> MigrateRunner::source_words(const MigrateCase& each) const {
    const auto khz = static_cast<std::uint64_t>(std::llround(1e-3 / clock_.seconds_per_cycle()));
    std::vector<std::string> words{
        programs_.program(),
        "run",
        "--quiet",
        "--memory",
        std::to_string(settings_.memory_bytes),
        "--vcpus",
        std::to_string(each.vcpus),
        "--page-size",
        std::string(vmm::to_string(each.page_size)),
        "--prefault",
        "all",
        "--prefault-workers",
        std::to_string(settings_.workers),
        "--serial",
        "stdio",
        "--api",
        source_socket(),
        "--cmdline",
        vmm::format("heartbeat={} passes={}", khz, writes_always(each.mode) ? kPassesWithoutEnd : kPassesAfterSwitch)};
    if (each.mode == MigrateMode::kLocal) {
        words.emplace_back("--memory-shared");
    }
    return words;
}

std::vector<std::string> MigrateRunner::destination_words(const MigrateCase& each) const {
    return {programs_.program(),
            "run",
            "--incoming",
            each.link == MigrateLink::kUnix ? "unix:" + folder_.file("incoming") : "tcp:127.0.0.1:0",
            "--prefault",
            std::string(to_string(each.fill)),
            "--serial",
            "stdio",
            "--api",
            destination_socket(),
            "--report",
            folder_.file("report")};
}

std::string MigrateRunner::wait_for_address() const {
    constexpr std::chrono::milliseconds kBetweenLooks{5};
    const auto deadline = MigrateClock::now() + std::chrono::duration_cast<MigrateClock::duration>(
                                                    std::chrono::duration<double>(timeout_seconds_));
    while (MigrateClock::now() < deadline && !stop_.is_requested()) {
        const std::string said = read_text_file(folder_.file("destination-errors"));
        const std::size_t at = said.find(kListens);
        const std::size_t end = at == std::string::npos ? at : said.find('\n', at);
        if (end != std::string::npos) {
            return said.substr(at + kListens.size(), end - at - kListens.size());
        }
        if (said.find("error: ") != std::string::npos) {
            throw Error("no guest can come: " + said.substr(0, 300));
        }
        std::this_thread::sleep_for(kBetweenLooks);
    }
    throw Error(stop_.is_requested() ? "a stop was requested" : "the destination does not say where it listens");
}

ChildEnd MigrateRunner::migrate(const MigrateCase& each, LiveGuest& source, const std::string& address) {
    std::vector<std::string> words{"migrate",    address,
                                   "--streams",  std::to_string(each.streams),
                                   "--downtime", std::to_string(settings_.downtime_ms),
                                   "--timeout",  std::to_string(settings_.give_up_seconds)};
    if (each.mode == MigrateMode::kPostCopy) {
        words.insert(words.end(), {"--post-copy-after", std::to_string(kRoundsBeforePostCopy)});
    }
    auto end = std::async(std::launch::async, [&] { return programs_.try_ask(source_socket(), std::move(words)); });
    const bool says_passes = writes_always(each.mode);
    const bool says_beats = each.mode == MigrateMode::kWorker;
    if (says_beats) {
        source.say("ww"); // with two commands, one of them is always waiting
    }
    while ((says_passes || says_beats) && end.wait_for(std::chrono::seconds(0)) != std::future_status::ready) {
        if (!source.find(says_passes ? "pass=" : "heartbeat ")) {
            break; // the guest has gone
        }
        if (says_beats) {
            source.say("w");
        }
    }
    return end.get();
}

Sample MigrateRunner::passes_of(LiveGuest& guest) const {
    std::string passes = guest.wait_for("pass=") + "\n";
    std::string line;
    do {
        line = guest.wait_for("");
        passes += line + "\n";
    } while (!line.starts_with("summary "));
    Sample figures;
    add_guest_figures(parse_guest_output(passes), clock_.seconds_per_cycle(), figures);
    return figures;
}

void MigrateRunner::arrive(const MigrateCase& each, LiveGuest& destination, MigrateSample& sample) {
    if (writes_always(each.mode)) {
        const auto end = MigrateClock::now() + kFirstSecond;
        while (MigrateClock::now() < end) {
            static_cast<void>(destination.wait_for("pass="));
        }
        static_cast<void>(programs_.ask(destination_socket(), {"stop", "--force"}));
        destination.wait_for_end();
        return;
    }
    // The first line is about the time before the switch, and about the switch itself.
    const HeartbeatLine gap = heartbeat_of(destination.wait_for("heartbeat "));
    const HeartbeatLine second = heartbeat_of(destination.wait_for("heartbeat "));
    sample[MigrateFigure::kGap] = gap.late_max;
    sample[MigrateFigure::kLateP99] = second.late_p99;
    sample[MigrateFigure::kLateMax] = second.late_max;
    sample[MigrateFigure::kBackward] = gap.backward + second.backward;

    const Sample figures = passes_of(destination);
    sample[MigrateFigure::kFirst] = figures[Figure::kFirst];
    sample[MigrateFigure::kSteady] = figures[Figure::kSteady];
    sample[MigrateFigure::kFirstOverSteady] = figures[Figure::kFirstOverSteady];
    // Caches forget the tables of memory within any second: a pass after one more tells that from what a migration
    // costs.
    static_cast<void>(destination.wait_for("heartbeat "));
    const auto rested = passes_of(destination)[Figure::kFirst];
    sample[MigrateFigure::kRested] = rested;
    if (figures[Figure::kFirst] && rested && *rested > 0) {
        sample[MigrateFigure::kFirstOverRested] = *figures[Figure::kFirst] / *rested;
    }
    destination.say("q");
    destination.wait_for_end();
}

MigrateRunner::Run MigrateRunner::run(const MigrateCase& each) {
    Run run;
    MigrateSample& sample = run.sample;
    LiveGuest source(source_words(each), folder_.file("source-errors"), stop_.fd(), timeout_seconds_);
    static_cast<void>(source.wait_for("guest="));
    source.say("p");
    if (writes_always(each.mode)) {
        static_cast<void>(source.wait_for("pass=2 "));
    } else {
        static_cast<void>(source.wait_for("summary "));
        source.say("w");
        const HeartbeatLine before = heartbeat_of(source.wait_for("heartbeat "));
        sample[MigrateFigure::kLateP99Before] = before.late_p99;
        sample[MigrateFigure::kLateMaxBefore] = before.late_max;
    }
    if (copies_first(each.mode)) { // the guest runs beside it, as it does beside the migration
        sample[MigrateFigure::kBareRate] = bare_rate(each);
    }
    LiveGuest destination(destination_words(each), folder_.file("destination-errors"), stop_.fd(), timeout_seconds_);
    if (!writes_always(each.mode)) { // the command waits there, and the guest takes it with its first beat
        destination.say(each.mode == MigrateMode::kWorker ? "wpwp" : "hwpwp");
    }
    const ChildEnd end = migrate(each, source, wait_for_address());
    const bool is_over = end.succeeded();
    if (!is_over) {
        run.stayed_because = why_it_stayed(end.output + end.errors);
        if (run.stayed_because.empty()) {
            throw Error("the guest did not go over: " + end.problem());
        }
    }
    sample[MigrateFigure::kCameOver] = is_over ? 1 : 0;
    if (is_over) {
        add_departure(end.output, sample);
        source.wait_for_end();
        arrive(each, destination, sample);
        add_arrival(read_text_file(folder_.file("report")), sample);
    }
    const auto rate = sample[MigrateFigure::kRate];
    const auto bare = sample[MigrateFigure::kBareRate];
    if (rate && bare && *bare > 0) {
        sample[MigrateFigure::kRateOverBare] = *rate / *bare;
    }
    return run;
}

std::string why_it_stayed(const std::string& said) {
    const std::size_t at = said.find("cannot migrate the machine within ");
    return at == std::string::npos ? "" : said.substr(at, std::min(said.find_first_of("(\"\n", at), said.size()) - at);
}

void add_departure(const std::string& said, MigrateSample& sample) {
    with_json(said, "the answer to migrate", [&](const nlohmann::json& json) {
        const auto take = [&](MigrateFigure figure, const char* name) { sample[figure] = json.at(name).get<double>(); };
        take(MigrateFigure::kDowntime, "downtime_seconds");
        take(MigrateFigure::kPause, "pause_seconds");
        take(MigrateFigure::kPages, "pages_seconds");
        take(MigrateFigure::kState, "state_seconds");
        take(MigrateFigure::kTakeover, "takeover_seconds");
        take(MigrateFigure::kTotal, "total_seconds");
        take(MigrateFigure::kRounds, "rounds");
        take(MigrateFigure::kSentBytes, "sent_bytes");
        take(MigrateFigure::kLastBytes, "last_bytes");
        take(MigrateFigure::kThrottled, "throttled_percent");
        const double seconds = json.at("first_round_seconds").get<double>();
        if (seconds > 0) {
            sample[MigrateFigure::kRate] = json.at("first_round_bytes").get<double>() / seconds;
        }
    });
}

void add_arrival(const std::string& report, MigrateSample& sample) {
    with_json(report, "the destination's report", [&](const nlohmann::json& json) {
        const nlohmann::json& arrival = json.at("arrival");
        sample[MigrateFigure::kFill] = arrival.at("fill_seconds").get<double>();
        sample[MigrateFigure::kMappedShare] =
            arrival.at("mapped_bytes").get<double>() / json.at("memory").at("bytes").get<double>();
        if (!arrival.at("faults_in_first_second").is_null()) {
            sample[MigrateFigure::kFaults] = arrival.at("faults_in_first_second").get<double>();
        }
    });
}

} // namespace vmm::bench
