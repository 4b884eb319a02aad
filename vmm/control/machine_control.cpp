#include "vmm/control/machine_control.hpp"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <stop_token>
#include <utility>
#include <variant>

#include <nlohmann/json.hpp>

#include "kvm/host/error.hpp"
#include "kvm/host/event_fd.hpp"
#include "kvm/host/format.hpp"
#include "vmm/control/device_arguments.hpp"
#include "vmm/control/log_levels.hpp"
#include "vmm/control/metrics.hpp"
#include "vmm/control/openapi.hpp"
#include "vmm/version.hpp"

namespace vmm::control {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::uint64_t kStandardSecondsToStop = 20;

HttpAnswer json_answer(const Json& body, unsigned status = 200) {
    HttpAnswer answer;
    answer.status = status;
    answer.body = body.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
    return answer;
}

Json json_of(const prefault::Report& report) {
    return {{"scope", to_string(report.scope)},
            {"bytes", report.bytes},
            {"method", to_string(report.method)},
            {"seconds", report.total_seconds},
            {"mapped_bytes", report.mapped.bytes()},
            {"complete", report.complete},
            {"problem", report.problem}};
}

Json json_of(const MigrationReport& report) {
    return {{"shared", report.shared},
            {"post_copy", report.post_copy},
            {"memory_bytes", report.memory_bytes},
            {"sent_bytes", report.sent_bytes},
            {"last_bytes", report.last_bytes},
            {"rounds", report.rounds},
            {"reconnects", report.reconnects},
            {"throttled_percent", report.throttled_percent},
            {"first_round_bytes", report.first_round_bytes},
            {"first_round_seconds", report.first_round_seconds},
            {"total_seconds", report.total_seconds},
            {"downtime_seconds", report.downtime_seconds},
            {"pause_seconds", report.pause_seconds},
            {"pages_seconds", report.pages_seconds},
            {"state_seconds", report.state_seconds},
            {"takeover_seconds", report.takeover_seconds},
            {"mapped_bytes", report.mapped_bytes}};
}

} // namespace

MachineControl::MachineControl(Machine& machine, const Config& config, Surroundings surroundings)
    : machine_(machine), config_(config), surroundings_(std::move(surroundings)), jobs_([this](const JobStatus& job) {
          Json details = {{"id", job.id}, {"kind", job.kind}, {"state", to_string(job.state)}};
          if (!job.error.empty()) {
              details["error"] = in_words(job.error);
          }
          events_.add("job", details);
      }) {}

void MachineControl::note_kept(const prefault::KeptEvent& event) {
    const Json details = {{"kind", to_string(event.kind)},
                          {"lost_bytes", event.lost_bytes},
                          {"mapped_bytes", event.mapped.bytes()},
                          {"faults", event.faults},
                          {"causes", event.causes},
                          {"text", in_words(prefault::to_line(event))}};
    events_.add(event.kind == prefault::KeptEventKind::kFull ? "full" : "mappings", details);
}

void MachineControl::note_ended(ExitReason reason) {
    if (reason == ExitReason::kCrash) {
        events_.add("guest-panic");
    }
    events_.add("ended", {{"reason", to_string(reason)}});
}

std::string MachineControl::in_words(std::string_view text) const {
    return surroundings_.words ? surroundings_.words(text) : std::string(text);
}

const MachineControl::Row& MachineControl::row_of(const Verb& verb) {
    static constexpr std::array kRows{Row{"status", &MachineControl::status, false},
                                      Row{"statistics", &MachineControl::statistics, false},
                                      Row{"metrics", &MachineControl::metrics, false},
                                      Row{"pause", &MachineControl::pause, true},
                                      Row{"resume", &MachineControl::resume, false},
                                      Row{"stop", &MachineControl::stop, false},
                                      Row{"reset", &MachineControl::reset, false},
                                      Row{"prefault", &MachineControl::prefault, false},
                                      Row{"balloon", &MachineControl::balloon, false},
                                      Row{"memory", &MachineControl::memory, false},
                                      Row{"add-memory", &MachineControl::add_memory, false},
                                      Row{"add-disk", &MachineControl::add_disk, false},
                                      Row{"remove-disk", &MachineControl::remove_disk, false},
                                      Row{"add-net", &MachineControl::add_net, false},
                                      Row{"remove-net", &MachineControl::remove_net, false},
                                      Row{"snapshot", &MachineControl::snapshot, false},
                                      Row{"migrate", &MachineControl::migrate, false},
                                      Row{"jobs", &MachineControl::jobs, false},
                                      Row{"job", &MachineControl::job, false},
                                      Row{"cancel", &MachineControl::cancel, false},
                                      Row{"events", &MachineControl::events, false},
                                      Row{"log-level", &MachineControl::log_level, false},
                                      Row{"set-log-level", &MachineControl::set_log_level, false},
                                      Row{"api-schema", &MachineControl::api_schema, false}};
    const auto* const found = std::ranges::find(kRows, std::string_view(verb.name), &Row::verb);
    assert(found != kRows.end());
    return *found;
}

