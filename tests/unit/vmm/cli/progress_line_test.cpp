#include "vmm/cli/progress_line.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvm/host/guest_address.hpp"
#include "kvm/host/unique_fd.hpp"
#include "support/host_errors.hpp"
#include "support/host_pipe.hpp"
#include "support/host_waiting.hpp"

namespace vmm {
namespace {

using prefault::Progress;
using prefault::Stage;
using testing::mentions;

constexpr Progress kQuarter{Stage::kHost, 16 * kGiB, 64 * kGiB, 4.0};
constexpr Progress kWhole{Stage::kHost, 64 * kGiB, 64 * kGiB, 16.0};

TEST(ProgressText, SaysHowMuchHowFastAndHowLongStill) {
    EXPECT_EQ(describe_progress(kQuarter), "host memory 16.0 of 64.0 GiB, 4.0 GiB/s, 12 s left");
}

TEST(ProgressText, OfWhatIsDoneHasNoTimeLeft) {
    EXPECT_EQ(describe_progress(kWhole), "host memory 64.0 of 64.0 GiB, 4.0 GiB/s");
}

TEST(ProgressText, LeavesOutWhatIsNotKnownYet) {
    EXPECT_EQ(describe_progress({Stage::kSecondLevel, 0, 64 * kGiB, 3.0}), "second level 0.0 of 64.0 GiB");
    EXPECT_EQ(describe_progress({Stage::kPin, kGiB, 2 * kGiB, 0.0}), "pin 1.0 of 2.0 GiB");
}

TEST(ProgressText, OfASmallGuestHasUnitsThatFit) {
    EXPECT_EQ(describe_progress({Stage::kHost, 16 * kMiB, 64 * kMiB, 0.5}),
              "host memory 16.0 of 64.0 MiB, 32.0 MiB/s, 2 s left");
    EXPECT_EQ(describe_progress({Stage::kHost, 512 * kMiB, 512 * kMiB, 0.25}),
              "host memory 512.0 of 512.0 MiB, 2.0 GiB/s");
    EXPECT_EQ(describe_progress({Stage::kSecondLevel, 128 * kMiB, 4 * kGiB, 64.0}),
              "second level 0.1 of 4.0 GiB, 2.0 MiB/s, 1984 s left");
    EXPECT_EQ(describe_progress({Stage::kHost, 4 * kKiB, 512 * kKiB, 4.0}),
              "host memory 4.0 of 512.0 KiB, 1.0 KiB/s, 508 s left");
}

TEST(ProgressText, OfNothingIsWhole) {
    EXPECT_EQ(describe_progress({Stage::kSmm, 0, 0, 0.0}), "second level of SMM 0.0 of 0.0 GiB");
}

TEST(ProgressDrawing, HasABarAsFullAsTheWork) {
    EXPECT_EQ(draw_progress(kQuarter, 200),
              "prefault: " + describe_progress(kQuarter) + " [" + std::string(10, '#') + std::string(30, '.') + "]");
    EXPECT_TRUE(draw_progress(kWhole, 200).ends_with("[" + std::string(40, '#') + "]"));
    EXPECT_TRUE(draw_progress({Stage::kHost, 0, kGiB, 0}, 200).ends_with("[" + std::string(40, '.') + "]"));
}

TEST(ProgressDrawing, OfNothingIsFull) {
    EXPECT_TRUE(draw_progress({Stage::kHost, 0, 0, 0}, 200).ends_with("[" + std::string(40, '#') + "]"));
}

TEST(ProgressDrawing, OfMoreThanAllIsFull) {
    EXPECT_TRUE(draw_progress({Stage::kHost, 2 * kGiB, kGiB, 1}, 200).ends_with("[" + std::string(40, '#') + "]"));
}

TEST(ProgressDrawing, FitsEveryWidth) {
    for (unsigned columns = 0; columns < 200; ++columns) {
        EXPECT_LE(draw_progress(kQuarter, columns).size(), columns);
    }
}

TEST(ProgressDrawing, LeavesOutABarThatWouldBeTooShort) {
    const std::string text = "prefault: " + describe_progress(kQuarter);
    const auto width = static_cast<unsigned>(text.size());
    EXPECT_EQ(draw_progress(kQuarter, width), text);
    EXPECT_EQ(draw_progress(kQuarter, width + 7), text);
    EXPECT_EQ(draw_progress(kQuarter, width + 8), text + " [#....]");
}

/// A terminal, and what appears on it.
class Terminal {
  public:
    explicit Terminal(unsigned short columns = 80) : screen_(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC)) {
        if (!screen_ || ::grantpt(screen_.get()) != 0 || ::unlockpt(screen_.get()) != 0) {
            throw std::runtime_error("cannot make a terminal");
        }
        char name[64];
        if (::ptsname_r(screen_.get(), name, sizeof name) != 0) {
            throw std::runtime_error("cannot find the terminal");
        }
        line_.reset(::open(name, O_RDWR | O_NOCTTY | O_CLOEXEC));
        const winsize size{24, columns, 0, 0};
        ::ioctl(line_.get(), TIOCSWINSZ, &size);
    }

