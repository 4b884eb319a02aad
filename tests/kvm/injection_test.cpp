// A host that refuses: each system call of a run fails once, at each place where it is made. The run must end with one
// line that says what was tried, status 1 and nothing left behind. If the program can do without the call, the whole
// run must work.

#include <gtest/gtest.h>
#include <linux/io_uring.h>
#include <linux/mempolicy.h>
#include <linux/mman.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <climits>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "kvm/host/format.hpp"
#include "kvm/host/mapping.hpp"
#include "kvm/uapi.hpp"
#include "prefault/host/huge_page_pool.hpp"
#include "prefault/host/numa.hpp"
#include "support/host_emulated.hpp"
#include "support/host_errors.hpp"
#include "support/host_syscall_injector.hpp"
#include "support/kvm_command.hpp"
#include "support/kvm_huge_pages.hpp"
#include "support/kvm_require.hpp"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 // Linux 5.14
#endif

namespace vmm::testing {
namespace {

/// Calls that fail with the same value of errno, and are counted together.
struct CallKind {
    const char* name;
    int number;
    int error_number;
    /// True if a run may come to its end without the call. Null: never.
    bool (*can_do_without)(const SystemCall&) = nullptr;
    /// A run needs so many of them, the first ones.
    unsigned needed = UINT_MAX;
};

bool always(const SystemCall& /*call*/) {
    return true;
}

bool is_no_population(const SystemCall& call) {
    return call.arguments[2] != MADV_POPULATE_WRITE; // other requests are only hints to the kernel
}

bool is_unregistering(const SystemCall& call) {
    return call.arguments[1] == IORING_UNREGISTER_BUFFERS; // Closing the ring has the same effect.
}

bool is_precaution(const SystemCall& call) {
    return call.arguments[2] == MPOL_LOCAL; // It only changes what NUMA balancing may do.
}

/// Questions about what exists. "No" is an answer.
bool is_question(const SystemCall& call) {
    // KVM is opened once more to ask for its second level; module parameters answer that as well.
    constexpr std::array<std::uint64_t, 5> kQuestions{KVM_CHECK_EXTENSION, KVM_GET_API_VERSION,
                                                      KVM_X86_GET_MCE_CAP_SUPPORTED, TCGETS, TIOCGWINSZ};
    return std::find(kQuestions.begin(), kQuestions.end(), call.arguments[1]) != kQuestions.end();
}

/// These calls are made to fail. The C library and other allocators then get memory in another way than by the call.
/// The table leaves munmap out, because glibc ends the process if it fails for a thread's stack.
const std::vector<CallKind> kKinds{
    {"mmap", SYS_mmap, ENOMEM, always},
    {"mprotect", SYS_mprotect, ENOMEM, always},
    {"brk", SYS_brk, ENOMEM, always},
    {"madvise", SYS_madvise, ENOMEM, is_no_population},
    {"mbind", SYS_mbind, ENOMEM, is_precaution},
    {"mlock2", SYS_mlock2, ENOMEM},
    {"io_uring_setup", SYS_io_uring_setup, ENOMEM},
    {"io_uring_register", SYS_io_uring_register, ENOMEM, is_unregistering},
    {"ioctl", SYS_ioctl, ENOMEM, is_question},
    {"timer_create", SYS_timer_create, EAGAIN},
    {"clone3", SYS_clone3, EAGAIN, always}, // Memory is given back by several threads, or by one.
    {"clone", SYS_clone, EAGAIN, always},
    {"eventfd2", SYS_eventfd2, EMFILE},
    {"epoll_create1", SYS_epoll_create1, EMFILE},
    {"epoll_ctl", SYS_epoll_ctl, ENOMEM},
    {"openat", SYS_openat, EMFILE, always}, // Most of these are questions, too.
    {"fallocate", SYS_fallocate, ENOSPC, nullptr,
     1},                                 // When the report is written, the room that was reserved first is enough, too.
    {"linkat", SYS_linkat, EIO, always}, // A report can be written in place as well.
    {"renameat", SYS_renameat, EIO, always},
    {"KVM_RUN", SYS_ioctl, ENOMEM},
};

/// The broker reserves room for the report as the process itself does, at about the same time. It can do without: it
/// tries again when it writes the report.
bool is_of_broker(const SystemCall& call) {
    std::ifstream file("/proc/" + std::to_string(call.thread) + "/comm");
    std::string name;
    std::getline(file, name);
    return name == "vmm-broker";
}

bool is_of_kind(const SystemCall& call, const CallKind& kind) {
    if (call.number != kind.number || (kind.number == SYS_fallocate && is_of_broker(call))) {
        return false;
    }
    const bool is_run = call.number == SYS_ioctl && call.arguments[1] == KVM_RUN;
    return is_run == (std::string_view(kind.name) == "KVM_RUN");
}

std::string describe(const SystemCall& call, const CallKind& kind) {
    std::string arguments;
    for (const auto argument : call.arguments) {
        arguments += vmm::format("{}{:#x}", arguments.empty() ? "" : ", ", argument);
    }
    return vmm::format("{}({})", kind.name, arguments);
}

/// The calls that `main` makes. The calls before belong to the C library, which has no way to go on. `main` begins by
/// looking at its standard descriptors.
class CallsOfMain {
  public:
    static constexpr int kFirst = SYS_fcntl;
    bool begun(const SystemCall& call) {
        begun_ = begun_ || call.number == kFirst;
        return begun_;
    }

