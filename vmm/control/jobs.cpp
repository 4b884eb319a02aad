#include "vmm/control/jobs.hpp"

#include <pthread.h>

#include <algorithm>
#include <exception>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/thread.hpp"

namespace vmm::control {

std::string_view to_string(JobState state) noexcept {
    switch (state) {
    case JobState::kRunning:
        return "running";
    case JobState::kDone:
        return "done";
    case JobState::kFailed:
        return "failed";
    case JobState::kCancelled:
        return "cancelled";
    }
    return "?";
}

Jobs::Jobs(std::function<void(const JobStatus&)> ended) : ended_(std::move(ended)) {}

Jobs::~Jobs() {
    {
        const std::lock_guard hold(lock_);
        closed_ = true;
        for (const Job& job : jobs_) {
            job.stop.request_stop();
        }
    }
    for (Job& job : jobs_) {
        if (job.thread.joinable()) {
            job.thread.join();
        }
    }
}

/// Removes the oldest jobs. It stops at a job that still runs; that one and all later ones stay.
void Jobs::forget_old() {
    while (jobs_.size() > kMostKept && jobs_.front().status.state != JobState::kRunning) {
        jobs_.front().thread.join(); // The thread only has to return.
        jobs_.pop_front();
    }
}

JobStatus Jobs::start(std::string kind, Work work) {
    const std::lock_guard hold(lock_);
    if (closed_) {
        throw UsageError("cannot begin a job: the machine is about to end");
    }
    forget_old();
    const auto running =
        std::ranges::count_if(jobs_, [](const Job& job) { return job.status.state == JobState::kRunning; });
    // The second bound is for an old job that does not end, because all later jobs are kept, too.
    if (static_cast<std::size_t>(running) >= kMostRunning || jobs_.size() >= 2 * kMostKept) {
        throw UsageError("cannot begin another job: " + std::to_string(running) +
                         " run already (wait until one of them has ended, or cancel one)");
    }
    Job& job = jobs_.emplace_back();
    job.status.id = next_id_;
    job.status.kind = std::move(kind);
    job.status.result = nlohmann::ordered_json::object();
    try {
        job.thread =
            start_thread("job " + std::to_string(next_id_), [this, &job, work = std::move(work)] { run(job, work); });
    } catch (...) {
        jobs_.pop_back();
        throw;
    }
    ++next_id_;
    return job.status;
}

// NOLINTNEXTLINE(bugprone-exception-escape): outside of the try block only memory can be missing, which ends us.
void Jobs::run(Job& job, const Work& work) noexcept {
    ::pthread_setname_np(::pthread_self(), "job");
    const Context context{job.stop.get_token(), [this, &job](JobProgress progress) {
                              const std::lock_guard hold(lock_);
                              job.status.progress = std::move(progress);
                          }};
    JobState state = JobState::kDone;
    std::string error;
    nlohmann::ordered_json result = nlohmann::ordered_json::object();
    try {
        End end = work(context);
        result = std::move(end.result);
        state = !end.is_whole && context.stop.stop_requested() ? JobState::kCancelled : JobState::kDone;
    } catch (const std::exception& thrown) {
        state = JobState::kFailed;
        error = thrown.what();
    } catch (...) {
        state = JobState::kFailed;
        error = "an exception of unknown type";
    }
    JobStatus ended = job.status; // Only this thread changes the status, and only below.
    ended.state = state;
    ended.error = std::move(error);
    ended.result = std::move(result);
    {
        const std::lock_guard hold(lock_);
        job.status = ended;
    }
    if (ended_) { // The status is set before, so a client that is told of the end also sees it.
        ended_(ended);
    }
}

const Jobs::Job& Jobs::find(std::uint64_t id) const {
    const auto found = std::ranges::find(jobs_, id, [](const Job& job) { return job.status.id; });
    if (found == jobs_.end()) {
        throw Error("there is no job " + std::to_string(id) + " (`vmm ctl SOCKET jobs` lists those there are)");
    }
    return *found;
}

std::vector<JobStatus> Jobs::list() const {
    const std::lock_guard hold(lock_);
    std::vector<JobStatus> all;
    for (const Job& job : jobs_) {
        all.push_back(job.status);
    }
    return all;
}

JobStatus Jobs::get(std::uint64_t id) const {
    const std::lock_guard hold(lock_);
    return find(id).status;
}

JobStatus Jobs::cancel(std::uint64_t id) {
    const std::stop_source stop = [&] {
        const std::lock_guard hold(lock_);
        return find(id).stop;
    }();
    stop.request_stop(); // This is outside of the lock, because stop callbacks may take locks of their own.
    return get(id);
}

} // namespace vmm::control
