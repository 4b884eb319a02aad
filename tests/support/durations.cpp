// For scripts/benchmark: measures how long some short operations take, and prints each with its wanted bound, a line
// "NAME | FIGURE | BOUND". No test checks these bounds, because it would fail on a busy machine.
//
// durations VMM RUNS

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kvm/host/stopwatch.hpp"
#include "kvm/kick.hpp"
#include "prefault/host/chunk_queues.hpp"
#include "prefault/plan.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/host_waiting.hpp"
#include "support/kvm_command.hpp"
#include "support/kvm_machine.hpp"

namespace vmm {
namespace {

using Clock = std::chrono::steady_clock;
using testing::eventually;
using testing::TestKernel;
namespace kernels = testing::kernels;

/// Measures `runs` times, and prints the median, the smallest and the largest value. The first run only warms up.
void print(const std::string& name, const char* bound, int runs, const std::function<double()>& measure) {
    std::vector<double> seconds;
    for (int run = 0; run <= runs; ++run) {
        const double figure = measure();
        if (run > 0) {
            seconds.push_back(figure);
        }
    }
    std::ranges::sort(seconds);
    std::printf("%s | %.4f s [%.4f .. %.4f] | %s\n", name.c_str(), seconds[seconds.size() / 2], seconds.front(),
                seconds.back(), bound);
    std::fflush(stdout);
}

/// Processor time for a plan of 16 TiB on so many nodes.
double time_of_plan(unsigned nodes) {
    constexpr std::uint64_t kAll = std::uint64_t{16} << 40;
    std::vector<prefault::PlacedRange> placed;
    for (unsigned node = 0; node < nodes; ++node) {
        placed.push_back({{GuestAddress{4 * kGiB + node * (kAll / nodes)}, kAll / nodes}, node});
    }
    const double start = kvm::cpu_seconds_of_this_thread();
    const prefault::ChunkQueues queues(placed, 2 * kMiB, 512);
    return kvm::cpu_seconds_of_this_thread() - start;
}

/// Time from the request to the return of run(), for a machine that has run for `time`.
double time_to_stop(const kernels::Code& code, std::chrono::milliseconds time, bool background = false) {
    const TestKernel kernel(code);
    const testing::Pipe unread;
    Config config = kernel.config();
    config.serial.output_fd = unread.writer.get();
    if (background) {
        config.memory_bytes = 1 * kGiB;
        config.page_size = PageSize::k4K;
        config.prefault = {.scope = prefault::Scope::kAll, .workers = 2};
        config.prefault_when = PrefaultWhen::kBackground;
    }
    Machine machine(config);
    Clock::time_point requested;
    testing::run_beside(machine, [&] {
        std::this_thread::sleep_for(time);
        requested = Clock::now();
        machine.request_stop();
    });
    return seconds_since(requested);
}

/// Time from the request, at the first progress, to the return of a prefault by touch while a guest runs.
double time_to_end_of_prefault() {
    const TestKernel kernel(kernels::kSpin);
    Config config = kernel.config();
    config.memory_bytes = 1 * kGiB;
    config.page_size = PageSize::k4K;
    Machine machine(config);
    std::optional<Clock::time_point> requested;
    double seconds = 0;
    testing::run_beside(machine, [&] {
        prefault::Options options{.scope = prefault::Scope::kAll, .method = prefault::Method::kTouch, .workers = 2};
        options.progress = [&](const prefault::Progress&) {
            if (!requested) {
                requested = Clock::now();
                machine.request_stop();
            }
        };
        static_cast<void>(machine.prefault(options));
        seconds = requested ? seconds_since(*requested) : 0;
        machine.request_stop();
    });
    return seconds;
}

/// Time from SIGTERM, at a random moment before the guest runs or soon after, to the command's end.
class StoppedCommand {
  public:
    explicit StoppedCommand(std::vector<std::string> options) : options_(std::move(options)) {
        const auto command = start();
        const auto begin = Clock::now();
        eventually([&] { return command->has_thread("vcpu0") || command->has_ended(); });
        window_ = std::max(0.1, seconds_since(begin));
        command->send(SIGTERM);
        command->wait();
    }
    double operator()() {
        const auto command = start();
        std::this_thread::sleep_for(
            std::chrono::duration<double>(std::uniform_real_distribution<double>(0, window_)(random_)));
        const auto sent = Clock::now();
        command->send(SIGTERM);
        if (const int status = command->wait(); status != 4) {
            std::fprintf(stderr, "the status was %d: %s\n", status, command->errors().c_str());
        }
        return seconds_since(sent);
    }

  private:
    [[nodiscard]] std::unique_ptr<testing::CommandBeside> start() const {
        std::vector<std::string> arguments{"run", "-q", "--serial=none", "--prefault=all"};
        arguments.insert(arguments.end(), options_.begin(), options_.end());
        arguments.push_back(path_);
        auto command = std::make_unique<testing::CommandBeside>(arguments);
        eventually([&] { return command->catches(SIGTERM) || command->has_ended(); });
        return command;
    }

    testing::TemporaryDirectory directory_;
    std::string path_ = directory_.write("kernel", testing::kernel_image(kernels::kSpin));
    std::vector<std::string> options_;
    double window_ = 0;
    std::mt19937 random_{4711};
};

void print_all(int runs) {
    using std::chrono::milliseconds;
    print("a plan of 16 TiB (processor time)", "0.010", runs, [] { return time_of_plan(1); });
    print("the same on 1024 nodes (processor time)", "0.010", runs, [] { return time_of_plan(1024); });
    print("a machine whose guest spins stops", "2", runs,
          [] { return time_to_stop(kernels::kSpin, milliseconds(50)); });
    print("a machine whose guest has halted stops", "2", runs,
          [] { return time_to_stop(kernels::kHalt, milliseconds(50)); });
    print("a machine that floods a serial port which nobody reads stops", "4 (1 is for a slow reader)", runs,
          [] { return time_to_stop(kernels::kFloodSerial, milliseconds(300)); });
    print("a machine with a prefault in the background stops", "2", runs,
          [] { return time_to_stop(kernels::kSpin, milliseconds(100), true); });
    print("a prefault by touch beside a guest stops", "0.5", runs, time_to_end_of_prefault);
    const std::vector<std::pair<const char*, std::vector<std::string>>> commands{
        {"512M of 4K", {"-m", "512M", "--page-size=4K"}},
        {"256M of 4K, --pin=longterm", {"-m", "256M", "--page-size=4K", "--pin=longterm"}},
        {"256M of 2M, --reserve-hugepages", {"-m", "256M", "--page-size=2M", "--reserve-hugepages"}},
        {"512M of 4K, in the background", {"-m", "512M", "--page-size=4K", "--prefault-when=background"}},
    };
    for (const auto& [name, options] : commands) {
        StoppedCommand command(options);
        print(std::string("vmm run ends after SIGTERM: ") + name, "0.2", std::max(runs, 15), [&] { return command(); });
    }
}

} // namespace
} // namespace vmm

int main(int count, char** words) {
    const int runs = count == 3 ? std::atoi(words[2]) : 0;
    if (runs < 1) {
        std::fprintf(stderr, "usage: durations VMM RUNS\n");
        return 2;
    }
    ::setenv("VMM_BINARY", words[1], 1);
    vmm::print_all(runs);
    return 0;
}