  private:
    bool begun_ = false;
};

/// A small guest, and its calls to the host.
struct Scenario {
    const char* name;
    std::vector<std::string> options;
    /// How many of its calls are refused, one by one. If it makes more, calls are left out evenly, and the test says
    /// so.
    int most_refusals;
    bool needs_root = false;

    [[nodiscard]] bool in_background() const {
        return std::find(options.begin(), options.end(), "--prefault-when=background") != options.end();
    }
};

// NOLINTNEXTLINE(readability-identifier-naming): the name GoogleTest looks for.
void PrintTo(const Scenario& scenario, std::ostream* out) {
    *out << scenario.name;
}

const std::vector<Scenario> kScenarios{
    {"SmallPagesLocked", {"--prefault=all", "-m", "32M", "--page-size=4K", "--pin=mlock", "-c", "2"}, 150},
    {"TransparentHugePagesPinned", {"--prefault=all", "-m", "32M", "--page-size=thp", "--pin=longterm"}, 60},
    {"HugePagesReserved", {"--prefault=all", "-m", "16M", "--page-size=2M", "--reserve-hugepages"}, 60, true},
    {"InTheBackground", {"--prefault=all", "-m", "32M", "--prefault-when=background", "--cmdline", "passes=10"}, 60},
    {"Interleaved", {"--prefault=all", "-m", "32M", "--numa", "interleave"}, 60},
};

struct PoolState {
    std::uint64_t total = 0;
    std::uint64_t free = 0;
    std::uint64_t reserved = 0;
    friend bool operator==(const PoolState&, const PoolState&) = default;
};

PoolState pool_state() {
    const auto pool = prefault::read_huge_page_pool(2 * kMiB);
    return pool ? PoolState{pool->total, pool->free, pool->reserved} : PoolState{};
}

/// Waits until the processes of an earlier test have given their pages back, which happens a little later. Others may
/// keep pages of the pool for as long as they like.
PoolState pool_at_rest() {
    PoolState last = pool_state();
    static_cast<void>(eventually([&last] {
        if (last.free == last.total) {
            return true;
        }
        std::this_thread::sleep_for(std::chrono::seconds(1));
        return std::exchange(last, pool_state()) == last;
    }));
    return last;
}

/// True if the text can be shown to a user as it is.
bool is_one_clear_line(const std::string& errors) {
    static constexpr std::array<std::string_view, 5> kNotForUsers{"bad_alloc", "std::", "vmm::", "errno", "what()"};
    const bool one_line = std::count(errors.begin(), errors.end(), '\n') == 1 && errors.ends_with('\n');
    return one_line && errors.starts_with("vmm: error: cannot ") &&
           std::none_of(kNotForUsers.begin(), kNotForUsers.end(),
                        [&](std::string_view part) { return mentions(errors, part); });
}

/// The file is complete, or does not exist.
bool is_whole(const std::string& report) {
    return report.starts_with("{\n") && report.ends_with("}\n");
}

/// A run and what it leaves behind.
struct Aftermath {
    InjectedRun run;
    std::string report;
    std::vector<std::string> files; ///< besides the report
    bool same_pool = true;
};

class HostThatRefuses : public KvmTest {
  protected:
    void SetUp() override {
        KvmTest::SetUp();
        if (IsSkipped() || HasFatalFailure()) {
            return;
        }
#ifdef VMM_SANITIZED
        GTEST_SKIP() << "a sanitizer's runtime asks for memory itself, and ends the process where it gets none";
#endif
        if (const std::string reason = SyscallInjector::why_not(); !reason.empty()) {
            GTEST_SKIP() << reason;
        }
        pool_before_ = pool_at_rest();
    }