HttpAnswer MachineControl::guarded(const Row& row, const Arguments& arguments) noexcept {
    try {
        try {
            return (this->*row.serve)(arguments);
        } catch (const UsageError& error) {
            return error_answer(409, in_words(error.what()));
        } catch (const PauseError& error) {
            return error_answer(503, in_words(error.what()));
        } catch (const Error& error) {
            return error_answer(400, in_words(error.what()));
        } catch (const std::bad_alloc&) {
            return error_answer(503, "there is no memory left for this request (free some, and try again)");
        } catch (const std::exception& error) {
            return error_answer(500, error.what());
        }
    } catch (...) { // There is no memory for a message.
        HttpAnswer answer;
        answer.status = 503;
        return answer;
    }
}

void MachineControl::handle(const HttpRequest& request, const Reply& reply) noexcept {
    try {
        std::variant<Call, HttpAnswer> understood = understand(request);
        if (const auto* const refusal = std::get_if<HttpAnswer>(&understood)) {
            reply.send(*refusal);
            return;
        }
        Call& call = std::get<Call>(understood);
        call.arguments.set_descriptors(request.descriptors);
        const Row& row = row_of(*call.verb);
        if (row.verb == "events" && call.arguments.flag("follow")) {
            reply.send_events(call.arguments.number("since").value_or(1));
            return;
        }
        if (!row.may_wait) {
            reply.send(guarded(row, call.arguments));
            return;
        }
        const bool taken =
            actions_.add([this, &row, arguments = call.arguments, reply] { reply.send(guarded(row, arguments)); });
        if (!taken) {
            reply.send(error_answer(429, "too many requests wait for the guest already (try again later)"));
        }
    } catch (...) {
        try {
            HttpAnswer answer;
            answer.status = 503;
            reply.send(answer);
        } catch (...) { // No answer is sent, and the client's connection times out.
        }
    }
}

void MachineControl::check_not_ended(std::string_view tried) const {
    if (machine_.is_stop_requested()) {
        throw UsageError("cannot " + std::string(tried) + ": the machine is about to end");
    }
}

HttpAnswer MachineControl::state_answer(unsigned status) const {
    return json_answer({{"state", to_string(machine_.statistics().state)}}, status);
}

HttpAnswer MachineControl::status(const Arguments& /*arguments*/) {
    const Statistics statistics = machine_.statistics();
    Json devices = Json::array();
    for (const DeviceStatistics& device : statistics.devices) {
        devices.push_back({{"name", device.name}});
    }
    return json_answer({{"version", kVersion},
                        {"process", ::getpid()},
                        {"state", to_string(statistics.state)},
                        {"vcpus", statistics.vcpus.size()},
                        {"memory_bytes", config_.memory_bytes},
                        {"page_size", to_string(config_.page_size)},
                        {"events", events_.count()},
                        {"devices", std::move(devices)},
                        {"config", Json::parse(surroundings_.options)}});
}

HttpAnswer MachineControl::statistics(const Arguments& /*arguments*/) {
    return json_answer(to_json(machine_.statistics()));
}

HttpAnswer MachineControl::metrics(const Arguments& /*arguments*/) {
    HttpAnswer answer;
    answer.content_type = find_verb("metrics")->content_type;
    answer.body = to_prometheus(machine_.statistics(), config_.memory_bytes);
    return answer;
}

