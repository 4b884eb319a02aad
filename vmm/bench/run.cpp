#include "vmm/bench/run.hpp"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/stopwatch.hpp"
#include "vmm/bench/guest_output.hpp"
#include "vmm/bench/statistics.hpp"
#include "vmm/guest/guest_image.hpp"
#include "vmm/memory_pool.hpp"

namespace vmm::bench {

namespace {

constexpr const char* kKvmDebugfs = "/sys/kernel/debug/kvm";

std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator(file), {}};
}

RunEnd failed(const ChildEnd& end) {
    return {std::nullopt, end.problem(), end.stopped, end.timed_out};
}

} // namespace

WorkFolder::WorkFolder() {
    std::error_code failed;
    const auto parent = std::filesystem::temp_directory_path(failed);
    path_ = (failed ? std::filesystem::path("/tmp") : parent) / "vmm-bench.XXXXXX";
    if (::mkdtemp(path_.data()) == nullptr) {
        throw_errno(errno, "make a temporary folder " + path_,
                    {{ENOENT, "name a folder that exists in $TMPDIR"},
                     {ENOTDIR, "name a folder in $TMPDIR"},
                     {EACCES, "name a folder that can be written in $TMPDIR"},
                     {EROFS, "name a folder that can be written in $TMPDIR"},
                     {ENOSPC, "free some room, or name another folder in $TMPDIR"},
                     {EDQUOT, "free some room, or name another folder in $TMPDIR"}});
    }
}

WorkFolder::~WorkFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
}

Runner::Runner(RunSettings settings, std::string program, int stop_fd)
    : settings_(std::move(settings)), program_(std::move(program)), stop_fd_(stop_fd),
      kernel_(folder_.file("guest.elf")) {
    settings_.pool = folder_.file("pool");
    const std::span<const std::byte> image = builtin_guest_image();
    std::ofstream file(kernel_, std::ios::binary);
    // The bytes of an object may be read as characters.
    file.write(reinterpret_cast<const char*>(image.data()), static_cast<std::streamsize>(image.size()));
    file.close();
    if (!file) {
        throw Error("cannot write the built-in guest to " + kernel_ + ": is there room? ($TMPDIR says where)");
    }
}

ChildEnd Runner::run_child(const ChildSpec& spec) {
    ChildEnd end = bench::run_child(spec);
    cost_.runs += end.seconds;
    cost_.own_cpu += end.own_cpu_seconds;
    return end;
}

RunEnd Runner::run(const Cell& cell) {
    try {
        switch (cell.contender) {
        case Contender::kVmm:
            return run_vmm(cell);
        case Contender::kQemu:
            return run_qemu(cell);
        case Contender::kCommand:
            return run_command(cell);
        }
    } catch (const Error& error) {
        return {std::nullopt, error.what()};
    }
    return {};
}

/// A pool that holds the memory of one run. It makes no more, because that would cost time of the run.
class Runner::Pool {
  public:
    Pool(const Cell& cell, const std::string& path) : pool_(config_of(cell, path)), server_([this] { serve(); }) {}
    ~Pool() { pool_.request_stop(); }
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    /// Waits until all memory is ready. Returns false if `stop_fd` became readable first. Throws Error if the memory
    /// cannot be made.
    [[nodiscard]] bool wait(int stop_fd) {
        constexpr int kLookMs = 5;
        while (!pool_.is_full()) {
            pollfd stop{stop_fd, POLLIN, 0};
            if (::poll(&stop, 1, kLookMs) > 0) {
                return false;
            }
            if (has_failed_) {
                const std::lock_guard hold(lock_);
                throw Error(failure_);
            }
        }
        return true;
    }

  private:
    MemoryPoolConfig config_of(const Cell& cell, const std::string& path) {
        MemoryPoolConfig config;
        config.path = path;
        config.size_bytes = cell.memory_bytes;
        // The largest size of a piece up to 1 GiB that divides the memory.
        config.piece_bytes = std::min(kGiB, cell.memory_bytes & -cell.memory_bytes);
        config.page_size = cell.page_size;
        config.workers = cell.workers;
        config.refills = false;
        config.log = [this](LogLevel level, std::string_view line) {
            if (level == LogLevel::kWarning) {
                const std::lock_guard hold(lock_);
                failure_ = line;
                has_failed_ = true;
            }
        };
        return config;
    }
    void serve() {
        try {
            pool_.serve();
        } catch (const std::exception& error) {
            const std::lock_guard hold(lock_);
            failure_ = error.what();
            has_failed_ = true;
        }
    }