    /// `afterwards` is called when the command has ended, before the test checks what it left.
    [[nodiscard]] Aftermath run(
        const std::vector<std::string>& options, const std::vector<int>& numbers, const CallDecision& decide,
        const std::function<void()>& afterwards = [] {}) const {
        const TemporaryDirectory directory;
        std::vector<std::string> words{command_under_test(), "run", "--report", directory / "report.json"};
        words.insert(words.end(), options.begin(), options.end());
        Aftermath aftermath;
        aftermath.run = SyscallInjector(numbers).run(words, decide);
        afterwards();
        aftermath.report = content_of(directory / "report.json");
        for (const auto& file : std::filesystem::directory_iterator(directory.path())) {
            if (file.path().filename() != "report.json") {
                aftermath.files.push_back(file.path().filename());
            }
        }
        // A ring that is closed gives its pages back a little later.
        aftermath.same_pool =
            pool_state() == pool_before_ || eventually([this] { return pool_state() == pool_before_; });
        return aftermath;
    }

    /// True if the guest ended before the prefault in the background did.
    [[nodiscard]] static bool was_overtaken(const Aftermath& aftermath) {
        return mentions(aftermath.report, "\"complete\": false") && mentions(aftermath.report, "\"problem\": \"\"");
    }

    /// What is wrong with the end of a run; empty if nothing is.
    [[nodiscard]] static std::string complaint(const Aftermath& aftermath, bool in_background, bool may_succeed) {
        const InjectedRun& run = aftermath.run;
        if (run.timed_out) {
            return "it did not end in time";
        }
        if (run.signal != 0) {
            return "it was killed by signal " + std::to_string(run.signal);
        }
        if (run.left_processes) {
            return "it left a process behind";
        }
        if (!aftermath.same_pool) {
            return "the pool of huge pages is not what it was";
        }
        if (!aftermath.files.empty()) {
            return "it left the file " + aftermath.files.front();
        }
        if (!aftermath.report.empty() && !is_whole(aftermath.report)) {
            return "its report is cut short";
        }
        if (run.exit_status == 1) {
            return is_one_clear_line(run.errors) ? "" : "its error is not one clear line";
        }
        if (run.exit_status != 0) {
            return "its status is neither 0 nor 1";
        }
        if (aftermath.report.empty() || !mentions(aftermath.report, "\"exit\": \"poweroff\"")) {
            return "its status is 0 and the guest did not come to its end";
        }
        if (in_background && mentions(aftermath.report, "\"complete\": false")) {
            constexpr std::string_view kBeginning =
                "vmm: error: the prefault in the background did not come to its end: cannot ";
            if (was_overtaken(aftermath)) {
                return may_succeed ? "" : "it does not say why the prefault is not complete";
            }
            // A guest that runs already is not stopped because the prefault fails.
            return run.errors.starts_with(kBeginning) ? "" : "its error does not say what was tried";
        }
        if (!mentions(aftermath.report, "\"complete\": true") || mentions(run.errors, "vmm: error: ")) {
            return "its status is 0 and the prefault is not complete";
        }
        return may_succeed ? "" : "it went on as if nothing had happened";
    }

    [[nodiscard]] static std::string details(const Aftermath& aftermath) {
        return vmm::format("status {}, standard error:\n{}\n{}", aftermath.run.exit_status, aftermath.run.errors,
                           aftermath.run.stuck);
    }

    PoolState pool_before_;
};

/// One call to refuse: number `place` of its kind.
struct Refusal {
    const CallKind* kind;
    unsigned place;
    friend bool operator==(const Refusal&, const Refusal&) = default;
};

/// Orders the calls so that any first part has some of each kind, and is then spread evenly over all.
std::vector<Refusal> spread(const std::vector<Refusal>& refusals) {
    std::size_t stride = std::max<std::size_t>(1, refusals.size() * 618 / 1000);
    while (std::gcd(stride, refusals.size()) > 1) {
        ++stride;
    }
    std::vector<Refusal> result;
    for (std::size_t i = 0; i < refusals.size(); ++i) {
        result.push_back(refusals[i * stride % refusals.size()]);
    }
    std::vector<Refusal> ordered;
    std::set<const CallKind*> seen;
    std::copy_if(result.begin(), result.end(), std::back_inserter(ordered),
                 [&seen](const Refusal& refusal) { return seen.insert(refusal.kind).second; });
    const std::vector<Refusal> firsts = ordered;
    std::copy_if(result.begin(), result.end(), std::back_inserter(ordered), [&firsts](const Refusal& refusal) {
        return std::find(firsts.begin(), firsts.end(), refusal) == firsts.end();
    });
    return ordered;
}

class EachCall : public HostThatRefuses, public ::testing::WithParamInterface<Scenario> {
  protected:
    void SetUp() override {
        HostThatRefuses::SetUp();
        if (!IsSkipped() && GetParam().needs_root && ::geteuid() != 0) {
            GTEST_SKIP() << "raising the pool of huge pages needs root";
        }
    }

