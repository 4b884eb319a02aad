#include "vmm/machine/keeper.hpp"

#include <pthread.h>

#include <condition_variable>
#include <exception>
#include <mutex>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/stopwatch.hpp"
#include "kvm/host/thread.hpp"
#include "kvm/kick.hpp"
#include "vmm/machine/stop_bridge.hpp"

namespace vmm {

namespace {

prefault::Options keeping(const Config& config) {
    prefault::Options options = config.prefault;
    options.background = true;
    options.progress = {};
    return options;
}

} // namespace

void check_keeper(const MachineSecondLevel& second_level, bool adopts_page_tables) {
    const std::string tried = "cannot keep the second level full (Config::prefault_keep): ";
    if (second_level.host().may_be_shadow() && !adopts_page_tables) {
        throw Error(tried + "this host's KVM shadows the guest's own page tables, or may do so: a prefault does not "
                            "serve this guest then, and KVM's counts do not tell what is missing (take a host with "
                            "EPT or NPT, or the built-in guest)");
    }
    try {
        static_cast<void>(second_level.mapped());
    } catch (const Error& error) {
        throw Error(tried + error.what());
    }
}

Keeper::Keeper(const Config& config, MachineSecondLevel& second_level, const FaultCounters& faults,
               const StopRequest& stop, Embedder& embedder)
    : config_(config), second_level_(second_level), faults_(faults), stop_(stop), embedder_(embedder),
      options_(keeping(config)), watch_(config.keep_every_ms * 1e-3), last_counts_(kernel_.read()),
      base_counts_(last_counts_), last_log_(dirty_log()), base_log_(last_log_),
      thread_(start_thread("the keeper of the second level", [this] { body(); })) {}

Keeper::~Keeper() {
    if (thread_.joinable()) {
        thread_.join();
    }
}

prefault::KeptReport Keeper::join() {
    thread_.join();
    report_.every_ms = config_.keep_every_ms;
    report_.losses = watch_.losses();
    report_.lost_bytes = watch_.lost_bytes();
    report_.splits = watch_.splits();
    report_.faults = watch_.faults();
    report_.longest_spell_seconds = watch_.longest_spell_seconds();
    report_.full = watch_.is_full() && report_.problem.empty();
    return std::move(report_);
}

double Keeper::seconds() const {
    return seconds_since(begin_);
}

void Keeper::body() noexcept {
    ::pthread_setname_np(::pthread_self(), "keeper");
    try {
        const StopBridge bridge(stop_);
        keep(bridge.token());
    } catch (const Error& error) {
        report_.problem = error.what();
    } catch (...) {
        embedder_.note_failure(std::current_exception());
    }
    report_.watch_cpu_seconds = kvm::cpu_seconds_of_this_thread() - refill_cpu_seconds_;
    if (!report_.problem.empty()) {
        prefault::KeptEvent ended;
        ended.kind = prefault::KeptEventKind::kEnded;
        ended.seconds = seconds();
        ended.problem = report_.problem;
        tell(std::move(ended));
    }
}

void Keeper::keep(const std::stop_token& stop) {
    std::mutex lock;
    std::condition_variable_any stopped;
    std::unique_lock hold(lock);
    const std::chrono::milliseconds every(config_.keep_every_ms);
    while (!stop.stop_requested()) {
        look(stop);
        stopped.wait_for(hold, stop, every, [] { return false; });
    }
}

prefault::KeptSample Keeper::sample() const {
    // The order matters: a fault that comes later than the count of mappings is counted the next time.
    prefault::KeptSample sample;
    sample.full_bytes = second_level_.full_bytes();
    sample.logs_dirty = second_level_.logs_dirty_pages();
    sample.faults = faults_.total();
    sample.mapped = second_level_.mapped();
    sample.seconds = seconds();
    return sample;
}

/// The kernel counts an event that takes mappings before, after or while it takes them. So a loss is explained by
/// everything that has changed since the look before the last one.
void Keeper::note_kernel_counts() {
    if (!watch_.in_spell()) {
        base_counts_ = last_counts_;
        base_log_ = last_log_;
    }
    last_counts_ = kernel_.read();
    last_log_ = dirty_log();
}

Keeper::DirtyLog Keeper::dirty_log() const noexcept {
    return {second_level_.dirty_log_switches(), second_level_.logs_dirty_pages()};
}

std::vector<std::string> Keeper::causes() const {
    std::vector<std::string> causes = prefault::KernelCounts::causes(base_counts_, last_counts_);
    if (last_log_.switches != base_log_.switches || base_log_.is_on || last_log_.is_on) {
        causes.insert(causes.begin(), "dirty logging");
    }
    return causes;
}

void Keeper::look(const std::stop_token& stop) {
    ++report_.looks;
    note_kernel_counts();
    prefault::LossWatch::Answer answer = watch_.look(sample());
    for (prefault::KeptEvent& event : answer.events) {
        tell(std::move(event));
    }
    if (answer.refill) {
        const double before = kvm::cpu_seconds_of_this_thread();
        refill(stop);
        refill_cpu_seconds_ += kvm::cpu_seconds_of_this_thread() - before;
    }
}

void Keeper::refill(const std::stop_token& stop) {
    const Clock::time_point begin = Clock::now();
    std::string problem;
    bool held = false;
    try {
        const std::optional<prefault::Report> report = second_level_.refill(options_, stop);
        held = !report;
        problem = report ? report->problem : "";
    } catch (const Error& error) {
        problem = error.what();
    }
    if (stop.stop_requested()) {
        return;
    }
    std::vector<prefault::KeptEvent> events;
    if (held) {
        events = watch_.note_held(seconds());
    } else {
        ++report_.refills;
        report_.refill_seconds += seconds_since(begin);
        events = watch_.note_refill(sample(), std::move(problem));
    }
    last_counts_ = kernel_.read();
    for (prefault::KeptEvent& event : events) {
        tell(std::move(event));
    }
}

void Keeper::tell(prefault::KeptEvent event) {
    using prefault::KeptEventKind;
    using prefault::KernelCounts;
    if (event.kind != KeptEventKind::kHeld && event.kind != KeptEventKind::kBackOff &&
        event.kind != KeptEventKind::kEnded) {
        event.causes = causes();
        for (const auto& [name, rise] : KernelCounts::rises(base_counts_, last_counts_)) {
            event.counts.push_back({std::string(name), rise});
        }
    }
    ++report_.events_total;
    if (report_.events.size() < prefault::KeptReport::kMostEvents) {
        report_.events.push_back(event);
    }
    if (config_.kept) {
        try {
            config_.kept(event);
        } catch (...) {
            embedder_.note_failure(std::current_exception());
        }
    }
}

} // namespace vmm
