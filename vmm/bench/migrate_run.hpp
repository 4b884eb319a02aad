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

/// Lets guests migrate from one process to another, and reads what they and `vmm` say of themselves. Threads: one.
class MigrateRunner {
  public:
    /// `program` is the path of `vmm` itself. A run that takes longer than `timeout_seconds` is ended, and has failed.
    /// `settings` and `stop` outlive this. Throws Error: a file cannot be written.
    MigrateRunner(const MigrateSettings& settings, std::string program, double timeout_seconds,
                  const StopRequest& stop);

    struct Run {
        MigrateSample sample{};
        std::string stayed_because{}; ///< what the source said if the guest did not go over in time; empty: it did
    };
    /// Lets a guest migrate once. Throws Error: it failed, or a stop was requested.
    [[nodiscard]] Run run(const MigrateCase& each);

    [[nodiscard]] const HarnessCost& cost() const noexcept { return programs_.cost(); }

  private:
    /// A bare loop's rate, in bytes a second. Throws Error.
    [[nodiscard]] double bare_rate(const MigrateCase& each) const;
    [[nodiscard]] std::vector<std::string> source_words(const MigrateCase& each) const;
    [[nodiscard]] std::vector<std::string> destination_words(const MigrateCase& each) const;
    /// Waits until the destination listens, and returns where.
    [[nodiscard]] std::string wait_for_address() const;
    /// Has the guest migrate, and reads what it says meanwhile. Returns how `vmm ctl` ended. Throws Error.
    [[nodiscard]] ChildEnd migrate(const MigrateCase& each, LiveGuest& source, const std::string& address);
    /// The rest of a run in which the guest has gone over. Throws Error.
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

/// Why the guest did not go over in the time that it was given, of what `vmm ctl migrate` says; empty if it says
/// something else.
[[nodiscard]] std::string why_it_stayed(const std::string& said);

/// The figures in what `vmm ctl migrate` says of a guest that has gone over. Throws Error.
void add_departure(const std::string& said, MigrateSample& sample);
/// The figures in the report of the destination. Throws Error.
void add_arrival(const std::string& report, MigrateSample& sample);

} // namespace vmm::bench