    [[nodiscard]] int fd() const { return line_.get(); }
    /// The text that appears: as much of it as `expected` has, or more.
    [[nodiscard]] std::string read(std::string_view expected) const {
        std::string text;
        testing::eventually([&] {
            text += testing::read_available(screen_.get());
            return text.size() >= expected.size();
        });
        return text;
    }

  private:
    UniqueFd screen_;
    UniqueFd line_;
};

void expect_shown(const Terminal& terminal, const std::string& expected) {
    EXPECT_EQ(terminal.read(expected), expected);
}

constexpr std::chrono::milliseconds kAtOnce{0};

TEST(ProgressBar, DrawsNothingAtFirstAndLeavesNothing) {
    const Terminal terminal;
    {
        ProgressBar bar(terminal.fd(), std::chrono::hours(1));
        bar.show(kQuarter);
        bar.show(kWhole);
    }
    testing::write_text(terminal.fd(), "what comes next");
    expect_shown(terminal, "what comes next");
}

TEST(ProgressBar, DrawsOverTheSameLineAndClearsItInTheEnd) {
    const Terminal terminal(60);
    {
        ProgressBar bar(terminal.fd(), kAtOnce);
        bar.show(kQuarter);
        expect_shown(terminal, "\r" + draw_progress(kQuarter, 59) + "\x1b[K"); // the last column stays free
        bar.show(kWhole);
        expect_shown(terminal, "\r" + draw_progress(kWhole, 59) + "\x1b[K");
    }
    expect_shown(terminal, "\r\x1b[K");
}

TEST(ProgressBar, TakesATerminalWithoutASizeForAUsualOne) {
    const Terminal terminal(0);
    ProgressBar bar(terminal.fd(), kAtOnce);
    bar.show(kQuarter);
    expect_shown(terminal, "\r" + draw_progress(kQuarter, 79) + "\x1b[K");
}

TEST(ProgressBar, BearsATerminalThatHasGone) {
    ProgressBar bar(-1, kAtOnce);
    EXPECT_NO_THROW(bar.show(kQuarter));
}

using Lines = std::vector<std::string>;

/// The lines of the log for the reports to an observer.
Lines lines_of(const std::vector<Progress>& told) {
    Lines lines;
    ProgressLog log([&lines](LogLevel level, std::string_view text) {
        EXPECT_EQ(level, LogLevel::kInfo);
        lines.emplace_back(text);
    });
    for (const Progress& progress : told) {
        log.show(progress);
    }
    return lines;
}

std::string line_of(const Progress& progress) {
    return "prefault: " + describe_progress(progress);
}

TEST(ProgressLog, HasALineForEachStageThatEnds) {
    const Progress host{Stage::kHost, kGiB, kGiB, 0.5};
    const Progress second_level{Stage::kSecondLevel, kGiB, kGiB, 0.7};
    EXPECT_EQ(lines_of({{Stage::kHost, 0, kGiB, 0.1}, host, {Stage::kSecondLevel, 0, kGiB, 0.1}, second_level}),
              (Lines{line_of(host), line_of(second_level)}));
}

TEST(ProgressLog, HasALineEveryFiveSecondsWithinALongStage) {
    std::vector<Progress> told;
    for (std::uint64_t i = 0; i < 120; ++i) { // twelve seconds
        told.push_back({Stage::kHost, i * kMiB, kGiB, static_cast<double>(i) / 10});
    }
    EXPECT_EQ(lines_of(told), (Lines{line_of(told[50]), line_of(told[100])}));
}

TEST(ProgressLog, BeginsEachStageAnew) {
    const Progress late{Stage::kHost, kMiB, kGiB, 60.0};
    const Progress next{Stage::kSecondLevel, kMiB, kGiB, 5.0};
    EXPECT_EQ(lines_of({late, {Stage::kSecondLevel, 0, kGiB, 0.1}, next}), (Lines{line_of(late), line_of(next)}));
}

TEST(ProgressLog, HasOneLineForTheEndOfAStageHoweverOftenItIsTold) {
    const Progress done{Stage::kHost, kGiB, kGiB, 0.5};
    EXPECT_EQ(lines_of({done, {Stage::kHost, kGiB, kGiB, 0.6}}), Lines{line_of(done)});
}

TEST(ProgressLog, BeginsASecondRunOfTheSameStageAnew) {
    const Progress first{Stage::kHost, kGiB, kGiB, 60.0};
    const Progress second{Stage::kHost, kMiB, kGiB, 5.0};
    EXPECT_EQ(lines_of({first, {Stage::kHost, 0, kGiB, 0.1}, second}), (Lines{line_of(first), line_of(second)}));
}

} // namespace
} // namespace vmm
