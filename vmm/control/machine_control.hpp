// The actions of the verbs on a machine.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "prefault/kept.hpp"
#include "prefault/report.hpp"
#include "vmm/config.hpp"
#include "vmm/control/actions.hpp"
#include "vmm/control/events.hpp"
#include "vmm/control/jobs.hpp"
#include "vmm/control/server.hpp"
#include "vmm/control/verbs.hpp"
#include "vmm/machine.hpp"
#include "vmm/stop_request.hpp"

namespace vmm::control {

/// What a controlled machine needs from the program.
struct Surroundings {
    std::string machine_options = "{}";      ///< the options that are kept with a snapshot
    std::string options = "{}";              ///< the options that were given, as the JSON of a configuration file
    std::shared_ptr<const StopRequest> stop; ///< the machine's
    std::function<LogLevel()> log_level;
    std::function<void(LogLevel)> set_log_level;
    /// Replaces the library's names in an error text by those of the command line. It may be empty.
    std::function<std::string(std::string_view)> words{};
};

/// Serves requests. Requests that may wait for the guest run on a thread of their own, and long ones are jobs.
///
/// Threads: any.
class MachineControl {
  public:
    /// `machine` and `config` must outlive it. Throws Error if the host gives no thread.
    MachineControl(Machine& machine, const Config& config, Surroundings surroundings);
    MachineControl(const MachineControl&) = delete;
    MachineControl& operator=(const MachineControl&) = delete;

    /// Answers `request`, now or later. It never waits.
    void handle(const HttpRequest& request, const Reply& reply) noexcept;

    [[nodiscard]] Events& events() noexcept { return events_; }

    void note_started() { events_.add("started"); }
    void note_full() { events_.add("full"); }
    void note_kept(const prefault::KeptEvent& event);
    void note_ended(ExitReason reason);

  private:
    using Serve = HttpAnswer (MachineControl::*)(const Arguments&);
    struct Row {
        std::string_view verb;
        Serve serve;
        bool may_wait; ///< for the guest
    };
    static const Row& row_of(const Verb& verb);
    [[nodiscard]] HttpAnswer guarded(const Row& row, const Arguments& arguments) noexcept;
    [[nodiscard]] std::string in_words(std::string_view text) const;

    [[nodiscard]] HttpAnswer status(const Arguments& arguments);
    [[nodiscard]] HttpAnswer statistics(const Arguments& arguments);
    [[nodiscard]] HttpAnswer metrics(const Arguments& arguments);
    [[nodiscard]] HttpAnswer pause(const Arguments& arguments);
    [[nodiscard]] HttpAnswer resume(const Arguments& arguments);
    [[nodiscard]] HttpAnswer stop(const Arguments& arguments);
    [[nodiscard]] HttpAnswer reset(const Arguments& arguments);
    [[nodiscard]] HttpAnswer prefault(const Arguments& arguments);
    [[nodiscard]] HttpAnswer balloon(const Arguments& arguments);
    [[nodiscard]] HttpAnswer memory(const Arguments& arguments);
    [[nodiscard]] HttpAnswer add_memory(const Arguments& arguments);
    [[nodiscard]] HttpAnswer add_disk(const Arguments& arguments);
    [[nodiscard]] HttpAnswer add_net(const Arguments& arguments);
    [[nodiscard]] HttpAnswer remove_disk(const Arguments& arguments);
    [[nodiscard]] HttpAnswer remove_net(const Arguments& arguments);
    [[nodiscard]] HttpAnswer snapshot(const Arguments& arguments);
    [[nodiscard]] HttpAnswer migrate(const Arguments& arguments);
    [[nodiscard]] HttpAnswer jobs(const Arguments& arguments);
    [[nodiscard]] HttpAnswer job(const Arguments& arguments);
    [[nodiscard]] HttpAnswer cancel(const Arguments& arguments);
    [[nodiscard]] HttpAnswer events(const Arguments& arguments);
    [[nodiscard]] HttpAnswer log_level(const Arguments& arguments);
    [[nodiscard]] HttpAnswer set_log_level(const Arguments& arguments);
    [[nodiscard]] HttpAnswer api_schema(const Arguments& arguments);

    [[nodiscard]] HttpAnswer started(const JobStatus& job) const;
    [[nodiscard]] HttpAnswer remove_device(const Arguments& arguments, const char* verb, std::string_view kind);
    [[nodiscard]] Jobs::End await_memory(std::uint64_t wanted, std::chrono::seconds within,
                                         const Jobs::Context& context);
    [[nodiscard]] Jobs::End added(const std::string& name);
    [[nodiscard]] nlohmann::ordered_json json_of(const JobStatus& job) const;
    [[nodiscard]] Jobs::End run_prefault(prefault::Options options, const Jobs::Context& context);
    [[nodiscard]] Jobs::End run_snapshot(SnapshotOptions options, const Jobs::Context& context);
    [[nodiscard]] Jobs::End run_migration(MigrationOptions options, const Jobs::Context& context);
    [[nodiscard]] Jobs::End press_and_wait(std::uint64_t seconds, const Jobs::Context& context);
    [[nodiscard]] HttpAnswer state_answer(unsigned status) const;
    void check_not_ended(std::string_view tried) const;

    Machine& machine_;
    const Config& config_;
    Surroundings surroundings_;
    Events events_;
    Jobs jobs_;
    Actions actions_; // last: its thread uses all of the above
};

} // namespace vmm::control