    /// How many calls of each kind an undisturbed run makes, in the order of kKinds.
    [[nodiscard]] std::vector<Refusal> all_refusals() const {
        std::map<const CallKind*, unsigned> counts;
        std::set<int> numbers{CallsOfMain::kFirst};
        for (const CallKind& kind : kKinds) {
            numbers.insert(kind.number);
        }
        CallsOfMain calls_of_main;
        const Aftermath whole = run(GetParam().options, {numbers.begin(), numbers.end()}, [&](const SystemCall& call) {
            if (calls_of_main.begun(call)) {
                for (const CallKind& kind : kKinds) {
                    counts[&kind] += is_of_kind(call, kind) ? 1 : 0;
                }
            }
            return 0;
        });
        EXPECT_EQ(complaint(whole, GetParam().in_background(), true), "") << details(whole);
        EXPECT_EQ(whole.run.exit_status, 0) << details(whole);
        constexpr unsigned kMostOfARun = 5; // KVM_RUN is the same place in the program every time.
        std::vector<Refusal> refusals;
        for (const CallKind& kind : kKinds) {
            const bool alike = std::string_view(kind.name) == "KVM_RUN";
            const unsigned step = alike ? counts[&kind] / kMostOfARun + 1 : 1;
            for (unsigned place = 0; place < counts[&kind]; place += step) {
                refusals.push_back({&kind, place});
            }
        }
        return refusals;
    }

    /// A run in which this call is refused, and the call; no call if it was never made.
    [[nodiscard]] Aftermath run_refusing(const Refusal& refusal, std::optional<SystemCall>& refused) const {
        unsigned place = 0;
        CallsOfMain calls_of_main;
        return run(GetParam().options, {CallsOfMain::kFirst, refusal.kind->number}, [&](const SystemCall& call) {
            if (!calls_of_main.begun(call) || !is_of_kind(call, *refusal.kind) || place++ != refusal.place) {
                return 0;
            }
            refused = call;
            return refusal.kind->error_number;
        });
    }

