// Actions that take long. They go on even if the client that asked for them has gone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <stop_token>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <nlohmann/json.hpp>

namespace vmm::control {

enum class JobState { kRunning, kDone, kFailed, kCancelled };

/// "running", "done", "failed", "cancelled"
[[nodiscard]] std::string_view to_string(JobState state) noexcept;

/// How far a job has come. `total` is 0 if that is not known.
struct JobProgress {
    std::string stage{}; ///< for people: "second level"
    std::uint64_t done = 0;
    std::uint64_t total = 0;
    nlohmann::ordered_json details{}; ///< further facts: an object, or null
};

/// A job at one moment.
struct JobStatus {
    std::uint64_t id = 0;
    std::string kind;
    JobState state = JobState::kRunning;
    JobProgress progress;
    std::string error;             ///< for kFailed: the text of vmm::Error
    nlohmann::ordered_json result; ///< an object; empty while the job runs
};

/// Jobs of any kind, each on a thread of its own. A kind is a name and a function, for example prefault and add-memory.
/// Everything that takes longer than a client waits can be a job.
///
/// Threads: any.
class Jobs {
  public:
    static constexpr std::size_t kMostRunning = 8;
    static constexpr std::size_t kMostKept = 64; ///< of the jobs that have ended, this many are kept: the last ones

    /// What a job gets from its caller.
    struct Context {
        std::stop_token stop; ///< requested if somebody cancels the job, or if the machine is about to go
        std::function<void(JobProgress)> progress;
    };
    struct End {
        nlohmann::ordered_json result; ///< an object
        bool is_whole = true;          ///< false: it ended early
    };
    /// Does the work, and returns early if a stop is requested. If it throws, the job has failed with that error.
    using Work = std::function<End(const Context&)>;

    /// `ended` is called for each job that ends, on the job's thread.
    explicit Jobs(std::function<void(const JobStatus&)> ended);
    /// Cancels all jobs and waits for them.
    ~Jobs();
    Jobs(const Jobs&) = delete;
    Jobs& operator=(const Jobs&) = delete;

    /// Starts a job. Throws UsageError if kMostRunning jobs run already. Throws Error if the host gives no thread.
    JobStatus start(std::string kind, Work work);

    [[nodiscard]] std::vector<JobStatus> list() const;
    /// Throws Error if there is no such job.
    [[nodiscard]] JobStatus get(std::uint64_t id) const;
    /// Asks a job to end; does nothing if it has ended. Throws Error if there is no such job.
    JobStatus cancel(std::uint64_t id);

  private:
    struct Job {
        JobStatus status;
        std::stop_source stop{};
        std::thread thread{};
    };
    void run(Job& job, const Work& work) noexcept;
    void forget_old();
    [[nodiscard]] const Job& find(std::uint64_t id) const;

    std::function<void(const JobStatus&)> ended_;
    mutable std::mutex lock_;
    std::uint64_t next_id_ = 1;
    bool closed_ = false;
    std::deque<Job> jobs_; ///< a deque: threads hold addresses of elements; they are removed only at the front
};

} // namespace vmm::control
