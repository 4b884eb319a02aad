// Runs the cases of `vmm bench migrate`.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "vmm/bench/live_guest.hpp"
#include "vmm/bench/migrate_results.hpp"
#include "vmm/bench/program_runner.hpp"
#include "vmm/bench/run.hpp"
#include "vmm/stop_request.hpp"

namespace vmm::bench {

/// Lets guests migrate from one process to another, and reads their output and that of `vmm`. Threads: one.
class MigrateRunner {
  public:
    /// `program` is the path of `vmm` itself. A run that takes longer than `timeout_seconds` is ended, and counts as
    /// failed. `settings` and `stop` must outlive this object. Throws Error if a file cannot be written.
    MigrateRunner(const MigrateSettings& settings, std::string program, double timeout_seconds,
                  const StopRequest& stop);

    struct Run {
        MigrateSample sample{};
        std::string stayed_because{}; ///< why the guest did not go over in time; empty: it did go over
    };
    /// Lets a guest migrate once. Throws Error if that failed, or if a stop was requested.
    [[nodiscard]] Run run(const MigrateCase& each);

    [[nodiscard]] const HarnessCost& cost() const noexcept { return programs_.cost(); }

  private:
    /// The rate of a bare loop, in bytes a second. Throws Error.
    [[nodiscard]] double bare_rate(const MigrateCase& each) const;
    [[nodiscard]] std::vector<std::string> source_words(const MigrateCase& each) const;
    [[nodiscard]] std::vector<std::string> destination_words(const MigrateCase& each) const;
    /// Waits until the destination listens, and returns its address.
    [[nodiscard]] std::string wait_for_address() const;
    /// Makes the guest migrate, and reads its output meanwhile. Returns how `vmm ctl` ended. Throws Error.
    [[nodiscard]] ChildEnd migrate(const MigrateCase& each, LiveGuest& source, const std::string& address);
    /// Does the rest of a run in which the guest has gone over. Throws Error.
    void arrive(const MigrateCase& each, LiveGuest& destination, MigrateSample& sample);
    /// The next passes that the guest tells of. Throws Error.
    [[nodiscard]] Sample passes_of(LiveGuest& guest) const;

    [[nodiscard]] std::string source_socket() const { return folder_.file("source"); }
    [[nodiscard]] std::string destination_socket() const { return folder_.file("destination"); }

    const MigrateSettings& settings_;
    double timeout_seconds_;
    const StopRequest& stop_;
    WorkFolder folder_;
    CycleClock clock_;
    ProgramRunner programs_;
};

/// Returns why the guest did not go over in the given time, from the output of `vmm ctl migrate`; empty if the output
/// says something else.
[[nodiscard]] std::string why_it_stayed(const std::string& said);

/// Adds the figures in the output of `vmm ctl migrate` about a guest that has gone over. Throws Error.
void add_departure(const std::string& said, MigrateSample& sample);
/// Adds the figures in the report of the destination. Throws Error.
void add_arrival(const std::string& report, MigrateSample& sample);

} // namespace vmm::bench