HttpAnswer MachineControl::pause(const Arguments& arguments) {
    check_not_ended("pause the guest");
    const auto is_paused = [this] { return machine_.statistics().state == RunState::kPaused; };
    const bool was_paused = is_paused();
    const auto within = arguments.number("within");
    machine_.pause(within ? std::chrono::seconds(*within) : Machine::kPausePatience);
    if (!was_paused && is_paused()) { // it may have been resumed meanwhile
        events_.add("paused");
    }
    return state_answer(200);
}

HttpAnswer MachineControl::resume(const Arguments& /*arguments*/) {
    check_not_ended("let the guest go on");
    const bool was_paused = machine_.statistics().state == RunState::kPaused;
    machine_.resume();
    if (was_paused) {
        events_.add("resumed");
    }
    return state_answer(200);
}

HttpAnswer MachineControl::stop(const Arguments& arguments) {
    const std::uint64_t seconds = arguments.number("within").value_or(kStandardSecondsToStop);
    const bool force = arguments.flag("force") || config_.hardware == HardwareDescription::kFdt;
    return started(jobs_.start("stop", [this, seconds, force](const Jobs::Context& context) -> Jobs::End {
        if (force) {
            machine_.request_stop();
            return {{{"by", "force"}}};
        }
        return press_and_wait(seconds, context);
    }));
}

/// Waits until the machine is about to end, for any reason, or until the time is over.
Jobs::End MachineControl::press_and_wait(std::uint64_t seconds, const Jobs::Context& context) {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point deadline = Clock::now() + std::chrono::seconds(seconds);
    const EventFd cancelled;
    const std::stop_callback wake(context.stop, [&cancelled] { cancelled.signal(); });
    machine_.resume();
    machine_.press_power_button();
    while (!machine_.is_stop_requested()) {
        if (context.stop.stop_requested()) {
            return {{{"by", "nobody"}}, false};
        }
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
        if (left.count() <= 0) {
            machine_.request_stop();
            return {{{"by", "force"}}};
        }
        context.progress({"waiting for the guest", seconds - static_cast<std::uint64_t>(left.count()) / 1000, seconds});
        std::array<pollfd, 2> fds{{{surroundings_.stop->fd(), POLLIN, 0}, {cancelled.fd(), POLLIN, 0}}};
        ::poll(fds.data(), fds.size(), static_cast<int>(std::min<std::int64_t>(left.count(), 1000)));
    }
    return {{{"by", "guest"}}};
}

HttpAnswer MachineControl::reset(const Arguments& /*arguments*/) {
    check_not_ended("reset the guest");
    machine_.request_stop(ExitReason::kReboot);
    return state_answer(202);
}

HttpAnswer MachineControl::prefault(const Arguments& arguments) {
    check_not_ended("populate memory");
    prefault::Options options = config_.prefault;
    options.ranges.clear();
    options.scope = prefault::Scope::kAll;
    if (arguments.word("scope") == std::string(to_string(prefault::Scope::kHost))) {
        options.scope = prefault::Scope::kHost;
    }
    for (const prefault::Method method : prefault::kMethods) {
        if (arguments.word("method") == std::string(to_string(method))) {
            options.method = method;
        }
    }
    options.workers = static_cast<unsigned>(arguments.number("workers").value_or(options.workers));
    options.background = machine_.statistics().state != RunState::kReady;
    return started(jobs_.start("prefault", [this, options = std::move(options)](const Jobs::Context& context) {
        return run_prefault(options, context);
    }));
}

Jobs::End MachineControl::run_prefault(prefault::Options options, const Jobs::Context& context) {
    options.progress = [&context](const prefault::Progress& now) {
        context.progress({std::string(to_string(now.stage)), now.done_bytes, now.total_bytes});
    };
    const prefault::Report report = machine_.prefault(options, context.stop);
    if (report.scope == prefault::Scope::kAll && report.complete) {
        events_.add("full", {{"mapped_bytes", report.mapped.bytes()}});
    }
    Json result = vmm::control::json_of(report);
    result["problem"] = in_words(report.problem);
    return {std::move(result), report.complete};
}