    /// Expects a good end of a run in which this call is refused. Returns false if the call was never made.
    bool expect_good_end(const Refusal& refusal) {
        std::optional<SystemCall> refused;
        Aftermath aftermath = run_refusing(refusal, refused);
        if (!aftermath.same_pool) { // The command repeats its own calls; calls of others may not come again.
            pool_before_ = pool_state();
            aftermath = run_refusing(refusal, refused);
        }
        // A guest that ends at the same moment stops the prefault. Then the prefault has no reason of its own to
        // report.
        constexpr unsigned kMostTries = 10;
        for (unsigned tries = 1; GetParam().in_background() && was_overtaken(aftermath) && tries < kMostTries;
             ++tries) {
            aftermath = run_refusing(refusal, refused);
        }
        const bool may_succeed = !refused || refusal.place >= refusal.kind->needed ||
                                 (refusal.kind->can_do_without != nullptr && refusal.kind->can_do_without(*refused));
        const std::string what = complaint(aftermath, GetParam().in_background(), may_succeed);
        EXPECT_EQ(what, "") << (refused ? describe(*refused, *refusal.kind) : refusal.kind->name) << ", number "
                            << refusal.place << " of its kind, failed with " << errno_reason(refusal.kind->error_number)
                            << "; " << details(aftermath);
        return refused.has_value();
    }
};

TEST_P(EachCall, RefusedOnceEndsInOneClearLineOrAWholeRun) {
    const std::vector<Refusal> refusals = all_refusals();
    ASSERT_FALSE(refusals.empty());
    const auto most = static_cast<std::size_t>(fewer_in_emulation(GetParam().most_refusals));
    std::map<std::string, unsigned> refused;
    std::map<std::string, unsigned> wanted;
    for (const Refusal& refusal : refusals) {
        ++wanted[refusal.kind->name];
    }
    const std::vector<Refusal> in_order = spread(refusals);
    for (const Refusal& refusal : std::span(in_order).first(std::min(most, in_order.size()))) {
        refused[refusal.kind->name] += expect_good_end(refusal) ? 1 : 0;
    }
    std::string told;
    for (const auto& [name, count] : wanted) {
        told += vmm::format("{}{} {} of {}", told.empty() ? "" : ", ", name, refused[name], count);
    }
    std::cout << "refused: " << told << std::endl;
}

INSTANTIATE_TEST_SUITE_P(Of, EachCall, ::testing::ValuesIn(kScenarios),
                         [](const auto& scenario) { return std::string(scenario.param.name); });

class HostWithoutMemory : public HostThatRefuses {
  protected:
    /// Refuses every call for memory from the `place`-th on. Returns whether there was one.
    bool expect_good_end(const std::vector<std::string>& options, unsigned place) const {
        unsigned calls = 0;
        CallsOfMain calls_of_main;
        const Aftermath aftermath =
            run(options, {CallsOfMain::kFirst, SYS_mmap, SYS_brk, SYS_mprotect}, [&](const SystemCall& call) {
                const bool is_for_memory = calls_of_main.begun(call) && call.number != CallsOfMain::kFirst;
                return is_for_memory && calls++ >= place ? ENOMEM : 0;
            });
        EXPECT_EQ(complaint(aftermath, false, true), "")
            << "no memory from call " << place << " on; " << details(aftermath);
        return calls > place;
    }
};

TEST_F(HostWithoutMemory, FromAnyMomentOnEndsInOneClearLineOrAWholeRun) {
    unsigned place = 0;
    while (expect_good_end(kScenarios.front().options, place)) {
        ++place;
    }
    EXPECT_GT(place, 10U);
    std::cout << "moments: " << place << std::endl;
}

class SignalAtEachCall : public HostThatRefuses {
  protected:
    /// Sends SIGTERM to a run at call number `place`, not counting the guest's calls. Returns how many calls there
    /// were.
    [[nodiscard]] unsigned signal_at(unsigned place, InjectedRun& result, std::vector<std::string>& files) {
        const TemporaryDirectory directory;
        std::set<int> numbers{CallsOfMain::kFirst};
        for (const CallKind& kind : kKinds) {
            numbers.insert(kind.number);
        }
        unsigned calls = 0;
        result = SyscallInjector({numbers.begin(), numbers.end()})
                     .run({command_under_test(), "run", "--prefault=all", "-m", "16M", "--page-size=4K",
                           "--pin=longterm", "--serial", directory / "serial", "--report", directory / "report"},
                          [&](const SystemCall& call) {
                              const bool is_run = call.number == SYS_ioctl && call.arguments[1] == KVM_RUN;
                              if (!is_run && calls++ == place) {
                                  ::kill(call.thread, SIGTERM);
                              }
                              return 0;
                          });
        for (const auto& file : std::filesystem::directory_iterator(directory.path())) {
            files.push_back(file.path().filename());
        }
        return calls;
    }
};

TEST_F(SignalAtEachCall, EndsTheCommandAndLeavesNothingHalfDone) {
    const auto most_rounds = static_cast<unsigned>(fewer_in_emulation(60));
    InjectedRun run;
    std::vector<std::string> files;
    const unsigned calls = signal_at(UINT_MAX, run, files);
    ASSERT_EQ(run.exit_status, 0) << run.errors << run.stuck;
    unsigned stride = calls * 618 / 1000; // Any first part is spread evenly.
    while (std::gcd(stride, calls) > 1) {
        ++stride;
    }
    std::map<int, unsigned> ends;
    unsigned rounds = 0;
    for (; rounds < std::min(calls, most_rounds); ++rounds) {
        const unsigned place = rounds * stride % calls;
        files.clear();
        static_cast<void>(signal_at(place, run, files));
        EXPECT_FALSE(run.timed_out || run.left_processes) << place << ": " << run.stuck;
        if (run.signal != 0) { // It came before anything was opened.
            EXPECT_EQ(run.signal, SIGTERM) << place;
            EXPECT_TRUE(files.empty()) << place << ": " << files.front();
        } else {
            EXPECT_TRUE(run.exit_status == 4 || run.exit_status == 0) << place << ": " << run.errors;
            EXPECT_EQ(run.errors.find("error"), std::string::npos) << place << ": " << run.errors;
        }
        ++ends[run.signal != 0 ? -1 : run.exit_status];
    }
    std::cout << rounds << " of " << calls << " calls; killed " << ends[-1] << ", stopped " << ends[4]
              << ", came to its end " << ends[0] << std::endl;
    EXPECT_GT(ends[4], 0U);
}

/// A call that fails once with an error that means: try again.
struct Interruption {
    const char* name;
    int error_number;
    bool (*is_it)(const SystemCall&);
    bool needs_second_level = false;
};

// NOLINTNEXTLINE(readability-identifier-naming): the name GoogleTest looks for.
void PrintTo(const Interruption& interruption, std::ostream* out) {
    *out << interruption.name;
}

template <unsigned long kRequest>
bool is_ioctl(const SystemCall& call) {
    return call.number == SYS_ioctl && call.arguments[1] == kRequest;
}

bool is_population(const SystemCall& call) {
    return call.number == SYS_madvise && call.arguments[2] == MADV_POPULATE_WRITE;
}

class Interrupted : public HostThatRefuses, public ::testing::WithParamInterface<Interruption> {};

TEST_P(Interrupted, CallIsMadeAgain) {
    const Interruption& interruption = GetParam();
    unsigned places = 1; // Then every third: some fail right after another, some not.
    unsigned interrupted = 0;
    const Aftermath aftermath =
        run({"--prefault=all", "-m", "32M", "--page-size=4K", "-c", "2"},
            {interruption.is_it({SYS_madvise, {0, 0, MADV_POPULATE_WRITE}, 0}) ? SYS_madvise : SYS_ioctl},
            [&](const SystemCall& call) {
                if (!interruption.is_it(call) || ++places % 3 == 0) {
                    return 0;
                }
                ++interrupted;
                return interruption.error_number;
            });
    if (interrupted == 0 && interruption.needs_second_level) {
        GTEST_SKIP() << "this host's KVM has no KVM_PRE_FAULT_MEMORY";
    }
    EXPECT_GT(interrupted, 0U);
    EXPECT_EQ(complaint(aftermath, false, true), "") << details(aftermath);
    EXPECT_EQ(aftermath.run.exit_status, 0) << details(aftermath);
}

INSTANTIATE_TEST_SUITE_P(By, Interrupted,
                         ::testing::Values(Interruption{"CreateVmBySignal", EINTR, is_ioctl<KVM_CREATE_VM>},
                                           Interruption{"RunBySignal", EINTR, is_ioctl<KVM_RUN>},
                                           Interruption{"RunByStartUp", EAGAIN, is_ioctl<KVM_RUN>},
                                           Interruption{"PreFaultBySignal", EINTR, is_ioctl<KVM_PRE_FAULT_MEMORY>,
                                                        true},
                                           Interruption{"PreFaultByRace", EAGAIN, is_ioctl<KVM_PRE_FAULT_MEMORY>, true},
                                           Interruption{"PopulationBySignal", EINTR, is_population},
                                           Interruption{"PopulationByRace", EAGAIN, is_population}),
                         [](const auto& interruption) { return std::string(interruption.param.name); });

/// A call that fails for ever with an error that means: try again.
struct EndlessCall {
    const char* name;
    int error_number;
    bool (*is_it)(const SystemCall&);
    std::string_view advice; ///< a part of what the line says
    std::vector<std::string> options = {"--prefault=none"};
    bool needs_second_level = false;
};

// NOLINTNEXTLINE(readability-identifier-naming): the name GoogleTest looks for.
void PrintTo(const EndlessCall& refusal, std::ostream* out) {
    *out << refusal.name;
}

class ForEver : public HostThatRefuses, public ::testing::WithParamInterface<EndlessCall> {};

TEST_P(ForEver, CallThatIsToBeMadeAgainEndsInOneClearLine) {
    const EndlessCall& refusal = GetParam();
    std::vector<std::string> options{"-m", "32M", "--page-size=4K", "-c", "2"};
    options.insert(options.end(), refusal.options.begin(), refusal.options.end());
    unsigned refused = 0;
    const int number = refusal.is_it({SYS_madvise, {0, 0, MADV_POPULATE_WRITE}, 0}) ? SYS_madvise : SYS_ioctl;
    const Aftermath aftermath = run(options, {number}, [&](const SystemCall& call) {
        refused += refusal.is_it(call) ? 1 : 0;
        return refusal.is_it(call) ? refusal.error_number : 0;
    });
    if (refused == 0 && refusal.needs_second_level) {
        GTEST_SKIP() << "this host's KVM has no KVM_PRE_FAULT_MEMORY";
    }
    EXPECT_GT(refused, 1U) << "it was not tried again";
    EXPECT_EQ(complaint(aftermath, false, false), "") << details(aftermath);
    EXPECT_EQ(aftermath.run.exit_status, 1) << details(aftermath);
    EXPECT_TRUE(mentions(aftermath.run.errors, refusal.advice)) << aftermath.run.errors;
}

INSTANTIATE_TEST_SUITE_P(
    By, ForEver,
    ::testing::Values(
        EndlessCall{"CreateVmBySignal", EINTR, is_ioctl<KVM_CREATE_VM>, "create a virtual machine"},
        EndlessCall{"CreateVmByLimit", EAGAIN, is_ioctl<KVM_CREATE_VM>, "pids.max"},
        EndlessCall{"CreateVcpuBySignal", EINTR, is_ioctl<KVM_CREATE_VCPU>, "create vCPU 0"},
        EndlessCall{"CreateVcpuByLimit", EAGAIN, is_ioctl<KVM_CREATE_VCPU>, "create vCPU 0"},
        EndlessCall{"RunByLimit", EAGAIN, is_ioctl<KVM_RUN>, "pids.max"},
        EndlessCall{"RunOfAPrefaultVcpuByLimit",
                    EAGAIN,
                    is_ioctl<KVM_RUN>,
                    "pids.max",
                    {"--prefault=all", "--prefault-method=touch"}},
        EndlessCall{"PreFaultBySignal",
                    EINTR,
                    is_ioctl<KVM_PRE_FAULT_MEMORY>,
                    "KVM_PRE_FAULT_MEMORY",
                    {"--prefault=all"},
                    true},
        EndlessCall{
            "PreFaultByRace", EAGAIN, is_ioctl<KVM_PRE_FAULT_MEMORY>, "KVM_PRE_FAULT_MEMORY", {"--prefault=all"}, true},
        EndlessCall{"PopulationBySignal", EINTR, is_population, "populate guest memory", {"--prefault=host"}},
        EndlessCall{"PopulationByRace", EAGAIN, is_population, "populate guest memory", {"--prefault=host"}}),
    [](const auto& refusal) { return std::string(refusal.param.name); });

/// Even if a call never succeeds, the run obeys SIGTERM.
class StopWhileAgain : public HostThatRefuses, public ::testing::WithParamInterface<EndlessCall> {};

TEST_P(StopWhileAgain, IsObeyed) {
    constexpr unsigned kCallsBefore = 5;
    const EndlessCall& refusal = GetParam();
    std::vector<std::string> options{"-m", "32M", "--page-size=4K", "-c", "2"};
    options.insert(options.end(), refusal.options.begin(), refusal.options.end());
    unsigned refused = 0;
    const Aftermath aftermath = run(options, {SYS_ioctl}, [&](const SystemCall& call) {
        if (!refusal.is_it(call)) {
            return 0;
        }
        if (++refused == kCallsBefore) {
            ::kill(call.thread, SIGTERM);
        }
        return refusal.error_number;
    });
    EXPECT_FALSE(aftermath.run.timed_out) << details(aftermath);
    EXPECT_EQ(aftermath.run.exit_status, 4) << details(aftermath);
}

INSTANTIATE_TEST_SUITE_P(
    Of, StopWhileAgain,
    ::testing::Values(
        EndlessCall{"CreateVm", EINTR, is_ioctl<KVM_CREATE_VM>, ""}, EndlessCall{"Run", EINTR, is_ioctl<KVM_RUN>, ""},
        EndlessCall{"RunByLimit", EAGAIN, is_ioctl<KVM_RUN>, ""},
        EndlessCall{"RunOfAPrefaultVcpu", EINTR, is_ioctl<KVM_RUN>, "", {"--prefault=all", "--prefault-method=touch"}}),
    [](const auto& refusal) { return std::string(refusal.param.name); });

class HostThatForbids : public HostThatRefuses {
  protected:
    [[nodiscard]] Aftermath run_without(int number, const std::vector<std::string>& options) const {
        return run(options, {number}, [](const SystemCall&) { return EPERM; });
    }
    static void expect_refused(const Aftermath& aftermath, std::string_view advice) {
        EXPECT_EQ(complaint(aftermath, false, false), "") << details(aftermath);
        EXPECT_EQ(aftermath.run.exit_status, 1);
        EXPECT_TRUE(mentions(aftermath.run.errors, advice)) << aftermath.run.errors;
    }
};

TEST_F(HostThatForbids, RingsMakesLongtermPinsNameWhatForbidsThem) {
    expect_refused(run_without(SYS_io_uring_setup, {"--prefault=all", "-m", "32M", "--pin=longterm"}), "--pin=mlock");
}

TEST_F(HostThatForbids, LocksMakesThePinNameTheMemory) {
    expect_refused(run_without(SYS_mlock2, {"--prefault=all", "-m", "32M", "--pin=mlock"}), "lock guest memory");
}

TEST_F(HostThatForbids, PlacementMattersOnlyWhereThereIsAChoice) {
    const Aftermath aftermath = run_without(SYS_mbind, {"--prefault=all", "-m", "32M", "--numa", "interleave"});
    if (prefault::NumaTopology::read().nodes.size() > 1) {
        expect_refused(aftermath, "mbind");
    } else {
        EXPECT_EQ(complaint(aftermath, false, true), "") << details(aftermath);
        EXPECT_EQ(aftermath.run.exit_status, 0) << details(aftermath);
    }
}

/// A rival that also wants huge pages: it takes the free ones at a moment that the test chooses.
class Rival {
  public:
    /// Takes all free pages, or those of one node if a node is named.
    void take_all(std::optional<unsigned> node = std::nullopt) {
        const auto pool = prefault::read_huge_page_pool(2 * kMiB);
        const std::uint64_t pages = !pool ? 0 : node ? pool->available_on(*node) : pool->available();
        if (pages == 0) {
            return;
        }
        // More pages than the whole pool has free cannot be mapped. Pages bound to a node are taken from no other node.
        mapping_ =
            Mapping::anonymous(pages * 2 * kMiB, 2 * kMiB, MAP_HUGETLB | MAP_HUGE_2MB | MAP_NORESERVE, "a rival");
        if (node) {
            const unsigned long mask = 1UL << *node;
            ::syscall(SYS_mbind, mapping_->data(), mapping_->size(), MPOL_BIND, &mask, 64UL, 0UL);
        }
        ::madvise(mapping_->data(), mapping_->size(), MADV_POPULATE_WRITE);
    }
    void give_back() { mapping_.reset(); }

