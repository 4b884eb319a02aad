// Prefault of a machine whose guest runs: repeated, by several threads at once, and against attacks of the guest.

#include <fcntl.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <fstream>
#include <iostream>
#include <optional>
#include <ostream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "kvm/host/unique_fd.hpp"
#include "kvm/system.hpp"
#include "support/host_pipe.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/kvm_command.hpp"
#include "support/kvm_machine.hpp"
#include "support/kvm_require.hpp"
#include "support/prefault_method_names.hpp"
#include "vmm/machine/memory_map.hpp"

namespace vmm {
namespace {

using namespace std::chrono_literals;
using prefault::Method;
using prefault::Scope;
using testing::run_beside;
using testing::TestKernel;
using testing::TouchingGuest;
namespace kernels = testing::kernels;

bool has_ioctl() {
    return prefault::detect_second_level().kind != prefault::SecondLevelKind::kShadow &&
           kvm::System().extension(KVM_CAP_PRE_FAULT_MEMORY) != 0;
}

/// For each way to fill the second level.
class Refill : public testing::KvmTest, public ::testing::WithParamInterface<Method> {
  protected:
    void SetUp() override {
        KvmTest::SetUp();
        if (!IsSkipped() && !HasFatalFailure() && GetParam() != Method::kTouch && !has_ioctl()) {
            GTEST_SKIP() << "this KVM has no KVM_PRE_FAULT_MEMORY, or not for shadow paging";
        }
    }
    static prefault::Options everything() { return {.scope = Scope::kAll, .method = GetParam(), .workers = 2}; }
};

INSTANTIATE_TEST_SUITE_P(EachWay, Refill, ::testing::Values(Method::kTouch, Method::kIoctl, Method::kIoctlThenTouch),
                         [](const auto& method) { return testing::test_name_of(method.param); });

/// The lines of the built-in guest about its passes. Each pass checks what the pass before it wrote.
struct Checked {
    unsigned passes = 0;
    unsigned with_errors = 0;
};

Checked read_checked_passes(const std::string& serial_file) {
    Checked checked;
    std::ifstream lines(serial_file);
    for (std::string line; std::getline(lines, line) && !lines.eof();) { // The last line may be incomplete.
        if (line.find(" errors=") == std::string::npos) {
            continue;
        }
        ++checked.passes;
        checked.with_errors += line.find(" errors=0") == std::string::npos ? 1 : 0;
    }
    return checked;
}

/// Runs the built-in guest, which writes to all its memory and checks it. Calls `between` before each of a hundred
/// prefaults of that memory.
template <typename Between>
void expect_no_change_in_a_hundred_rounds(const prefault::Options& options, PageSize page_size, Between between) {
    constexpr int kRounds = 100;
    const testing::TemporaryDirectory directory;
    const std::string serial_file = directory.write("serial", "");
    const UniqueFd serial(::open(serial_file.c_str(), O_WRONLY | O_CLOEXEC));
    Config config;
    config.memory_bytes = 16 * kMiB;
    config.page_size = page_size;
    config.prefault = options;
    config.command_line = "passes=1000000 check=1 report=live";
    config.serial.output_fd = serial.get();
    Machine machine(config);
    EXPECT_TRUE(machine.prefault().complete);
    int complete = 0;
    run_beside(machine, [&] {
        for (int round = 0; round < kRounds; ++round) {
            between(machine, round);
            const prefault::Report report = machine.prefault();
            complete += report.complete ? 1 : 0;
            EXPECT_TRUE(report.complete) << round << ": " << report.problem;
        }
        machine.request_stop();
    });
    EXPECT_EQ(complete, kRounds);
    const Checked checked = read_checked_passes(serial_file);
    EXPECT_GT(checked.passes, 1U);
    EXPECT_EQ(checked.with_errors, 0U);
}

TEST_P(Refill, AHundredTimesChangesNothingThatTheGuestWrites) {
    expect_no_change_in_a_hundred_rounds(everything(), PageSize::k4K, [](Machine&, int) {});
}

TEST_P(Refill, AHundredTimesBetweenDirtyLogsChangesNothingThatTheGuestWrites) {
    expect_no_change_in_a_hundred_rounds(everything(), PageSize::kThp, [](Machine& machine, int round) {
        if (round % 10 == 5 || round % 10 == 7) {
            machine.log_dirty_pages(round % 10 == 5);
        }
    });
}

TEST_P(Refill, BringsLargePagesBackAfterADirtyLog) {
    const TouchingGuest guest;
    Config config = guest.config();
    config.memory_bytes = 32 * kMiB;
    config.page_size = PageSize::kThp;
    config.prefault = everything();
    Machine machine(config);
    const prefault::MappedPages before = machine.prefault().mapped;
    prefault::Report after;
    run_beside(machine, [&] {
        machine.log_dirty_pages(true);
        EXPECT_TRUE(guest.touch({GuestAddress{0}, config.memory_bytes}));
        machine.log_dirty_pages(false);
        after = machine.prefault();
        guest.power_off();
    });
    EXPECT_TRUE(after.complete) << after.problem;
    EXPECT_EQ(after.mapped.pages_2m, before.pages_2m);
}

TEST_P(Refill, OfRangesLeavesARunningGuestNoFaultInThem) {
    const TouchingGuest guest;
    Config config = guest.config();
    config.memory_bytes = 64 * kMiB;
    config.page_size = PageSize::k4K;
    config.prefault = everything();
    config.prefault.ranges = {{GuestAddress{0}, 8 * kMiB}};
    const GuestRange more{GuestAddress{32 * kMiB}, 16 * kMiB};
    Machine machine(config);
    EXPECT_TRUE(machine.prefault().complete);
    run_beside(machine, [&] {
        prefault::Options options = everything();
        options.ranges = {more};
        EXPECT_TRUE(machine.prefault(options).complete);
        EXPECT_TRUE(guest.touch(more));
        guest.power_off();
    });
    EXPECT_EQ(machine.report().second_level_faults_total(), 0U);
}

TEST_P(Refill, OfRangesLeavesARunningGuestItsFaultsElsewhere) {
    const TouchingGuest guest;
    Config config = guest.config();
    config.memory_bytes = 64 * kMiB;
    config.page_size = PageSize::k4K;
    config.prefault = everything();
    config.prefault.ranges = {{GuestAddress{0}, 8 * kMiB}};
    Machine machine(config);
    EXPECT_TRUE(machine.prefault().complete);
    run_beside(machine, [&] {
        EXPECT_TRUE(guest.touch({GuestAddress{32 * kMiB}, 16 * kMiB}));
        guest.power_off();
    });
    EXPECT_GT(machine.report().second_level_faults_total(), 100U);
}

TEST_P(Refill, ByTwoThreadsAtOnceIsCompleteForBoth) {
    const TestKernel kernel(kernels::kSpin);
    Config config = kernel.config();
    config.prefault = everything();
    Machine machine(config);
    run_beside(machine, [&] {
        {
            std::vector<std::jthread> threads;
            for (int thread = 0; thread < 2; ++thread) {
                threads.emplace_back([&] {
                    for (int round = 0; round < 10; ++round) {
                        const prefault::Report report = machine.prefault();
                        EXPECT_TRUE(report.complete) << report.problem;
                    }
                });
            }
        }
        machine.request_stop();
    });
}

TEST_P(Refill, BesideMemoryThatIsAddedAndDirtyLogsIsComplete) {
    const TestKernel kernel(kernels::kSpin);
    Config config = kernel.config();
    config.prefault = everything();
    Machine machine(config);
    run_beside(machine, [&] {
        {
            std::vector<std::jthread> others;
            others.emplace_back([&] {
                for (unsigned i = 0; i < 4; ++i) {
                    EXPECT_TRUE(machine.add_memory({GuestAddress{4 * kGiB + i * 4 * kMiB}, 2 * kMiB}).complete);
                }
            });
            others.emplace_back([&] {
                for (int i = 0; i < 10; ++i) {
                    machine.log_dirty_pages(i % 2 == 0);
                }
            });
            for (int i = 0; i < 10; ++i) {
                EXPECT_TRUE(machine.prefault().complete);
            }
        }
        const prefault::Report last = machine.prefault();
        EXPECT_TRUE(last.complete) << last.problem;
        EXPECT_EQ(last.bytes, config.memory_bytes + 8 * kMiB);
        machine.request_stop();
    });
}

using RefillTest = testing::KvmTest;

TEST_F(RefillTest, EndsWithWhatItsProgressSinkThrowsAndMayBeDoneAgain) {
    const TestKernel kernel(kernels::kSpin);
    Machine machine(kernel.config());
    run_beside(machine, [&] {
        prefault::Options options{.scope = Scope::kAll, .workers = 2};
        options.progress = [](const prefault::Progress&) { throw std::domain_error("enough"); };
        EXPECT_THROW(machine.prefault(options), std::domain_error);
        options.progress = {};
        const prefault::Report again = machine.prefault(options);
        EXPECT_TRUE(again.complete) << again.problem;
        machine.request_stop();
    });
}

/// Stops a machine in the middle of a prefault while its guest runs. False if the prefault ended before the stop.
bool stops_in_the_middle() {
    const TestKernel kernel(kernels::kSpin);
    Config config = kernel.config();
    config.memory_bytes = 1 * kGiB;
    config.page_size = PageSize::k4K;
    Machine machine(config);
    bool complete = false;
    run_beside(machine, [&] {
        prefault::Options options{.scope = Scope::kAll, .method = Method::kTouch, .workers = 2};
        options.progress = [&](const prefault::Progress&) { machine.request_stop(); };
        const prefault::Report report = machine.prefault(options);
        complete = report.complete;
        EXPECT_EQ(report.problem, "");
    });
    return !complete;
}

TEST_F(RefillTest, OfAMachineThatIsStoppedEndsIncompleteAndSaysNoProblem) {
    EXPECT_TRUE(testing::eventually(stops_in_the_middle));
}

/// The writes of a guest to the scratch slot of the prefault, again and again: `words` times `value` at `offset`.
struct Attack {
    const char* name;
    std::uint32_t offset;
    std::uint32_t words;
    std::uint32_t value;
};

void PrintTo(const Attack& attack, std::ostream* out) { // NOLINT(readability-identifier-naming): GoogleTest's name
    *out << attack.name;
}

constexpr std::uint32_t kStubWords = 5;
constexpr std::uint32_t kTaskStateOffset = 0x800;
constexpr std::uint32_t kTablesOffset = 0x1000;
constexpr std::uint32_t kTablesWords = 0x2000; ///< the root, and all tables of 5 GiB
constexpr std::array kAttacks{
    Attack{"StubJumpsToItself", 0, kStubWords, 0xfeebfeeb},
    Attack{"StubHalts", 0, kStubWords, 0xf4f4f4f4},
    Attack{"StubWritesToAnotherPort", 0, kStubWords, 0x80e680e6},
    Attack{"StubReadsFromAPort", 0, kStubWords, 0x80e480e4},
    Attack{"StubSaysItIsDoneAtOnce", 0, 2, 0xeeeeeeee},
    Attack{"StubIsNoInstruction", 0, kStubWords, 0x0b0f0b0f},
    Attack{"StubIsOnes", 0, kStubWords, 0xffffffff},
    Attack{"TaskStateIsOnes", kTaskStateOffset, 80, 0xffffffff},
    Attack{"TablesAreZero", kTablesOffset, kTablesWords, 0},
    Attack{"TablesAreOnes", kTablesOffset, kTablesWords, 0xffffffff},
    Attack{"TablesLeadToThemselves", kTablesOffset, kTablesWords, 0xe0001067},
    Attack{"TablesLeadToDevices", kTablesOffset, kTablesWords, 0xfee000e7},
    Attack{"AllOfItIsZero", 0, kTablesOffset / 4 + kTablesWords, 0},
};

kernels::Code attacker(const Attack& attack) {
    kernels::Code code;
    const auto append = [&code](std::uint8_t opcode, std::uint32_t operand) {
        code.push_back(opcode);
        for (unsigned shift = 0; shift < 32; shift += 8) {
            code.push_back(static_cast<std::uint8_t>(operand >> shift));
        }
    };
    constexpr std::uint8_t kBackToTheStart = 0x100 - 20;
    code = {0x66, 0xba, 0xf8, 0x03, 0xee}; // mov $0x3f8, %dx; out %al, %dx: the guest has begun
    append(0xbf, static_cast<std::uint32_t>(to_integer(memory_map::kScratchWindow.base)) + attack.offset); // mov, %edi
    append(0xb9, attack.words);                                                                            // mov, %ecx
    append(0xb8, attack.value);                                                                            // mov, %eax
    code.insert(code.end(), {0xfc, 0xf3, 0xab, 0xeb, kBackToTheStart}); // cld; rep stos %eax, (%edi); jmp
    return code;
}

/// A guest that writes to the scratch slot, after it has printed a byte. It harms only itself.
class GuestThatAttacks {
  public:
    explicit GuestThatAttacks(const Attack& attack) : kernel_(attacker(attack)) {}