HttpAnswer MachineControl::snapshot(const Arguments& arguments) {
    check_not_ended("take a snapshot");
    SnapshotOptions options;
    options.directory = *arguments.word("directory");
    options.config = surroundings_.machine_options;
    options.resume = arguments.flag("resume");
    options.base = arguments.word("incremental_to").value_or("");
    options.workers = static_cast<unsigned>(arguments.number("workers").value_or(0));
    if (const auto within = arguments.number("within")) {
        options.within = std::chrono::seconds(*within);
    }
    return started(jobs_.start("snapshot", [this, options = std::move(options)](const Jobs::Context& context) {
        return run_snapshot(options, context);
    }));
}

Jobs::End MachineControl::run_snapshot(SnapshotOptions options, const Jobs::Context& context) {
    options.progress = [&context](const SnapshotProgress& now) {
        context.progress({std::string(now.stage), now.done_bytes, now.total_bytes});
    };
    const SnapshotReport report = machine_.snapshot(options, context.stop);
    if (!report.complete) {
        return {Json::object(), false};
    }
    events_.add("snapshot", {{"directory", options.directory}, {"resumed", options.resume}});
    return {{{"directory", options.directory},
             {"memory_bytes", report.memory_bytes},
             {"written_bytes", report.written_bytes},
             {"based_bytes", report.based_bytes},
             {"stopped_bytes", report.stopped_bytes},
             {"passes", report.passes},
             {"total_seconds", report.total_seconds},
             {"stopped_seconds", report.stopped_seconds},
             {"refilled", report.refilled}},
            true};
}

HttpAnswer MachineControl::migrate(const Arguments& arguments) {
    check_not_ended("migrate the guest");
    MigrationOptions options;
    options.address = MigrationAddress::parse(*arguments.word("address"));
    options.security.tls_directory = arguments.word("tls").value_or("");
    options.security.insecure = arguments.flag("insecure");
    options.streams = static_cast<unsigned>(arguments.number("streams").value_or(options.streams));
    if (const auto downtime = arguments.number("downtime")) {
        options.downtime = std::chrono::milliseconds(*downtime);
    }
    if (const auto timeout = arguments.number("timeout")) {
        options.timeout = std::chrono::seconds(*timeout);
    }
    for (const OnTimeout on_timeout : kOnTimeouts) {
        if (arguments.word("on_timeout") == std::string(to_string(on_timeout))) {
            options.on_timeout = on_timeout;
        }
    }
    options.bytes_per_second = arguments.number("bandwidth").value_or(0);
    for (const Compression compression : kCompressions) {
        if (arguments.word("compress") == std::string(to_string(compression))) {
            options.compression = compression;
        }
    }
    options.most_throttled_percent =
        static_cast<unsigned>(arguments.number("throttle").value_or(options.most_throttled_percent));
    if (const auto within = arguments.number("within")) {
        options.within = std::chrono::seconds(*within);
    }
    options.post_copy_after = static_cast<unsigned>(arguments.number("post_copy_after").value_or(0));
    options.config = surroundings_.machine_options;
    options.check();
    return started(jobs_.start("migrate", [this, options = std::move(options)](const Jobs::Context& context) {
        return run_migration(options, context);
    }));
}

Jobs::End MachineControl::run_migration(MigrationOptions options, const Jobs::Context& context) {
    options.progress = [&context](const MigrationProgress& now) {
        Json details = {{"round", now.round},
                        {"sent_bytes", now.sent_bytes},
                        {"bytes_per_second", now.bytes_per_second},
                        {"dirtied_bytes_per_second", now.dirtied_bytes_per_second},
                        {"throttled_percent", now.throttled_percent}};
        if (now.left) {
            details["seconds_left"] = now.left->count();
        }
        context.progress({std::string(now.stage), now.done_bytes, now.total_bytes, std::move(details)});
    };
    Json result = Json::object();
    options.gone = [this, &result, &options](const MigrationReport& report) {
        result = vmm::control::json_of(report);
        result["address"] = to_string(options.address);
        events_.add("migrated", result);
    };
    const MigrationReport report = machine_.migrate(options, context.stop);
    if (!report.complete && !context.stop.stop_requested()) {
        throw Error("cannot migrate the machine to " + to_string(options.address) + ": it ended before it had gone");
    }
    return {std::move(result), report.complete};
}