    std::mutex lock_;
    std::string failure_;
    std::atomic<bool> has_failed_{false};
    MemoryPool pool_;
    std::jthread server_;
};

RunEnd Runner::run_vmm(const Cell& cell) {
    std::optional<Pool> pool;
    if (cell.method == Method::kPool) {
        pool.emplace(cell, settings_.pool);
        if (!pool->wait(stop_fd_)) {
            return {std::nullopt, {}, true};
        }
    }
    const std::string report = folder_.file("report");
    const std::string console = folder_.file("console");
    ChildSpec spec;
    spec.words = vmm_words(cell, settings_, program_, report, console);
    spec.timeout_seconds = settings_.timeout_seconds;
    spec.stop_fd = stop_fd_;
    const ChildEnd end = run_child(spec);
    if (!end.succeeded()) {
        return failed(end);
    }
    Sample sample;
    add_report_figures(read_file(report), sample);
    add_guest_figures(parse_guest_output(read_file(console)), clock_.seconds_per_cycle(), sample);
    return {sample, {}};
}

RunEnd Runner::run_qemu(const Cell& cell) {
    const std::string console = folder_.file("console");
    std::error_code ignored;
    std::filesystem::remove(console, ignored);
    Sample sample;
    int asked = 0;
    const auto started = std::chrono::steady_clock::now();
    ChildSpec spec;
    spec.words = qemu_words(cell, settings_, kernel_, console);
    spec.without_huge_pages = cell.page_size == PageSize::k4K;
    spec.timeout_seconds = settings_.timeout_seconds;
    spec.stop_fd = stop_fd_;
    spec.on_output = [&](pid_t /*child*/, std::string_view qmp) -> std::string {
        if (asked == 0 && qmp.find("\"QMP\"") != std::string_view::npos) {
            // QEMU has made the machine and its memory, and starts the guest now.
            sample[Figure::kReady] = seconds_since(started);
            ++asked;
            return "{\"execute\":\"qmp_capabilities\"}\n";
        }
        if (asked == 1 && qmp.find("\"SHUTDOWN\"") != std::string_view::npos) {
            ++asked;
            return "{\"execute\":\"query-stats\",\"arguments\":{\"target\":\"vcpu\",\"providers\":[{\"provider\":"
                   "\"kvm\",\"names\":[\"pf_fixed\",\"exits\"]}]}}\n{\"execute\":\"quit\"}\n";
        }
        return {};
    };
    const ChildEnd end = run_child(spec);
    if (!end.succeeded()) {
        return failed(end);
    }
    add_qmp_figures(end.output, sample);
    add_guest_figures(parse_guest_output(read_file(console)), clock_.seconds_per_cycle(), sample);
    return {sample, {}};
}

RunEnd Runner::run_command(const Cell& cell) {
    Sample sample;
    const auto started = std::chrono::steady_clock::now();
    bool counted = false;
    ChildSpec spec;
    spec.words = {"/bin/sh", "-c", expand_template(cell, settings_, kernel_)};
    spec.timeout_seconds = settings_.timeout_seconds;
    spec.stop_fd = stop_fd_;
    spec.on_output = [&](pid_t child, std::string_view console) -> std::string {
        if (!sample[Figure::kReady] && console.find("guest=vmm-builtin") != std::string_view::npos) {
            sample[Figure::kReady] = seconds_since(started);
        }
        if (!counted && has_summary(console)) { // The VM still exists for a moment.
            counted = true;
            add_debugfs_figures(kKvmDebugfs, child, sample);
        }
        return {};
    };
    const ChildEnd end = run_child(spec);
    if (end.stopped || end.timed_out) {
        return failed(end);
    }
    // The exit status is ignored, because other programs use it differently. The guest's output decides.
    try {
        add_guest_figures(parse_guest_output(end.output), clock_.seconds_per_cycle(), sample);
    } catch (const Error& error) {
        return {std::nullopt, std::string(error.what()) + " (" + end.problem() + ")"};
    }
    return {sample, {}};
}

