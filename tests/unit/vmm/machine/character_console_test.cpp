#include "vmm/machine/character_console.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>

#include "devices/serial_port.hpp"
#include "support/devices_recording_irq.hpp"
#include "support/host_pipe.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/host_waiting.hpp"

namespace vmm {
namespace {

using devices::SerialPort;
using testing::Pipe;
using testing::read_available;
using testing::write_text;

/// `size` bytes that show their position.
std::string numbered_text(std::size_t size) {
    std::string text;
    for (std::size_t line = 0; text.size() < size; ++line) {
        text += std::to_string(line) + "\n";
    }
    text.resize(size);
    return text;
}

/// Reports where two long texts differ, instead of printing them.
void expect_same(const std::string& arrived, const std::string& sent) {
    const auto [at, unused] = std::mismatch(arrived.begin(), arrived.end(), sent.begin(), sent.end());
    EXPECT_TRUE(arrived == sent) << arrived.size() << " of " << sent.size() << " bytes arrived, the first "
                                 << at - arrived.begin() << " of them right";
}

/// A guest's serial port, connected to `config`, and both of its sides.
class ConsoleUnderTest {
  public:
    explicit ConsoleUnderTest(const CharacterConfig& config)
        : console_(config, [this] { ++stops; }), port_(irq_, console_.callbacks()) {
        console_.attach(port_, loop_);
    }

    /// The guest executes so many `outb` instructions.
    void guest_writes(std::string_view text) {
        for (const char c : text) {
            const std::array data{static_cast<std::byte>(c)};
            port_.write(0, data);
        }
    }

    /// Returns what the guest reads until its receiver is empty.
    std::string guest_reads() {
        std::string text;
        std::array<std::byte, 1> data{};
        for (;;) {
            port_.read(kLineStatus, data);
            if ((data[0] & kDataReady) == std::byte{0}) {
                return text;
            }
            port_.read(0, data);
            text += static_cast<char>(data[0]);
        }
    }

    /// The guest reads, and the event loop runs, until `size` bytes have come.
    std::string guest_reads_up_to(std::size_t size) {
        std::string text;
        testing::eventually([&] {
            std::size_t before = 0;
            do { // no pause as long as something comes
                before = text.size();
                loop_.run_once(0);
                text += guest_reads();
            } while (text.size() < size && text.size() > before);
            return text.size() >= size;
        });
        return text;
    }

    void enable_fifo() {
        const std::array data{std::byte{1}};
        port_.write(2, data);
    }
    void run_loop() { loop_.run_once(0); }
    /// True if the event loop would be woken by the descriptors that it watches.
    [[nodiscard]] bool has_events() const { return loop_.has_events(); }
    void flush(int timeout_ms) { console_.flush({std::chrono::milliseconds(timeout_ms), std::chrono::seconds(60)}); }
    [[nodiscard]] std::uint64_t dropped() const { return port_.dropped_output_bytes(); }
    /// Without the bytes that the port dropped.
    [[nodiscard]] std::uint64_t lost() const { return console_.lost_output().bytes - dropped(); }
    [[nodiscard]] std::string why() const { return console_.lost_output().why; }
    [[nodiscard]] std::uint64_t said() const { return console_.output_bytes(); }

    int stops = 0;

  private:
    static constexpr std::uint64_t kLineStatus = 5;
    static constexpr std::byte kDataReady{1};