HttpAnswer MachineControl::balloon(const Arguments& arguments) {
    const std::uint64_t target = *arguments.number("target");
    if (!config_.balloon) {
        throw UsageError("cannot set the size of the balloon: this machine has none (run it with --balloon 0)");
    }
    machine_.set_balloon(target);
    events_.add("balloon", {{"target_bytes", target}});
    return json_answer({{"target_bytes", target}});
}

HttpAnswer MachineControl::memory(const Arguments& arguments) {
    constexpr std::uint64_t kUsualSeconds = 60;
    const std::uint64_t wanted = *arguments.number("size");
    check_not_ended("change the guest's memory");
    machine_.set_memory(wanted);
    events_.add("memory", {{"requested_bytes", wanted}});
    const std::chrono::seconds within(arguments.number("within").value_or(kUsualSeconds));
    return started(jobs_.start("memory", [this, wanted, within](const Jobs::Context& context) {
        return await_memory(wanted, within, context);
    }));
}

/// Waits until the guest has the memory. If another request comes meanwhile, this one ends.
Jobs::End MachineControl::await_memory(std::uint64_t wanted, std::chrono::seconds within,
                                       const Jobs::Context& context) {
    constexpr std::chrono::milliseconds kBetweenLooks{20};
    const auto deadline = std::chrono::steady_clock::now() + within;
    std::mutex lock;
    std::condition_variable_any stopped;
    std::unique_lock hold(lock);
    for (;;) {
        const MemorySize now = machine_.statistics().memory;
        Json result{{"bytes", now.bytes}, {"requested_bytes", now.requested_bytes}};
        if (now.bytes == wanted) {
            events_.add("memory-changed", result);
            return {std::move(result), true};
        }
        if (within.count() == 0) { // the client does not want to wait
            return {std::move(result), true};
        }
        if (context.stop.stop_requested()) {
            return {std::move(result), false};
        }
        if (now.requested_bytes != wanted || std::chrono::steady_clock::now() >= deadline) {
            throw Error("cannot wait until the guest has " + format_bytes(wanted) + " of memory: " +
                        (now.requested_bytes != wanted
                             ? "it is asked for " + format_bytes(now.requested_bytes) + " now"
                             : "it has " + format_bytes(now.bytes) + " after " + std::to_string(within.count()) +
                                   " s, and may still follow (see whether its kernel has "
                                   "virtio_mem and puts memory online by itself: "
                                   "memhp_default_state=online_movable)"));
        }
        context.progress({"waiting for the guest", now.bytes, wanted});
        stopped.wait_for(hold, context.stop, kBetweenLooks, [] { return false; });
    }
}

HttpAnswer MachineControl::add_memory(const Arguments& arguments) {
    check_not_ended("add memory");
    const GuestRange range{GuestAddress{*arguments.number("at")}, *arguments.number("size")};
    return started(jobs_.start("add-memory", [this, range](const Jobs::Context& context) -> Jobs::End {
        context.progress({"populating", 0, range.size});
        const prefault::Report report = machine_.add_memory(range, context.stop);
        events_.add("memory-added", {{"at", to_integer(range.base)}, {"size", range.size}});
        Json result = vmm::control::json_of(report);
        result["problem"] = in_words(report.problem);
        return {std::move(result), report.complete};
    }));
}

Jobs::End MachineControl::added(const std::string& name) {
    events_.add("device-added", {{"name", name}});
    return {{{"name", name}}, true};
}

HttpAnswer MachineControl::add_disk(const Arguments& arguments) {
    check_not_ended("give the guest a disk");
    // Takes the descriptor at that place from those that came with the request; none if there is none.
    const auto taken = [](std::vector<UniqueFd>& came, std::size_t place) {
        return place < came.size() ? std::move(came[place]) : UniqueFd();
    };
    return started(jobs_.start("add-disk", [this, taken, disk = disk_config_of(arguments),
                                            came = arguments.descriptors()](const Jobs::Context& /*context*/) {
        return added(came ? machine_.add_disk(disk, taken(*came, 0), taken(*came, 1)) : machine_.add_disk(disk));
    }));
}