  private:
    std::optional<Mapping> mapping_;
};

class ContestedPool : public HostThatRefuses {
  protected:
    static constexpr std::uint64_t kGuestPages = 8;

    void SetUp() override {
        HostThatRefuses::SetUp();
        if (IsSkipped()) {
            return;
        }
        pages_.emplace(2 * kGuestPages);
        if (!pages_->why_not().empty()) {
            GTEST_SKIP() << pages_->why_not();
        }
        pool_before_ = pool_state();
    }

    /// Runs a guest on huge pages. A rival takes the free ones at the call for which `is_moment` is true.
    [[nodiscard]] Aftermath run_beside_rival(std::vector<std::string> options, int number,
                                             bool (*is_moment)(const SystemCall&),
                                             std::optional<unsigned> node = std::nullopt) {
        options.insert(options.end(), {"-m", "16M", "--page-size=2M"});
        Rival rival;
        bool came = false;
        const Aftermath aftermath = run(
            options, {number},
            [&](const SystemCall& call) {
                if (!came && is_moment(call)) {
                    came = true;
                    rival.take_all(node);
                }
                return 0;
            },
            [&rival] { rival.give_back(); });
        EXPECT_TRUE(came);
        return aftermath;
    }

    static void expect_clean_error(const Aftermath& aftermath) {
        EXPECT_EQ(complaint(aftermath, false, false), "") << details(aftermath);
        EXPECT_EQ(aftermath.run.exit_status, 1);
        EXPECT_TRUE(mentions(aftermath.run.errors, "huge page")) << aftermath.run.errors;
    }

