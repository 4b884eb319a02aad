// Writing to a reader who does not read.

#include "vmm/cli/queued_output.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "kvm/host/event_fd.hpp"
#include "kvm/host/unique_fd.hpp"
#include "support/host_errors.hpp"
#include "support/host_pipe.hpp"
#include "support/host_temporary_directory.hpp"

namespace vmm {
namespace {

using std::chrono::milliseconds;
using testing::mentions;
using testing::Pipe;
using testing::read_available;

/// Long enough for any machine. Nothing that ends waits so long.
constexpr WritePatience kPatient{milliseconds(60'000), -1, {}};
constexpr WritePatience kImpatient{milliseconds(1), -1, {}};

std::string gap_text(std::uint64_t texts) {
    return "[" + std::to_string(texts) + " dropped]";
}

/// The sum of all these numbers in `text`.
std::uint64_t said_to_be_dropped(std::string_view text) {
    std::uint64_t sum = 0;
    for (std::size_t end = 0; (end = text.find(" dropped]", end)) != std::string_view::npos; ++end) {
        sum += std::stoull(std::string(text.substr(text.rfind('[', end) + 1)));
    }
    return sum;
}

std::shared_ptr<OutputTarget> to(const UniqueFd& fd) {
    return std::make_shared<DescriptorTarget>(fd.get());
}

/// Storage that does not answer until it is released.
class StuckTarget final : public OutputTarget {
  public:
    NonblockingOutput::Result write(std::span<const std::byte> bytes) override {
        std::unique_lock hold(lock_);
        entered_ = true;
        changed_.notify_all();
        changed_.wait(hold, [this] { return free_; });
        return {NonblockingOutput::Status::kWritten, bytes.size()};
    }
    [[nodiscard]] int fd() const noexcept override { return -1; }
    [[nodiscard]] bool may_wait() const noexcept override { return true; }
    void wait_until_entered() {
        std::unique_lock hold(lock_);
        changed_.wait(hold, [this] { return entered_; });
    }
    void let_go() {
        const std::lock_guard hold(lock_);
        free_ = true;
        changed_.notify_all();
    }

  private:
    std::mutex lock_;
    std::condition_variable changed_;
    bool entered_ = false;
    bool free_ = false;
};

TEST(QueuedOutput, IsWrittenAtOnceWhereThereIsRoom) {
    const Pipe pipe;
    QueuedOutput output(to(pipe.writer), {});
    output.write("now");
    EXPECT_EQ(read_available(pipe.reader.get()), "now") << "without a thread in between, so the order is kept";
    EXPECT_TRUE(output.finish(kImpatient));
}

TEST(QueuedOutput, OnAPipeThatNobodyReadsHoldsNobodyUp) {
    const Pipe pipe;
    QueuedOutput output(to(pipe.writer), {.capacity_bytes = 100'000, .gap = gap_text});
    const std::string line = std::string(99, 'x') + "\n";
    for (int i = 0; i < 5000; ++i) {
        output.write(line); // It would never return if it waited.
    }
    EXPECT_GT(output.lost().texts, 0U);
    EXPECT_FALSE(output.finish(kImpatient));
    const std::string read = read_available(pipe.reader.get());
    const auto arrived = std::count_if(read.begin(), read.end(), [](char c) { return c == 'x' || c == '\n'; });
    EXPECT_EQ(static_cast<std::uint64_t>(arrived) + output.lost().bytes, 500'000U) << "beside what stands for the gap";
    output.write("still bearable");
}

TEST(QueuedOutput, SaysWhereAndHowMuchWasDropped) {
    const Pipe pipe;
    QueuedOutput output(to(pipe.writer), {.capacity_bytes = 1000, .gap = gap_text});
    const std::string line(1000, 'x');
    for (int i = 0; i < 200; ++i) {
        output.write(line);
    }
    output.write("the end");
    const auto dropped = output.lost().texts;
    ASSERT_GT(dropped, 0U);
    std::string arrived;
    std::thread reader([&] {
        while (!arrived.ends_with("the end")) {
            arrived += read_available(pipe.reader.get(), 10);
        }
    });
    EXPECT_TRUE(output.finish(kPatient));
    reader.join();
    // More text may be dropped while the message about dropped text is written.
    EXPECT_EQ(said_to_be_dropped(arrived), dropped);
}

TEST(QueuedOutput, OfASlowReaderArrivesWholeAndInOrder) {
    const Pipe pipe;
    ASSERT_GT(::fcntl(pipe.writer.get(), F_SETPIPE_SZ, 4096), 0);
    std::string said;
    QueuedOutput output(to(pipe.writer), {.capacity_bytes = 1'000'000});
    for (int i = 0; i < 3000; ++i) {
        const std::string line = std::to_string(i) + "\n";
        output.write(line);
        said += line;
    }
    std::string arrived;
    std::thread reader([&] {
        while (arrived.size() < said.size()) {
            std::string piece(512, '\0');
            const ssize_t count = ::read(pipe.reader.get(), piece.data(), piece.size());
            arrived.append(piece, 0, count > 0 ? static_cast<std::size_t>(count) : 0);
            std::this_thread::sleep_for(milliseconds(1));
        }
    });
    EXPECT_TRUE(output.finish(kPatient));
    reader.join();
    EXPECT_EQ(arrived, said);
    EXPECT_EQ(output.lost().bytes, 0U);
}

TEST(QueuedOutput, OfSeveralThreadsArrivesWhole) {
    const Pipe pipe;
    QueuedOutput output(to(pipe.writer), {.capacity_bytes = 10'000'000});
    constexpr int kThreads = 4;
    constexpr int kLines = 5000;
    std::atomic<std::size_t> arrived = 0;
    std::thread reader([&] {
        while (arrived < kThreads * kLines * 10) {
            arrived += read_available(pipe.reader.get(), 10).size();
        }
    });
    {
        std::vector<std::jthread> writers;
        for (int i = 0; i < kThreads; ++i) {
            writers.emplace_back([&] {
                for (int line = 0; line < kLines; ++line) {
                    output.write("123456789\n");
                }
            });
        }
    }
    EXPECT_TRUE(output.finish(kPatient));
    reader.join();
    EXPECT_EQ(output.lost().bytes, 0U);
}

TEST(QueuedOutput, GivesAnEndWithoutPatienceToWhoeverIsInAHurry) {
    const Pipe pipe;
    QueuedOutput output(to(pipe.writer), {});
    output.write(std::string(200'000, 'x'));
    const EventFd hurry;
    hurry.signal();
    EXPECT_FALSE(output.finish({std::chrono::hours(1), hurry.fd(), milliseconds(1)}));
}

TEST(QueuedOutput, ToStorageThatDoesNotAnswerHoldsNobodyUpNorTheEnd) {
    const auto stuck = std::make_shared<StuckTarget>();
    {
        QueuedOutput output(stuck, {.capacity_bytes = 100});
        output.write("first");
        stuck->wait_until_entered();
        for (int i = 0; i < 1000; ++i) {
            output.write("more");
        }
        EXPECT_FALSE(output.finish(kImpatient));
    }
    stuck->let_go(); // The abandoned thread ends by itself.
}

TEST(QueuedOutput, OfAStreamKeepsItsBeginning) {
    const auto stuck = std::make_shared<StuckTarget>();
    QueuedOutput output(stuck, {.capacity_bytes = 100, .overrun = QueuedOutput::Overrun::kDropNewest});
    output.write("first");
    stuck->wait_until_entered();
    output.write(std::string(150, 'x'));
    EXPECT_EQ(output.lost().bytes, 50U);
    stuck->let_go();
    EXPECT_TRUE(output.finish(kPatient));
    EXPECT_EQ(output.lost().bytes, 50U);
}

TEST(QueuedOutput, ThatIsRefusedIsCountedAndToldOnce) {
    const UniqueFd full(::open("/dev/full", O_WRONLY | O_CLOEXEC));
    int told = 0;
    QueuedOutput output(to(full), {.refused = [&](int error_number) {
                            EXPECT_EQ(error_number, ENOSPC);
                            ++told;
                        }});
    output.write("one");
    output.write("two");
    EXPECT_TRUE(output.finish(kPatient));
    EXPECT_EQ(told, 1);
    EXPECT_EQ(output.lost().bytes, 6U);
    EXPECT_EQ(output.lost().error_number, ENOSPC);
}

TEST(QueuedOutput, LeavesOutAPictureWhileSomethingWaits) {
    const Pipe pipe;
    QueuedOutput output(to(pipe.writer), {});
    output.write_if_idle("bar");
    EXPECT_EQ(read_available(pipe.reader.get()), "bar");
    output.write(std::string(100'000, 'x'));
    output.write_if_idle("bar");
    std::string arrived;
    std::thread reader([&] {
        while (arrived.size() < 100'000) {
            arrived += read_available(pipe.reader.get(), 10);
        }
    });
    EXPECT_TRUE(output.finish(kPatient));
    reader.join();
    EXPECT_FALSE(mentions(arrived, "bar"));
}

TEST(QueuedOutput, ToAFileIsAllThereAtTheEnd) {
    const testing::TemporaryDirectory directory;
    const std::string path = directory.write("out", "");
    const UniqueFd file(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
    QueuedOutput output(to(file), {});
    for (int i = 0; i < 1000; ++i) {
        output.write("line\n");
    }
    EXPECT_TRUE(output.finish(kPatient));
    EXPECT_EQ(testing::content_of(path).size(), 5000U);
}

TEST(PatientWrite, GivesUpOnAReaderWhoTakesNothingAndSaysSo) {
    const Pipe pipe;
    const Written written =
        write_patiently(NonblockingOutput(pipe.writer.get()), std::string(200'000, 'x'), kImpatient);
    EXPECT_EQ(written.error_number, ETIMEDOUT);
    EXPECT_EQ(written.bytes, read_available(pipe.reader.get()).size());
    EXPECT_TRUE(mentions(describe_failure(written, kImpatient), "nobody read it"));
}

TEST(PatientWrite, WaitsForAReaderWhoIsSlow) {
    const Pipe pipe;
    std::size_t arrived = 0;
    std::thread reader([&] {
        while (arrived < 300'000) {
            std::this_thread::sleep_for(milliseconds(1));
            arrived += read_available(pipe.reader.get()).size();
        }
    });
    const Written written = write_patiently(NonblockingOutput(pipe.writer.get()), std::string(300'000, 'x'), kPatient);
    reader.join();
    EXPECT_EQ(written.error_number, 0);
}

} // namespace
} // namespace vmm