HttpAnswer MachineControl::add_net(const Arguments& arguments) {
    check_not_ended("connect the guest to a network");
    return started(jobs_.start("add-net", [this, net = net_config_of(arguments),
                                           came = arguments.descriptors()](const Jobs::Context& /*context*/) {
        return added(came ? machine_.add_net(net, std::move(*came)) : machine_.add_net(net));
    }));
}

HttpAnswer MachineControl::remove_disk(const Arguments& arguments) {
    return remove_device(arguments, "remove-disk", "blk");
}

HttpAnswer MachineControl::remove_net(const Arguments& arguments) {
    return remove_device(arguments, "remove-net", "net");
}

HttpAnswer MachineControl::remove_device(const Arguments& arguments, const char* verb, std::string_view kind) {
    constexpr std::uint64_t kUsualSeconds = 20;
    const std::string name = *arguments.word("name");
    check_not_ended("take a device from the guest");
    if (!name.starts_with(kind)) {
        throw Error("cannot take the device " + name + " from the guest by " + verb +
                    ": the names of those begin with " + std::string(kind));
    }
    const std::chrono::seconds within(arguments.number("within").value_or(kUsualSeconds));
    return started(jobs_.start(verb, [this, name, within](const Jobs::Context& context) -> Jobs::End {
        context.progress({"waiting for the guest", 0, 0});
        machine_.remove_device(name, within, context.stop);
        events_.add("device-removed", {{"name", name}});
        return {{{"name", name}}, true};
    }));
}

Json MachineControl::json_of(const JobStatus& job) const {
    Json json = {
        {"id", job.id},
        {"kind", job.kind},
        {"state", to_string(job.state)},
        {"progress", {{"stage", job.progress.stage}, {"done", job.progress.done}, {"total", job.progress.total}}}};
    if (job.progress.details.is_object()) {
        json["progress"]["details"] = job.progress.details;
    }
    if (job.state == JobState::kFailed) {
        const Json error = Json::parse(error_answer(400, in_words(job.error)).body);
        json.update(error);
    }
    if (job.state == JobState::kDone || job.state == JobState::kCancelled) {
        json["result"] = job.result;
    }
    return json;
}

HttpAnswer MachineControl::started(const JobStatus& job) const {
    return json_answer(json_of(job), 202);
}

HttpAnswer MachineControl::jobs(const Arguments& /*arguments*/) {
    Json all = Json::array();
    for (const JobStatus& job : jobs_.list()) {
        all.push_back(json_of(job));
    }
    return json_answer({{"jobs", std::move(all)}});
}

namespace {

/// Answers with a job that the client has named by its number. If there is no such job, the answer is 404.
template <typename Look>
HttpAnswer found(Look look) {
    try {
        return json_answer(look());
    } catch (const Error& error) {
        return error_answer(404, error.what());
    }
}

} // namespace

HttpAnswer MachineControl::job(const Arguments& arguments) {
    return found([&] { return json_of(jobs_.get(*arguments.number("id"))); });
}

HttpAnswer MachineControl::cancel(const Arguments& arguments) {
    return found([&] { return json_of(jobs_.cancel(*arguments.number("id"))); });
}

HttpAnswer MachineControl::events(const Arguments& arguments) {
    HttpAnswer answer;
    answer.content_type = find_verb("events")->content_type;
    const Events::Batch batch = events_.from(arguments.number("since").value_or(1), Events::kMostKept + 1);
    for (const std::string& line : batch.lines) {
        answer.body += line + "\n";
    }
    return answer;
}

// NOLINTNEXTLINE(readability-make-member-function-const): each verb's function has the type that row_of() lists.
HttpAnswer MachineControl::log_level(const Arguments& /*arguments*/) {
    return json_answer({{"level", name_of(surroundings_.log_level())}});
}

HttpAnswer MachineControl::set_log_level(const Arguments& arguments) {
    const LogLevel level = *log_level_of(*arguments.word("level")); // the table allows only known names
    surroundings_.set_log_level(level);
    events_.add("log-level", {{"level", name_of(level)}});
    return log_level(arguments);
}

// NOLINTNEXTLINE(readability-convert-member-functions-to-static): as above.
HttpAnswer MachineControl::api_schema(const Arguments& /*arguments*/) {
    HttpAnswer answer;
    answer.body = openapi_document();
    return answer;
}

} // namespace vmm::control