    std::optional<HugePages> pages_;
};

bool maps_huge_pages(const SystemCall& call) {
    return (call.arguments[3] & MAP_HUGETLB) != 0;
}

TEST_F(ContestedPool, PagesTakenBetweenCheckAndMappingAreACleanError) {
    expect_clean_error(run_beside_rival({}, SYS_mmap, maps_huge_pages));
}

TEST_F(ContestedPool, PagesTakenBeforeAPrefaultAreACleanError) {
    expect_clean_error(run_beside_rival({"--prefault=all"}, SYS_mmap, maps_huge_pages));
}

TEST_F(ContestedPool, PagesTakenAfterTheMappingAreOursAlready) {
    // Mapped pages are reserved, so the rival gets none of them.
    const Aftermath aftermath = run_beside_rival({"--prefault=all"}, SYS_madvise, is_population);
    EXPECT_EQ(complaint(aftermath, false, true), "") << details(aftermath);
    EXPECT_EQ(aftermath.run.exit_status, 0) << details(aftermath);
}

TEST_F(ContestedPool, PagesOfANodeTakenAfterTheMappingAreACleanError) {
    if (prefault::NumaTopology::read().memory_nodes().size() < 2) {
        GTEST_SKIP() << "this host has one NUMA node: what is reserved is reserved there";
    }
    expect_clean_error(run_beside_rival({"--numa-node=0"}, SYS_madvise, is_population, 0));
}

bool advises_about_forks(const SystemCall& call) {
    return call.arguments[2] == MADV_DONTFORK;
}

TEST_F(ContestedPool, PagesOfANodeThatWeAreConfinedToAreACleanErrorWhenTakenAfterTheMapping) {
    if (prefault::NumaTopology::read().memory_nodes().size() < 2) {
        GTEST_SKIP() << "this host has one NUMA node: what is reserved is reserved there";
    }
    // Does what numactl --membind does; the command inherits it.
    const unsigned long first_node = 1;
    ASSERT_EQ(::syscall(SYS_set_mempolicy, MPOL_BIND, &first_node, 64UL), 0);
    const Aftermath aftermath = run_beside_rival({}, SYS_madvise, advises_about_forks, 0);
    ::syscall(SYS_set_mempolicy, MPOL_DEFAULT, nullptr, 0UL);
    expect_clean_error(aftermath);
}

TEST_F(ContestedPool, PageThatCannotBeMadeIsACleanErrorForMemoryBoundToANode) {
    const unsigned node = prefault::NumaTopology::read().memory_nodes().front();
    const Aftermath aftermath =
        run({"-m", "16M", "--page-size=2M", "--numa-node=" + std::to_string(node)}, {SYS_madvise},
            [](const SystemCall& call) { return is_population(call) ? EFAULT : 0; });
    expect_clean_error(aftermath);
}

} // namespace
} // namespace vmm::testing