    devices::testing::RecordingIrq irq_;
    EventLoop loop_;
    CharacterConsole console_;
    SerialPort port_;
};

CharacterConfig output_to(int fd) {
    CharacterConfig config;
    config.output_fd = fd;
    return config;
}

CharacterConfig input_from(int fd) {
    CharacterConfig config;
    config.input_fd = fd;
    return config;
}

TEST(CharacterConsoleOutput, ArrivesWholeAndInOrder) {
    const std::string text = numbered_text(400'000); // more than the pipe and the port's ring hold together
    const Pipe pipe;
    ConsoleUnderTest console(output_to(pipe.writer.get()));
    std::string arrived;
    for (std::size_t start = 0; start < text.size(); start += 10'000) {
        console.guest_writes(std::string_view(text).substr(start, 10'000));
        console.run_loop();
        arrived += read_available(pipe.reader.get());
    }
    for (int i = 0; i < 200 && arrived.size() < text.size(); ++i) {
        console.run_loop();
        arrived += read_available(pipe.reader.get());
    }
    expect_same(arrived, text);
    EXPECT_EQ(console.dropped(), 0U);
    EXPECT_EQ(console.lost(), 0U);
}

TEST(CharacterConsoleOutput, OfAGuestOnAnotherThreadArrivesWhole) {
    const std::string text = numbered_text(200'000);
    const Pipe pipe;
    ConsoleUnderTest console(output_to(pipe.writer.get()));
    std::string arrived;
    {
        const std::jthread guest([&] { console.guest_writes(text); });
        testing::eventually([&] {
            console.run_loop();
            arrived += read_available(pipe.reader.get());
            return arrived.size() >= text.size();
        });
    }
    expect_same(arrived, text);
}

TEST(CharacterConsoleOutput, IsDroppedAndCountedWhereNobodyReads) {
    constexpr std::size_t kFlood = 1'000'000;
    const Pipe pipe;
    ConsoleUnderTest console(output_to(pipe.writer.get()));
    for (std::size_t written = 0; written < kFlood; written += 10'000) {
        console.guest_writes(std::string(10'000, 'x')); // It would never return if it waited for a reader.
        console.run_loop();
    }
    EXPECT_GT(console.dropped(), 0U);
    std::string arrived;
    for (int i = 0; i < 1000 && arrived.size() + console.dropped() < kFlood; ++i) {
        arrived += read_available(pipe.reader.get());
        console.run_loop();
    }
    EXPECT_EQ(arrived.size() + console.dropped(), kFlood) << "what was not dropped arrives";
    EXPECT_EQ(console.lost(), 0U);
}

TEST(CharacterConsoleOutput, FlowsAgainOnceItIsRead) {
    const Pipe pipe;
    ConsoleUnderTest console(output_to(pipe.writer.get()));
    console.guest_writes(std::string(600'000, 'x'));
    console.run_loop();
    for (int i = 0; i < 1000 && !read_available(pipe.reader.get()).empty(); ++i) {
        console.run_loop();
    }
    console.guest_writes("still here");
    console.run_loop();
    EXPECT_EQ(read_available(pipe.reader.get()), "still here");
}

TEST(CharacterConsoleOutput, WithoutADescriptorGoesNowhere) {
    ConsoleUnderTest console(CharacterConfig{});
    for (int i = 0; i < 10; ++i) {
        console.guest_writes(std::string(100'000, 'x'));
        console.run_loop();
    }
    EXPECT_EQ(console.dropped(), 0U) << "it is taken, though nobody wants it";
}

TEST(CharacterConsoleOutput, OfAReaderThatIsGoneIsLostAndCounted) {
    const auto before = std::signal(SIGPIPE, SIG_IGN);
    Pipe pipe;
    ConsoleUnderTest console(output_to(pipe.writer.get()));
    pipe.reader.reset();
    console.guest_writes("nobody");
    console.run_loop();
    EXPECT_EQ(console.lost(), 6U);
    std::signal(SIGPIPE, before);
}

TEST(CharacterConsoleOutput, IsFlushedAtTheEnd) {
    const Pipe pipe;
    ConsoleUnderTest console(output_to(pipe.writer.get()));
    console.guest_writes("last words");
    console.flush(1000);
    EXPECT_EQ(read_available(pipe.reader.get()), "last words");
}

TEST(CharacterConsoleOutput, FlushGivesUpWhenTimeIsUp) {
    const Pipe pipe;
    ConsoleUnderTest console(output_to(pipe.writer.get()));
    console.guest_writes(std::string(200'000, 'x'));
    console.flush(50); // It would never return if it waited for a reader.
    EXPECT_LT(read_available(pipe.reader.get()).size(), 200'000U);
}

TEST(CharacterConsoleOutput, FlushThatGivesUpCountsAllThatIsLeft) {
    const std::size_t written = 200'000;
    const Pipe pipe;
    ConsoleUnderTest console(output_to(pipe.writer.get()));
    console.guest_writes(std::string(written, 'x'));
    console.flush(20);
    const std::string arrived = read_available(pipe.reader.get());
    EXPECT_EQ(arrived.size() + console.lost() + console.dropped(), written);
}

TEST(CharacterConsoleOutput, ThatIsLostSaysWhy) {
    {
        const UniqueFd full(::open("/dev/full", O_WRONLY | O_CLOEXEC));
        ConsoleUnderTest console(output_to(full.get()));
        console.guest_writes("nowhere");
        console.run_loop();
        console.flush(1000);
        EXPECT_EQ(console.lost(), 7U);
        EXPECT_EQ(console.said(), 7U);
        EXPECT_EQ(console.why(), "the disk is full (free some room)");
    }
    {
        const Pipe unread;
        ConsoleUnderTest console(output_to(unread.writer.get()));
        console.guest_writes(std::string(1'000'000, 'x'));
        console.flush(1);
        EXPECT_EQ(console.why(), "nobody read them in time");
        EXPECT_EQ(console.said(), 1'000'000U);
    }
}

TEST(CharacterConsoleOutput, ThatASinkLosesIsCountedAndItsReasonGiven) {
    CharacterConfig config;
    std::string passed_on;
    config.sink = [&](std::span<const std::byte> bytes) { passed_on.append(bytes.size(), 'x'); };
    config.sink_lost = [&] { return LostOutput{passed_on.size() - 1, "the line was cut"}; };
    ConsoleUnderTest console(config);
    console.guest_writes("four");
    console.flush(1000);
    EXPECT_EQ(console.lost(), 3U);
    EXPECT_EQ(console.why(), "the line was cut");
}

TEST(CharacterConsoleOutput, OfASinkThatThrowsStillGoesToTheDescriptor) {
    const Pipe pipe;
    CharacterConfig config = output_to(pipe.writer.get());
    config.sink = [](std::span<const std::byte>) { throw std::out_of_range("the sink's own"); };
    ConsoleUnderTest console(config);
    console.guest_writes(std::string(5000, 'x'));
    EXPECT_THROW(console.flush(1000), std::out_of_range);
    EXPECT_EQ(read_available(pipe.reader.get()).size(), 5000U);
    EXPECT_EQ(console.lost(), 5000U) << "by the sink";
}

TEST(CharacterConsoleOutput, OfAReaderThatIsSlowAndLivingIsFlushedWhole) {
    const std::size_t written = 300'000; // The pipe and the ring hold it; each read restarts the wait.
    const Pipe pipe;
    ConsoleUnderTest console(output_to(pipe.writer.get()));
    console.guest_writes(std::string(written, 'x'));
    const std::size_t kept = written - console.dropped();
    std::string arrived;
    {
        const std::jthread reader([&] {
            while (arrived.size() < kept) {
                arrived += read_available(pipe.reader.get());
                std::this_thread::sleep_for(std::chrono::milliseconds(5));
            }
        });
        console.flush(60'000);
        ASSERT_EQ(console.lost(), 0U);
    }
    EXPECT_EQ(arrived.size(), kept);
}

TEST(CharacterConsoleInput, OfAHundredKilobytesArrivesInOrder) {
    const std::string text = numbered_text(100'000);
    Pipe pipe;
    ConsoleUnderTest console(input_from(pipe.reader.get()));
    console.enable_fifo();
    std::string arrived;
    {
        const std::jthread typist([&] {
            write_text(pipe.writer.get(), text);
            pipe.writer.reset();
        });
        arrived = console.guest_reads_up_to(text.size());
    }
    expect_same(arrived, text);
}

TEST(CharacterConsoleInput, WaitsForAGuestThatDoesNotRead) {
    const std::string text = numbered_text(20'000);
    const Pipe pipe;
    ConsoleUnderTest console(input_from(pipe.reader.get()));
    write_text(pipe.writer.get(), text);
    for (int i = 0; i < 20; ++i) {
        console.run_loop();
    }
    expect_same(console.guest_reads_up_to(text.size()), text);
}

TEST(CharacterConsoleInput, DoesNotSpinWhileTheGuestDoesNotRead) {
    const Pipe pipe;
    ConsoleUnderTest console(input_from(pipe.reader.get()));
    write_text(pipe.writer.get(), numbered_text(20'000));
    for (int i = 0; i < 20; ++i) {
        console.run_loop();
    }
    EXPECT_FALSE(console.has_events());
}

TEST(CharacterConsoleInput, OfARegularFileArrivesWhole) {
    const std::string text = numbered_text(10'000);
    const testing::TemporaryDirectory directory;
    const std::string path = directory.write("input", text);
    const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    ConsoleUnderTest console(input_from(file.get()));
    expect_same(console.guest_reads_up_to(text.size()), text);
}

TEST(CharacterConsoleInput, EndsQuietly) {
    Pipe pipe;
    ConsoleUnderTest console(input_from(pipe.reader.get()));
    write_text(pipe.writer.get(), "bye");
    pipe.writer.reset();
    EXPECT_EQ(console.guest_reads_up_to(3), "bye");
    console.run_loop();
    EXPECT_FALSE(console.has_events()) << "the end of a pipe stays readable: it is no longer watched";
    EXPECT_EQ(console.stops, 0);
}

TEST(CharacterConsoleInput, OfDevNullEndsAtOnce) {
    const UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    ConsoleUnderTest console(input_from(null.get()));
    console.run_loop();
    EXPECT_EQ(console.guest_reads(), "");
}

TEST(CharacterConsoleInput, PassesCtrlAWhereThereAreNoEscapeKeys) {
    const Pipe pipe;
    ConsoleUnderTest console(input_from(pipe.reader.get()));
    write_text(pipe.writer.get(), "\x01x");
    EXPECT_EQ(console.guest_reads_up_to(2), "\x01x");
    EXPECT_EQ(console.stops, 0);
}

TEST(CharacterConsoleKeys, StopAndHelpDoNotReachTheGuest) {
    const Pipe pipe;
    int helps = 0;
    CharacterConfig config = input_from(pipe.reader.get());
    config.escape_keys = true;
    config.show_help = [&helps] { ++helps; };
    ConsoleUnderTest console(config);
    write_text(pipe.writer.get(), "a\x01hb\x01xc");
    EXPECT_EQ(console.guest_reads_up_to(3), "abc");
    EXPECT_EQ(helps, 1);
    EXPECT_EQ(console.stops, 1);
}

TEST(CharacterConsoleKeys, StopIsHeardThoughTheGuestDoesNotRead) {
    const Pipe pipe;
    CharacterConfig config = input_from(pipe.reader.get());
    config.escape_keys = true;
    ConsoleUnderTest console(config);
    write_text(pipe.writer.get(), std::string(20'000, 'x') + "\x01x");
    testing::eventually([&] {
        console.run_loop();
        return console.stops != 0;
    });
    EXPECT_EQ(console.stops, 1);
}

TEST(CharacterConsoleKeys, HelpWithoutAFunctionDoesNothing) {
    const Pipe pipe;
    CharacterConfig config = input_from(pipe.reader.get());
    config.escape_keys = true;
    ConsoleUnderTest console(config);
    write_text(pipe.writer.get(), "\x01hx");
    EXPECT_EQ(console.guest_reads_up_to(1), "x");
}

TEST(CharacterConsoleSocket, MayBeInputAndOutputByOneDescriptor) {
    const testing::SocketPair sockets;
    CharacterConfig config = input_from(sockets.ours.get());
    config.output_fd = sockets.ours.get();
    ConsoleUnderTest console(config);
    EXPECT_NO_THROW({
        for (int i = 0; i < 100; ++i) {
            console.guest_writes(std::string(10'000, 'x')); // more than the socket takes
            console.run_loop();
        }
    });
    write_text(sockets.theirs.get(), "hello");
    EXPECT_EQ(console.guest_reads_up_to(5), "hello");
    EXPECT_FALSE(read_available(sockets.theirs.get()).empty());
}

} // namespace
} // namespace vmm
