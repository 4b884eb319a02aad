// Guests that move to another machine while they run. They go on there with correct memory, or stay here if anything is
// wrong.

#include <gtest/gtest.h>

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "kvm/host/unique_fd.hpp"
#include "support/disk_writer.hpp"
#include "support/host_errors.hpp"
#include "support/host_pipe.hpp"
#include "support/host_waiting.hpp"
#include "support/kvm_huge_pages.hpp"
#include "support/kvm_machine.hpp"
#include "support/kvm_migration.hpp"
#include "vmm/machine.hpp"
#include "vmm/migration/channel.hpp"
#include "vmm/migration/messages.hpp"
#include "vmm/migration/session_id.hpp"
#include "vmm/state/state_file.hpp"

namespace vmm {
namespace {

using testing::arriving;
using testing::content_of;
using testing::Destination;
using testing::error_of;
using testing::eventually;
using testing::mentions;
using testing::MigrationTest;
using testing::Running;
using testing::TestKernel;
namespace kernels = testing::kernels;

/// A way to move a guest, and its configuration.
struct Journey {
    std::string_view name;
    unsigned vcpus = 1;
    PageSize page_size = PageSize::k4K;
    prefault::Scope scope = prefault::Scope::kNone;
    bool tcp = false;
    unsigned streams = 1;
    Compression compression = Compression::kNone;
    bool shared = false;
};

class MigrationOf : public MigrationTest, public ::testing::WithParamInterface<Journey> {
  protected:
    [[nodiscard]] static Config config() {
        Config config = guest(GetParam().vcpus);
        config.page_size = GetParam().page_size;
        config.prefault.scope = GetParam().scope;
        config.memory_shared = GetParam().shared;
        return config;
    }
};

TEST_P(MigrationOf, GuestGoesOnAtTheOtherEnd) {
    const Journey& way = GetParam();
    std::optional<testing::HugePages> pages;
    if (way.page_size == PageSize::k2M) {
        pages.emplace(16);
        if (!pages->why_not().empty()) {
            GTEST_SKIP() << pages->why_not();
        }
    }
    Running source(config());
    ASSERT_TRUE(source.says("pass=2 "));
    MigrationOptions how = patient({});
    how.streams = way.streams;
    how.compression = way.compression;
    const Moved moved = move(source, config(), way.tcp ? loopback() : unix_socket(), how);
    EXPECT_EQ(moved.report.memory_bytes, 16 * kMiB);
    EXPECT_EQ(moved.report.shared, way.shared);
    EXPECT_EQ(moved.report.reconnects, 0U);
    const RunReport report = expect_goes_on(*moved.there);
    expect_whole_output(source.output() + moved.there->output(), way.vcpus);
    ASSERT_TRUE(report.arrival);
    EXPECT_EQ(report.arrival->shared, way.shared);
    EXPECT_EQ(report.arrival->resumed, 0U);
    if (way.shared) {
        EXPECT_EQ(report.arrival->received_bytes, 0U);
        EXPECT_EQ(moved.report.sent_bytes, 0U);
    } else {
        EXPECT_GT(report.arrival->received_bytes, 0U);
        EXPECT_GE(moved.report.sent_bytes, report.arrival->received_bytes);
    }
    if (way.compression == Compression::kZstd) { // The guest writes words that are similar.
        EXPECT_LT(moved.report.sent_bytes, moved.report.rounds * moved.report.memory_bytes);
    }
    if (way.scope == prefault::Scope::kAll) {
        EXPECT_TRUE(moved.there->filled().complete) << moved.there->filled().problem;
        EXPECT_EQ(report.second_level_faults_total(), 0U);
    }
}

INSTANTIATE_TEST_SUITE_P(
    , MigrationOf,
    ::testing::Values(
        Journey{.name = "Unix"}, Journey{.name = "Tcp", .vcpus = 4, .tcp = true},
        Journey{.name = "FourStreams", .vcpus = 4, .scope = prefault::Scope::kAll, .streams = 4},
        Journey{.name = "Zstd",
                .scope = prefault::Scope::kAll,
                .tcp = true,
                .streams = 4,
                .compression = Compression::kZstd},
        Journey{.name = "CompressedWhereWorthIt", .vcpus = 2, .compression = Compression::kAuto},
        Journey{.name = "Thp", .vcpus = 4, .page_size = PageSize::kThp, .scope = prefault::Scope::kAll, .streams = 2},
        Journey{
            .name = "HugePages", .vcpus = 2, .page_size = PageSize::k2M, .scope = prefault::Scope::kAll, .tcp = true},
        Journey{.name = "HostSideOnly", .vcpus = 2, .scope = prefault::Scope::kHost},
        Journey{.name = "Shared", .shared = true},
        Journey{.name = "SharedAndFull", .vcpus = 4, .scope = prefault::Scope::kAll, .shared = true},
        Journey{.name = "SharedThp",
                .vcpus = 2,
                .page_size = PageSize::kThp,
                .scope = prefault::Scope::kAll,
                .shared = true}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_F(MigrationTest, GuestGoesToAndFro) {
    constexpr unsigned kVcpus = 2;
    Config config = guest(kVcpus);
    config.prefault.scope = prefault::Scope::kAll;
    auto here = std::make_unique<Running>(config);
    ASSERT_TRUE(here->says("pass=2 "));
    std::string output;
    for (unsigned journey = 0; journey < 10; ++journey) {
        MigrationOptions how = patient({});
        how.streams = 1 + journey % 4;
        Moved moved = move(*here, config, journey % 2 == 0 ? unix_socket() : loopback(), how);
        output += here->output();
        here = std::move(moved.there);
        ASSERT_TRUE(here->says("\npass=")) << journey;
    }
    const RunReport report = expect_goes_on(*here);
    EXPECT_EQ(report.second_level_faults_total(), 0U);
    expect_whole_output(output + here->output(), kVcpus);
}

TEST_F(MigrationTest, PausedGuestStaysPaused) {
    Running source(guest(2));
    ASSERT_TRUE(source.says("pass=2 "));
    source->pause();
    const Moved moved = move(source, guest(2), unix_socket());
    EXPECT_EQ((*moved.there)->statistics().state, RunState::kPaused);
    EXPECT_EQ(moved.there->passes(), 0U);
    (*moved.there)->resume();
    expect_goes_on(*moved.there);
    expect_whole_output(source.output() + moved.there->output(), 2);
}

TEST_F(MigrationTest, MemoryThatWasAddedGoesAlong) {
    const GuestRange added{GuestAddress{4 * kGiB}, 4 * kMiB};
    const std::vector<std::byte> words(100, std::byte{0x5a});
    const Config config = TestKernel(kernels::kSpin).config();
    for (const bool shared : {false, true}) {
        Config wanted = config;
        wanted.memory_shared = shared;
        const TestKernel kernel(kernels::kSpin);
        wanted.kernel_path = kernel.config().kernel_path;
        Running source(wanted);
        source->add_memory(added);
        ASSERT_TRUE(source->memory().copy_in(GuestAddress{to_integer(added.base) + 0x1234}, words));
        const Moved moved = move(source, wanted, unix_socket());
        std::vector<std::byte> found(words.size());
        ASSERT_TRUE((*moved.there)->memory().copy_out(GuestAddress{to_integer(added.base) + 0x1234}, found));
        EXPECT_EQ(found, words) << shared;
    }
}

/// A guest that echoes its input; at the other end it has another serial line.
TEST_F(MigrationTest, SerialLineGoesOn) {
    const TestKernel kernel(kernels::kEcho);
    const testing::Pipe first;
    const testing::Pipe second;
    Config config = kernel.config();
    config.serial.input_fd = first.reader.get();
    Running source(config);
    testing::write_text(first.writer.get(), "before;");
    ASSERT_TRUE(source.says("before;"));
    config.serial.input_fd = second.reader.get();
    const Moved moved = move(source, config, unix_socket());
    testing::write_text(second.writer.get(), "after;");
    EXPECT_TRUE(moved.there->says("after;"));
    EXPECT_EQ(source.output() + moved.there->output(), "before;after;");
}

// ---- Disks

struct MigrationOfDisk : MigrationTest {
    std::string disk = directory.write("disk", "");

    void SetUp() override {
        MigrationTest::SetUp();
        std::filesystem::resize_file(disk, testing::disk_writer::kPlaces * testing::disk_writer::kBlockBytes);
    }
    /// A guest that writes to its disk for ever.
    [[nodiscard]] Config writer() const {
        Config config;
        config.memory_bytes = 32 * kMiB;
        config.kernel_path = std::filesystem::exists(DISK_WRITER_KERNEL) ? DISK_WRITER_KERNEL : "/bin/disk_writer.elf";
        config.transport = VirtioTransport::kMmio; // The kernel's driver knows no other transport.
        config.command_line = "first=1";
        config.disks.push_back({.path = disk});
        return config;
    }
    [[nodiscard]] static std::uint64_t last_flushed(const std::string& console) {
        constexpr std::string_view kWord = "flushed=";
        const std::size_t end = console.rfind('\n');
        const std::size_t begin = end == std::string::npos ? end : console.rfind(kWord, end);
        return begin == std::string::npos ? 0 : std::stoull(console.substr(begin + kWord.size()));
    }
    static void expect_writes(const Running& running, std::uint64_t more_than) {
        EXPECT_TRUE(eventually([&] { return last_flushed(running.output()) > more_than; })) << running.output();
        EXPECT_FALSE(mentions(running.output(), "error")) << running.output();
    }
    /// Checks that each block holds a complete write, and none older than the newest one flushed there up to `flushed`.
    void expect_content(std::uint64_t flushed) const {
        namespace writes = testing::disk_writer;
        std::vector<std::uint64_t> wanted(writes::kPlaces, 0);
        for (std::uint64_t number = 1; number <= flushed; ++number) {
            wanted[writes::place_of(number)] = number;
        }
        std::ifstream file(disk, std::ios::binary);
        std::array<std::uint64_t, writes::kBlockBytes / 8> block{};
        for (std::uint64_t place = 0; place < writes::kPlaces; ++place) {
            ASSERT_TRUE(file.read(reinterpret_cast<char*>(block.data()), sizeof(block))); // bytes may be of any type
            const std::uint64_t number = block[0] >> 16;
            if (number == 0) {
                EXPECT_EQ(wanted[place], 0U) << place;
                continue;
            }
            EXPECT_GE(number, wanted[place]) << place;
            EXPECT_EQ(writes::place_of(number), place);
            for (std::uint64_t i = 0; i < block.size(); ++i) {
                ASSERT_EQ(block[i], writes::word_of(number, i)) << place;
            }
        }
    }
    /// True if nobody writes to the file.
    [[nodiscard]] static bool can_lock(const std::string& file) {
        const UniqueFd fd(::open(file.c_str(), O_RDWR | O_CLOEXEC));
        struct flock range {};
        range.l_type = F_WRLCK;
        range.l_whence = SEEK_SET;
        return ::fcntl(fd.get(), F_OFD_SETLK, &range) == 0;
    }
};

TEST_F(MigrationOfDisk, ItsLockIsHandedOver) {
    std::string output;
    auto here = std::make_unique<Running>(writer());
    expect_writes(*here, 2 * testing::disk_writer::kPlaces);
    for (const bool tcp : {false, true}) {
        Moved moved = move(*here, writer(), tcp ? loopback() : unix_socket());
        output += here->output();
        here = std::move(moved.there);
        EXPECT_FALSE(can_lock(disk));
        expect_writes(*here, last_flushed(output) + 2 * testing::disk_writer::kPlaces);
    }
    here->stop();
    output += here->output();
    here.reset();
    EXPECT_TRUE(eventually([&] { return can_lock(disk); })); // The kernel may finish a ring's I/O afterwards.
    std::erase(output, '\r');
    expect_content(last_flushed(output));
    std::uint64_t last = 0; // No line is lost, and no line comes twice.
    std::istringstream lines(output.substr(0, output.rfind('\n') + 1));
    for (std::string line; std::getline(lines, line);) {
        if (!line.empty()) {
            ASSERT_EQ(line, "flushed=" + std::to_string(last + testing::disk_writer::kBatch));
            last += testing::disk_writer::kBatch;
        }
    }
}

/// The destination's message if the guest had been given to it already.
TEST_F(MigrationOfDisk, GuestComesBackIfTheDestinationCannotHaveIt) {
    const std::string other = directory.write("other", "");
    std::filesystem::copy_file(disk, other, std::filesystem::copy_options::overwrite_existing);
    const std::string small = directory.write("small", std::string(64 * kKiB, ' '));
    const UniqueFd third(::open(other.c_str(), O_RDWR | O_CLOEXEC));
    struct flock range {};
    range.l_type = F_WRLCK;
    range.l_whence = SEEK_SET;
    ASSERT_EQ(::fcntl(third.get(), F_OFD_SETLK, &range), 0);

    Running source(writer());
    expect_writes(source, 1);
    for (const std::string& path : {other, small, directory / "nothing"}) {
        Config config = writer();
        config.disks[0].path = path;
        Destination destination(config, unix_socket());
        const std::string error = error_of([&] { return source->migrate(patient(destination.address())); });
        EXPECT_TRUE(mentions(error, path) || mentions(error, "blk0")) << error;
        EXPECT_NE(destination.failure(), "");
        EXPECT_EQ(source->statistics().state, RunState::kRunning) << path;
        EXPECT_FALSE(can_lock(disk)) << path;
        expect_writes(source, last_flushed(source.output()) + testing::disk_writer::kPlaces);
    }
    source.stop();
    expect_content(last_flushed(source.output()));
}

// ---- reasons for the end of an attempt

/// A guest whose second level is full.
struct StayingGuest : MigrationTest {
    /// A rate at which all of memory takes ten seconds and more.
    static constexpr std::uint64_t kSlowly = kMiB;

    [[nodiscard]] static Config full_guest(unsigned vcpus = 2) {
        Config config = guest(vcpus);
        config.prefault.scope = prefault::Scope::kAll;
        return config;
    }
    [[nodiscard]] static std::uint64_t faults_of(Running& running) {
        std::uint64_t faults = 0;
        for (const VcpuStatistics& vcpu : running->statistics().vcpus) {
            faults += vcpu.second_level_faults;
        }
        return faults;
    }
    /// The guest goes on here, as if nothing had been tried.
    static void expect_stays(Running& source) {
        EXPECT_EQ(source->statistics().state, RunState::kRunning);
        const std::uint64_t before = faults_of(source);
        const unsigned passes = source.passes();
        EXPECT_TRUE(eventually([&] { return source.passes() >= passes + 10; })) << source.output();
        EXPECT_EQ(faults_of(source), before);
        expect_whole_output(source.output(), static_cast<unsigned>(source->statistics().vcpus.size()));
    }
};

TEST_F(StayingGuest, StopBeforeItBegins) {
    Running source(full_guest());
    std::stop_source stop;
    stop.request_stop();
    Destination destination(full_guest(), unix_socket());
    EXPECT_FALSE(source->migrate(patient(destination.address()), stop.get_token()).complete);
    expect_stays(source);
}

/// A destination that has received the announcement of the guest, but makes no memory for it.
TEST_F(StayingGuest, StopWhileTheDestinationMakesMemory) {
    Running source(full_guest());
    IncomingGuest silent({.address = unix_socket()}, {});
    std::stop_source stop;
    std::jthread other([&] {
        silent.wait();
        stop.request_stop();
    });
    EXPECT_FALSE(source->migrate(patient(silent.address()), stop.get_token()).complete);
    expect_stays(source);
}

TEST_F(StayingGuest, StopWhileMemoryIsSent) {
    Running source(full_guest());
    for (const bool tcp : {false, true}) {
        Destination destination(full_guest(), tcp ? loopback() : unix_socket());
        MigrationOptions options = patient(destination.address());
        options.bytes_per_second = kSlowly;
        options.streams = tcp ? 3 : 1;
        std::stop_source stop;
        options.progress = [&stop](const MigrationProgress& now) {
            EXPECT_EQ(now.stage, "memory");
            stop.request_stop();
        };
        EXPECT_FALSE(source->migrate(options, stop.get_token()).complete);
        EXPECT_TRUE(mentions(destination.failure(), "a stop was requested"));
        expect_stays(source);
    }
}

/// The guest never moves, because so short a downtime cannot be kept.
TEST_F(StayingGuest, StopInALaterRound) {
    Running source(full_guest());
    Destination destination(full_guest(), unix_socket());
    MigrationOptions options = patient(destination.address());
    options.downtime = std::chrono::milliseconds(1);
    options.streams = 2;
    std::stop_source stop;
    options.progress = [&stop](const MigrationProgress& now) {
        if (now.round > 3) {
            stop.request_stop();
        }
    };
    const MigrationReport report = source->migrate(options, stop.get_token());
    EXPECT_FALSE(report.complete);
    EXPECT_GT(report.rounds, 2U);
    EXPECT_GT(report.throttled_percent, 0U);
    EXPECT_NE(destination.failure(), "");
    expect_stays(source);
}

TEST_F(StayingGuest, TimeIsOver) {
    Running source(full_guest());
    Destination destination(full_guest(), unix_socket());
    MigrationOptions options = patient(destination.address());
    options.downtime = std::chrono::milliseconds(1);
    options.timeout = std::chrono::seconds(1);
    options.most_throttled_percent = 0;
    const std::string error = error_of([&] { return source->migrate(options); });
    EXPECT_TRUE(mentions(error, "cannot migrate the machine within 1 s")) << error;
    EXPECT_TRUE(mentions(destination.failure(), "the guest stays where it was"));
    expect_stays(source);
}

TEST_F(StayingGuest, TimeIsOverWhileTheFirstRoundIsSent) {
    Running source(full_guest());
    Destination destination(full_guest(), unix_socket());
    MigrationOptions options = patient(destination.address());
    options.bytes_per_second = kSlowly;
    options.timeout = std::chrono::seconds(1);
    const std::string error = error_of([&] { return source->migrate(options); });
    EXPECT_TRUE(mentions(error, "cannot migrate the machine within 1 s")) << error;
    expect_stays(source);
}

TEST_F(MigrationTest, GuestThatWritesTooFastIsForced) {
    Running source(guest(2));
    ASSERT_TRUE(source.says("pass=2 "));
    MigrationOptions how = patient({});
    how.downtime = std::chrono::milliseconds(1);
    how.timeout = std::chrono::seconds(1);
    how.most_throttled_percent = 0;
    how.on_timeout = OnTimeout::kForce;
    const Moved moved = move(source, guest(2), unix_socket(), how);
    EXPECT_EQ(moved.report.throttled_percent, 0U);
    EXPECT_GT(moved.report.rounds, 1U);
    expect_goes_on(*moved.there);
    expect_whole_output(source.output() + moved.there->output(), 2);
}

// The guest never moves, because 1 ms is less than a switch takes. It is cancelled when it is slowed down as much as
// allowed.
TEST_F(StayingGuest, ThatWritesTooFastIsSlowedDown) {
    Running source(full_guest());
    Destination destination(full_guest(), loopback());
    MigrationOptions how = patient(destination.address());
    how.downtime = std::chrono::milliseconds(1);
    how.most_throttled_percent = 30;
    std::atomic<unsigned> most = 0;
    std::stop_source stop;
    how.progress = [&](const MigrationProgress& now) {
        most = std::max(most.load(), now.throttled_percent);
        if (now.throttled_percent >= how.most_throttled_percent) {
            stop.request_stop();
        }
    };
    EXPECT_FALSE(source->migrate(how, stop.get_token()).complete);
    EXPECT_EQ(most, 30U);
    expect_stays(source);
}

TEST_F(StayingGuest, NobodyIsThere) {
    Running source(full_guest());
    const std::string error = error_of([&] { return source->migrate(patient(unix_socket())); });
    EXPECT_TRUE(mentions(error, directory / "guest.sock")) << error;
    expect_stays(source);
}

TEST_F(StayingGuest, DestinationEndsMeanwhile) {
    Running source(full_guest());
    Destination destination(full_guest(), unix_socket());
    MigrationOptions options = patient(destination.address());
    options.bytes_per_second = kSlowly;
    options.progress = [&destination](const MigrationProgress& /*now*/) { destination.stop(); };
    const std::string error = error_of([&] { return source->migrate(options); });
    EXPECT_TRUE(mentions(error, "the destination does not take the guest")) << error;
    EXPECT_TRUE(mentions(error, "a stop was requested")) << error;
    expect_stays(source);
}

// ---- refusals

TEST_F(StayingGuest, AnotherMachineIsRefused) {
    Running source(full_guest());
    const auto refusal = [&](const std::function<void(Config&)>& change) {
        Config other = full_guest();
        change(other);
        Destination destination(other, unix_socket());
        const std::string error = error_of([&] { return source->migrate(patient(destination.address())); });
        EXPECT_NE(destination.failure(), "");
        expect_stays(source);
        return error;
    };
    EXPECT_TRUE(mentions(refusal([](Config& other) { other.memory_bytes = 32 * kMiB; }), "Config::memory_bytes"));
    EXPECT_TRUE(mentions(refusal([](Config& other) { other.vcpus = 1; }), "Config::vcpus"));
    EXPECT_TRUE(mentions(refusal([](Config& other) { other.rng = true; }), "rng0"));
    EXPECT_TRUE(mentions(refusal([](Config& other) { other.balloon.emplace(); }), "balloon"));
}

/// A source that claims a feature that no processor has.
TEST_F(MigrationTest, ProcessorThatLacksAFeatureIsRefused) {
    Running running(guest());
    ASSERT_TRUE(running.says("pass=2 "));
    ASSERT_TRUE(take(running).complete);
    const std::string bytes = content_of(path + "/state");
    SnapshotState state = decode_state(std::as_bytes(std::span(bytes)));
    state.memory.reset();
    for (kvm_cpuid_entry2& leaf : state.machine.vcpus.front().cpuid) {
        if (leaf.function == 7 && leaf.index == 0) {
            leaf.ebx = ~0U;
        }
    }
    Destination destination(guest(), unix_socket());
    const auto channel = connect_channel(destination.address(), {}, -1, testing::kPatience);
    channel->set_patience(testing::kPatience);
    Hello hello;
    hello.session = new_session_id();
    send_message(*channel, MessageType::kHello, encode(hello));
    EXPECT_EQ(receive_message(*channel).type, MessageType::kWelcome);
    send_message(*channel, MessageType::kFirstState, encode_state(state));
    const Message answer = receive_message(*channel);
    ASSERT_EQ(answer.type, MessageType::kRefused);
    const std::string why = decode<Why>(answer).text;
    EXPECT_TRUE(mentions(why, "processor")) << why;
    EXPECT_TRUE(mentions(destination.failure(), "it lacks"));
}

TEST_F(StayingGuest, SecondMigrationAtOnceIsRefused) {
    Running source(full_guest());
    IncomingGuest silent({.address = unix_socket()}, {});
    std::stop_source stop;
    auto first =
        std::async(std::launch::async, [&] { return source->migrate(patient(silent.address()), stop.get_token()); });
    silent.wait();
    // Now dirty pages are logged.
    Destination destination(full_guest(), unix_socket("other.sock"));
    std::stop_source give_up;
    auto second = std::async(std::launch::async, [&] {
        return error_of([&] { return source->migrate(patient(destination.address()), give_up.get_token()); });
    });
    stop.request_stop();
    EXPECT_FALSE(first.get().complete);
    const std::string error = second.get();
    if (error.empty()) { // The second migration has waited for the end of the first, and then the guest has moved.
        EXPECT_EQ(source.end().exit, ExitReason::kMigrated);
        expect_goes_on(*destination.take());
    } else {
        expect_stays(source);
    }
}

TEST_F(StayingGuest, SecondGuestAtOneAddressIsRefused) {
    // One guest that never rests, and one that does. Several busy guests would keep KVM waiting (synchronize_srcu), for
    // minutes if the machine is slow.
    Running source(full_guest(1));
    Running second(full_guest(1));
    second->pause(testing::kPatience);
    Destination destination(full_guest(1), unix_socket());
    MigrationOptions options = patient(destination.address());
    options.bytes_per_second = kSlowly;
    std::stop_source stop;
    std::atomic<bool> tried = false;
    std::string error;
    options.progress = [&](const MigrationProgress& /*now*/) {
        if (!tried.exchange(true)) {
            error = error_of([&] { return second->migrate(patient(destination.address())); });
            stop.request_stop();
        }
    };
    EXPECT_FALSE(source->migrate(options, stop.get_token()).complete);
    EXPECT_TRUE(mentions(error, "another guest arrives here already")) << error;
    expect_stays(source);
    second->resume();
    expect_stays(second);
}

TEST_F(MigrationTest, MachineThatDoesNotRunIsRefused) {
    const TestKernel kernel(kernels::kPowerOff);
    Destination destination(kernel.config(), unix_socket());
    Machine machine(kernel.config());
    EXPECT_THROW(static_cast<void>(machine.migrate(patient(destination.address()))), UsageError);
    EXPECT_EQ(machine.run(), ExitReason::kPowerOff);
    EXPECT_THROW(static_cast<void>(machine.migrate(patient(destination.address()))), UsageError);
}

TEST_F(MigrationTest, DevicesOfTheEmbeddingProgramAreRefused) {
    const auto nothing = [](const DeviceHost& /*host*/) { return std::shared_ptr<CustomDevice>(); };
    Config config = arriving(guest());
    config.incoming = std::make_shared<IncomingGuest>(IncomingGuest::Options{.address = unix_socket()}, LogSink{});
    config.devices.push_back({.name = "own", .base = 0x2000, .size = 1, .interrupt = {}, .make = nothing});
    EXPECT_TRUE(mentions(error_of([&] { const Machine machine(config); }), "Config::devices"));
    config.devices.clear();
    EXPECT_THROW(const Machine machine(config), UsageError); // no guest has been announced
}

TEST_F(MigrationTest, OptionsThatCannotBeAreRefused) {
    const auto refusal = [&](const std::function<void(MigrationOptions&)>& change) {
        MigrationOptions options = patient(unix_socket());
        change(options);
        return error_of([&] { options.check(); });
    };
    EXPECT_EQ(refusal([](MigrationOptions& /*options*/) {}), "");
    EXPECT_TRUE(mentions(refusal([](MigrationOptions& options) { options.streams = 0; }), "streams"));
    EXPECT_TRUE(mentions(refusal([](MigrationOptions& options) { options.streams = 17; }), "streams"));
    EXPECT_TRUE(mentions(refusal([](MigrationOptions& options) { options.downtime = {}; }), "downtime"));
    EXPECT_TRUE(mentions(refusal([](MigrationOptions& options) { options.timeout = std::chrono::seconds(-1); }),
                         "less than 0"));
    EXPECT_TRUE(mentions(refusal([](MigrationOptions& options) { options.bytes_per_second = 1; }), "at least"));
    EXPECT_TRUE(mentions(refusal([](MigrationOptions& options) { options.most_throttled_percent = 100; }), "99%"));
    EXPECT_TRUE(mentions(refusal([](MigrationOptions& options) { options.config.resize(2 * kMiB); }), "1 MiB"));
    EXPECT_TRUE(mentions(
        refusal([](MigrationOptions& options) { options.address = MigrationAddress::parse("tcp:192.0.2.1:4444"); }),
        "TLS"));
    Running running(guest());
    MigrationOptions options = patient(unix_socket());
    options.streams = 0;
    EXPECT_TRUE(mentions(error_of([&] { return running->migrate(options); }), "streams"));
    expect_goes_on(running);
}

/// If a machine was made from the guest but never runs it, the guest goes back to the source.
TEST_F(StayingGuest, DestinationThatNeverRunsGivesItBack) {
    Running source(full_guest());
    const auto arriving_guest =
        std::make_shared<IncomingGuest>(IncomingGuest::Options{.address = unix_socket()}, LogSink{});
    std::jthread other([&] {
        arriving_guest->wait();
        Config config = arriving(full_guest());
        config.incoming = arriving_guest;
        const Machine machine(config);
    });
    const std::string error = error_of([&] { return source->migrate(patient(arriving_guest->address())); });
    EXPECT_TRUE(mentions(error, "the destination does not take the guest")) << error;
    expect_stays(source);
}

} // namespace
} // namespace vmm