std::optional<double> Runner::measure_empty_run(unsigned runs) {
    Cell cell;
    cell.memory_bytes = 16 * kMiB;
    RunSettings settings = settings_;
    settings.passes = 1;
    std::vector<double> times;
    const HarnessCost before = cost_;
    for (unsigned i = 0; i < runs; ++i) {
        const std::string report = folder_.file("report");
        ChildSpec spec;
        spec.words = vmm_words(cell, settings, program_, report, folder_.file("console"));
        spec.timeout_seconds = settings_.timeout_seconds;
        spec.stop_fd = stop_fd_;
        const ChildEnd end = run_child(spec);
        const auto json = nlohmann::json::parse(read_file(report), nullptr, false);
        if (!end.succeeded() || json.is_discarded()) {
            break;
        }
        times.push_back(end.seconds - json.at("boot").at("seconds_to_first_instruction").get<double>() -
                        json.at("guest").at("seconds").get<double>() -
                        json.at("vmm").at("teardown_seconds").get<double>());
    }
    cost_ = before;
    return times.empty() ? std::nullopt : std::optional(median(times));
}

void add_report_figures(const std::string& report, Sample& sample) {
    const auto json = nlohmann::json::parse(report, nullptr, false);
    if (json.is_discarded()) {
        throw Error("the run left no report");
    }
    try {
        const auto& prefault = json.at("prefault");
        const auto& seconds = prefault.at("seconds");
        const bool asked = prefault.at("scope") != "none";
        if (asked && !prefault.at("complete").get<bool>()) {
            throw Error("the prefault was not complete: " + prefault.at("problem").get<std::string>());
        }
        if (json.at("guest").at("exit") != "poweroff") {
            throw Error("the guest ended by " + json.at("guest").at("exit").get<std::string>());
        }
        sample[Figure::kReady] = json.at("boot").at("seconds_to_first_instruction").get<double>();
        sample[Figure::kHost] = seconds.at("host").get<double>();
        sample[Figure::kPin] = seconds.at("pin").get<double>();
        sample[Figure::kSecondLevel] = seconds.at("second_level").get<double>();
        sample[Figure::kPrefault] = seconds.at("total").get<double>();
        sample[Figure::kFaults] = json.at("guest").at("second_level_faults_total").get<double>();
        if (!json.at("guest").at("exits").empty()) {
            sample[Figure::kExits] = json.at("guest").at("exits_total").get<double>();
        }
    } catch (const nlohmann::json::exception& error) {
        throw Error(std::string("the run's report is not what it should be: ") + error.what());
    }
}

void add_qmp_figures(std::string_view qmp, Sample& sample) {
    while (!qmp.empty()) {
        const std::size_t end = std::min(qmp.find('\n'), qmp.size());
        const auto answer = nlohmann::json::parse(qmp.substr(0, end), nullptr, false);
        qmp.remove_prefix(std::min(end + 1, qmp.size()));
        if (!answer.is_object() || !answer.contains("return") || !answer["return"].is_array()) {
            continue;
        }
        for (const auto& vcpu : answer["return"]) {
            if (!vcpu.is_object() || !vcpu.contains("stats") || !vcpu["stats"].is_array()) {
                continue;
            }
            for (const auto& stat : vcpu["stats"]) {
                if (!stat.is_object() || !stat.contains("value") || !stat["value"].is_number()) {
                    continue;
                }
                const std::string name = stat.value("name", "");
                const auto figure = name == "pf_fixed" ? std::optional(Figure::kFaults)
                                    : name == "exits"  ? std::optional(Figure::kExits)
                                                       : std::nullopt;
                if (figure) {
                    sample[*figure] = sample[*figure].value_or(0) + stat["value"].get<double>();
                }
            }
        }
    }
}

void add_debugfs_figures(const std::string& kvm_debugfs, int group, Sample& sample) {
    std::error_code failed;
    // Each VM has a folder that is named PID-FD (virt/kvm/kvm_main.c, kvm_create_vm_debugfs).
    for (std::filesystem::directory_iterator vm(kvm_debugfs, failed), end; !failed && vm != end; vm.increment(failed)) {
        const std::string name = vm->path().filename();
        pid_t pid = 0;
        const auto parsed = std::from_chars(name.data(), name.data() + name.size(), pid);
        if (parsed.ec != std::errc{} || pid <= 0 || ::getpgid(pid) != group) {
            continue;
        }
        for (const auto& [file, figure] :
             {std::pair("pf_fixed", Figure::kFaults), std::pair("exits", Figure::kExits)}) {
            std::ifstream counter(vm->path() / file);
            if (double value = 0; counter >> value) {
                sample[figure] = sample[figure].value_or(0) + value;
            }
        }
    }
}

} // namespace vmm::bench