    [[nodiscard]] Config config() const {
        Config config = kernel_.config();
        config.page_size = PageSize::k4K;
        config.prefault = {.scope = Scope::kAll, .method = Method::kTouch, .workers = 2};
        config.serial.output_fd = screen_.writer.get();
        return config;
    }
    [[nodiscard]] bool wait_until_it_has_begun() const { return testing::read_one(screen_.reader.get()).has_value(); }

  private:
    TestKernel kernel_;
    testing::Pipe screen_;
};

class HostileGuest : public testing::KvmTest, public ::testing::WithParamInterface<Attack> {};

INSTANTIATE_TEST_SUITE_P(Whose, HostileGuest, ::testing::ValuesIn(kAttacks),
                         [](const auto& attack) { return std::string(attack.param.name); });

TEST_P(HostileGuest, NeitherFailsNorHoldsUpThePrefault) {
    const GuestThatAttacks guest(GetParam());
    Machine machine(guest.config());
    unsigned rounds = 0;
    unsigned incomplete = 0;
    const ExitReason reason = run_beside(machine, [&] {
        EXPECT_TRUE(guest.wait_until_it_has_begun());
        const std::jthread stopper([&] {
            std::this_thread::sleep_for(400ms);
            machine.request_stop(); // If the stop were not noticed there, the call would never end.
        });
        do {
            const prefault::Report report = machine.prefault();
            EXPECT_TRUE(report.complete || !report.problem.empty() || machine.is_stop_requested());
            ++rounds;
            incomplete += report.complete ? 0 : 1;
        } while (!machine.is_stop_requested());
    });
    EXPECT_EQ(reason, ExitReason::kStopped) << "the guest goes on, whatever becomes of the prefault";
    std::cout << incomplete << " of " << rounds << " were not complete" << std::endl;
}

TEST_F(RefillTest, ThatBeganBeforeAHostileGuestDidIsNotFailedByItEither) {
    // When run() is called, the prefault is under way, and waits for the guest to begin.
    const GuestThatAttacks guest({"", 0, kStubWords, 0xf4f4f4f4});
    Machine machine(guest.config());
    std::atomic<bool> under_way{false};
    std::atomic<bool> attacked{false};
    prefault::Options options = guest.config().prefault;
    options.progress = [&](const prefault::Progress&) {
        if (!under_way.exchange(true)) {
            EXPECT_TRUE(guest.wait_until_it_has_begun());
            attacked = true;
        }
    };
    std::optional<std::string> failure;
    std::jthread filling([&] {
        try {
            static_cast<void>(machine.prefault(options));
        } catch (const std::exception& error) {
            failure = error.what();
        }
    });
    EXPECT_TRUE(testing::eventually([&] { return under_way.load(); }));
    run_beside(machine, [&] {
        EXPECT_TRUE(testing::eventually([&] { return attacked.load(); }));
        std::this_thread::sleep_for(200ms);
        machine.request_stop();
    });
    filling.join();
    EXPECT_EQ(failure.value_or(""), "");
}

} // namespace
} // namespace vmm
