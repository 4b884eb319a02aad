// PageSender with PageReceiver, with real memory.

#include <gtest/gtest.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <future>
#include <mutex>
#include <optional>
#include <random>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kvm/host/event_fd.hpp"
#include "kvm/host/stoppable_read.hpp"
#include "support/host_errors.hpp"
#include "support/host_waiting.hpp"
#include "support/vmm_migration_ends.hpp"
#include "support/vmm_migration_link.hpp"
#include "vmm/migration/page_receiver.hpp"
#include "vmm/migration/page_sender.hpp"

namespace vmm {
namespace {

PageBits all_pages(std::span<const MemoryRegion> regions) {
    std::vector<GuestRange> ranges;
    for (const MemoryRegion& region : regions) {
        ranges.push_back(region.range);
    }
    return pages_of(regions, ranges);
}

using testing::ChannelEnds;
using testing::error_of;
using testing::eventually;
using testing::frame_of;
using testing::kPatience;
using testing::mentions;

constexpr std::uint64_t kSentPage = WriteLog::kPageBytes;

/// The ranges are not whole chunks, and have gaps between them.
constexpr std::array kTransferLayout{GuestRange{GuestAddress{0}, 5 * kMiB + 3 * kSentPage},
                                     GuestRange{GuestAddress{16 * kMiB}, 65 * kSentPage},
                                     GuestRange{GuestAddress{4 * kGiB}, 2 * kMiB}};

void fill_at_random(std::span<std::byte> bytes, std::uint64_t seed) {
    static const std::vector<std::byte> kRandom = testing::random_bytes(2 * kMiB); // made once, because it takes long
    for (std::size_t done = 0; done < bytes.size();) {
        const std::size_t from = done == 0 ? seed % 4096 * 8 : 0;
        const std::size_t size = std::min(bytes.size() - done, kRandom.size() - from);
        std::memcpy(bytes.data() + done, kRandom.data() + from, size);
        done += size;
    }
}

std::span<std::byte> page_of(const GuestMemory& memory, std::size_t region, std::uint64_t page) {
    return memory.regions()[region].bytes().subspan(page * kSentPage, kSentPage);
}

bool are_equal(std::span<const std::byte> one, std::span<const std::byte> other) {
    return one.size() == other.size() && std::memcmp(one.data(), other.data(), one.size()) == 0;
}

/// Pages that are zero, pages that repeat one byte, and random pages, in runs of some length.
void fill_as_guests_do(const GuestMemory& memory, unsigned seed) {
    std::mt19937 generator(seed);
    for (std::size_t region = 0; region < memory.regions().size(); ++region) {
        const std::uint64_t pages = memory.regions()[region].range.size / kSentPage;
        for (std::uint64_t page = 0; page < pages;) {
            const std::uint64_t end = std::min<std::uint64_t>(pages, page + 1 + generator() % 100);
            const std::uint64_t kind = generator() % 3;
            for (; page < end; ++page) {
                const std::span<std::byte> bytes = page_of(memory, region, page);
                std::memset(bytes.data(), kind == 1 ? 0x55 : 0, bytes.size());
                if (kind == 2) {
                    fill_at_random(bytes, generator());
                }
            }
        }
    }
}

/// The first page that differs, as a message; "" if there is none.
std::string difference(const GuestMemory& one, const GuestMemory& other) {
    for (std::size_t region = 0; region < one.regions().size(); ++region) {
        if (are_equal(one.regions()[region].bytes(), other.regions()[region].bytes())) {
            continue;
        }
        for (std::uint64_t page = 0; page < one.regions()[region].range.size / kSentPage; ++page) {
            if (!are_equal(page_of(one, region, page), page_of(other, region, page))) {
                return "page " + std::to_string(page) + " of region " + std::to_string(region);
            }
        }
    }
    return {};
}

/// The events of a receiver.
class Told {
  public:
    PageReceiver::Callbacks callbacks() {
        return {.synced =
                    [this](std::uint64_t round) {
                        const std::lock_guard hold(lock_);
                        rounds_.push_back(round);
                    },
                .failed =
                    [this](std::exception_ptr why) {
                        const std::lock_guard hold(lock_);
                        try {
                            std::rethrow_exception(std::move(why));
                        } catch (const LinkError& error) {
                            ++cuts_;
                        } catch (const Error& error) {
                            failures_.emplace_back(error.what());
                        }
                    }};
    }
    std::vector<std::uint64_t> rounds() const {
        const std::lock_guard hold(lock_);
        return rounds_;
    }
    bool has_synced(std::uint64_t round) const {
        return eventually([&] { return !rounds().empty() && rounds().back() == round; });
    }
    /// Waits until so many streams have ended because of the link.
    bool has_cuts(unsigned count) const {
        return eventually([&] {
            const std::lock_guard hold(lock_);
            return cuts_ == count;
        });
    }
    /// Waits for the first failure that was not caused by the link.
    std::string failure() const {
        std::string text;
        static_cast<void>(eventually([&] {
            const std::lock_guard hold(lock_);
            text = failures_.empty() ? "" : failures_.front();
            return !failures_.empty();
        }));
        return text;
    }

  private:
    mutable std::mutex lock_;
    std::vector<std::uint64_t> rounds_;
    unsigned cuts_ = 0;
    std::vector<std::string> failures_;
};

/// A sender and a receiver with as many streams as said.
class Transfer {
  public:
    explicit Transfer(unsigned streams = 1, PageSender::Settings settings = {}, int stop_fd = -1)
        : streams_(streams), stop_fd_(stop_fd), sender(source, std::move(settings)),
          receiver(destination, streams, told.callbacks()) {
        connect();
    }

    void connect() {
        std::vector<std::unique_ptr<Channel>> channels;
        for (unsigned i = 0; i < streams_; ++i) {
            ChannelEnds ends(kPatience, stop_fd_);
            channels.push_back(std::move(ends.source));
            receiver.add(i, std::move(ends.destination));
        }
        sender.use(std::move(channels));
    }

    /// Sends `pages` and waits until they have arrived.
    bool send(const PageBits& pages, std::uint64_t round) {
        if (!sender.send(pages, round, {}) || !told.has_synced(round)) {
            return false;
        }
        sender.note_synced();
        return true;
    }
    [[nodiscard]] PageBits everything() const { return all_pages(source.regions()); }
    [[nodiscard]] PageBits nothing() const { return no_pages(source.regions()); }

  private:
    unsigned streams_;
    int stop_fd_;

  public:
    GuestMemory source{kTransferLayout, PageSize::k4K};
    GuestMemory destination{kTransferLayout, PageSize::k4K};
    Told told;
    PageSender sender;
    PageReceiver receiver;
};

struct TransferCase {
    unsigned streams;
    Compression compression;
};

class MigrationPages : public ::testing::TestWithParam<TransferCase> {
  protected:
    MigrationPages() : transfer_(GetParam().streams, {.compression = GetParam().compression}) {}

    Transfer transfer_;
};

TEST_P(MigrationPages, AreTheSameThere) {
    fill_as_guests_do(transfer_.source, 1);
    ASSERT_TRUE(transfer_.send(transfer_.everything(), 1));
    EXPECT_EQ(difference(transfer_.source, transfer_.destination), "");
}

TEST_P(MigrationPages, WhatHasChangedIsSentInLaterRounds) {
    fill_as_guests_do(transfer_.source, 1);
    ASSERT_TRUE(transfer_.send(transfer_.everything(), 1));
    for (unsigned round = 2; round < 5; ++round) {
        fill_as_guests_do(transfer_.source, round);
        ASSERT_TRUE(transfer_.send(transfer_.everything(), round));
        EXPECT_EQ(difference(transfer_.source, transfer_.destination), "") << round;
    }
    EXPECT_EQ(transfer_.told.rounds(), (std::vector<std::uint64_t>{1, 2, 3, 4}));
}

TEST_P(MigrationPages, ZeroIsNotSentToMemoryThatIsZero) {
    ASSERT_TRUE(transfer_.send(transfer_.everything(), 1));
    EXPECT_EQ(transfer_.sender.sent_bytes(), GetParam().streams * sizeof(FrameHeader)); // the ends of the round
    transfer_.receiver.cut();
    EXPECT_EQ(transfer_.receiver.applied_frames(), std::vector<std::uint64_t>(GetParam().streams));
}

TEST_P(MigrationPages, PagesThatBecomeZeroAreSentAsZero) {
    fill_at_random(page_of(transfer_.source, 0, 7), 1);
    fill_at_random(page_of(transfer_.source, 2, 0), 2);
    ASSERT_TRUE(transfer_.send(transfer_.everything(), 1));
    std::ranges::fill(page_of(transfer_.source, 0, 7), std::byte{0});
    std::ranges::fill(page_of(transfer_.source, 2, 0), std::byte{0});
    const std::uint64_t before = transfer_.sender.sent_bytes();
    PageBits pages = transfer_.nothing();
    set_pages(pages[0], 7, 1, true);
    set_pages(pages[2], 0, 1, true);
    ASSERT_TRUE(transfer_.send(pages, 2));
    EXPECT_EQ(difference(transfer_.source, transfer_.destination), "");
    EXPECT_EQ(transfer_.sender.sent_bytes() - before, (2 + GetParam().streams) * sizeof(FrameHeader));
}

TEST_P(MigrationPages, OnlyWhatIsAskedForIsSent) {
    fill_as_guests_do(transfer_.source, 3);
    std::mt19937 generator(4);
    PageBits pages = transfer_.nothing();
    for (std::size_t region = 0; region < pages.size(); ++region) {
        for (std::uint64_t page = 0; page < transfer_.source.regions()[region].range.size / kSentPage; ++page) {
            set_pages(pages[region], page, 1, generator() % 3 == 0);
        }
    }
    ASSERT_TRUE(transfer_.send(pages, 1));
    for (std::size_t region = 0; region < pages.size(); ++region) {
        for (std::uint64_t page = 0; page < transfer_.source.regions()[region].range.size / kSentPage; ++page) {
            const auto there = page_of(transfer_.destination, region, page);
            if (is_set(pages[region], page)) {
                ASSERT_TRUE(are_equal(page_of(transfer_.source, region, page), there));
            } else {
                ASSERT_TRUE(is_zero(there));
            }
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Of, MigrationPages,
                         ::testing::Values(TransferCase{1, Compression::kNone}, TransferCase{2, Compression::kNone},
                                           TransferCase{4, Compression::kNone}, TransferCase{1, Compression::kZstd},
                                           TransferCase{2, Compression::kZstd}, TransferCase{4, Compression::kAuto}),
                         [](const auto& param) {
                             return std::string(to_string(param.param.compression)) +
                                    std::to_string(param.param.streams);
                         });

TEST(MigrationPageSender, ARunOfPagesIsSentInFramesOf64) {
    Transfer transfer;
    for (const auto& [region, count] : {std::pair{0U, 130U}, std::pair{1U, 64U}, std::pair{2U, 1U}}) {
        for (std::uint64_t page = 0; page < count; ++page) {
            fill_at_random(page_of(transfer.source, region, page), 1);
        }
    }
    ASSERT_TRUE(transfer.send(transfer.everything(), 1));
    transfer.receiver.cut();
    EXPECT_EQ(transfer.receiver.applied_frames(), std::vector<std::uint64_t>{3 + 1 + 1});
    const std::uint64_t sent = 5 * sizeof(FrameHeader) + (130 + 64 + 1) * kSentPage;
    EXPECT_EQ(transfer.sender.sent_bytes(), sent + sizeof(FrameHeader));
    EXPECT_EQ(transfer.receiver.received_bytes(), sent);
}

TEST(MigrationPageSender, CompressionSendsLessOfWhatRepeatsAndNoMoreOfWhatDoesNot) {
    for (const Compression compression : {Compression::kZstd, Compression::kAuto}) {
        for (const bool repeats : {true, false}) {
            Transfer transfer(1, {.compression = compression});
            for (const MemoryRegion& region : transfer.source.regions()) {
                if (repeats) {
                    std::ranges::fill(region.bytes(), std::byte{0x55});
                } else {
                    fill_at_random(region.bytes(), 5);
                }
            }
            ASSERT_TRUE(transfer.send(transfer.everything(), 1));
            EXPECT_EQ(difference(transfer.source, transfer.destination), "");
            transfer.receiver.cut();
            EXPECT_EQ(transfer.sender.content_bytes(), transfer.source.size_bytes());
            const std::uint64_t headers = (transfer.receiver.applied_frames().front() + 1) * sizeof(FrameHeader);
            if (repeats) {
                EXPECT_LT(transfer.sender.sent_bytes(), transfer.source.size_bytes());
            } else {
                EXPECT_EQ(transfer.sender.sent_bytes(), transfer.source.size_bytes() + headers);
            }
        }
    }
}

TEST(MigrationPageSender, ProgressNeverPassesTheEnd) {
    std::mutex lock;
    std::vector<std::pair<std::uint64_t, std::uint64_t>> told;
    Transfer transfer(2, {.progress = [&](std::uint64_t done, std::uint64_t total) {
                          const std::lock_guard hold(lock);
                          told.emplace_back(done, total);
                      }});
    fill_as_guests_do(transfer.source, 6);
    ASSERT_TRUE(transfer.send(transfer.everything(), 1));
    ASSERT_FALSE(told.empty());
    for (const auto& [done, total] : told) {
        EXPECT_EQ(total, transfer.source.size_bytes());
        EXPECT_LE(done, total);
    }
}

TEST(MigrationPageSender, APaceHoldsItUntilAStopIsRequested) {
    // At one byte a second the second frame would take more than an hour.
    for (const bool is_little : {true, false}) {
        Transfer transfer(1, {.bytes_per_second = 1});
        fill_at_random(transfer.source.regions()[0].bytes(), 7);
        PageBits pages = transfer.nothing();
        set_pages(pages[0], 0, is_little ? 100 : 1000, true);
        std::stop_source stop;
        auto sent = std::async(std::launch::async, [&] { return transfer.sender.send(pages, 1, stop.get_token()); });
        EXPECT_TRUE(eventually([&] { return transfer.receiver.received_bytes() != 0; }));
        stop.request_stop();
        EXPECT_FALSE(sent.get());
        EXPECT_EQ(transfer.receiver.received_bytes(), sizeof(FrameHeader) + kMostFrameBytes);
        EXPECT_TRUE(transfer.told.rounds().empty());
        // Pages that have not been sent are sent later; the others are not sent again.
        transfer.receiver.cut();
        const PageBits left = transfer.sender.missing(pages, transfer.receiver.applied_frames());
        EXPECT_EQ(bytes_of(left), bytes_of(pages) - kMostFrameBytes);
        EXPECT_FALSE(is_set(left[0], 63));
        EXPECT_TRUE(is_set(left[0], 64));
    }
}

TEST(MigrationPageSender, AStopBeforeItBeginsSendsNothing) {
    Transfer transfer(2);
    fill_as_guests_do(transfer.source, 8);
    std::stop_source stop;
    stop.request_stop();
    EXPECT_FALSE(transfer.sender.send(transfer.everything(), 1, stop.get_token()));
    EXPECT_EQ(transfer.sender.sent_bytes(), 0U);
}

TEST(MigrationPageSender, AStopEndsItWhileNobodyReceives) {
    // More bytes than the send buffers of all channels hold.
    const GuestMemory memory(std::array{GuestRange{GuestAddress{0}, 32 * kMiB}}, PageSize::k4K);
    fill_at_random(memory.regions()[0].bytes(), 9);
    const EventFd stop;
    PageSender sender(memory, {});
    std::vector<std::unique_ptr<Channel>> channels;
    std::vector<std::unique_ptr<Channel>> silent;
    for (int i = 0; i < 3; ++i) {
        ChannelEnds ends(kPatience, stop.fd());
        channels.push_back(std::move(ends.source));
        silent.push_back(std::move(ends.destination));
    }
    sender.use(std::move(channels));
    auto sent = std::async(std::launch::async, [&] { return sender.send(all_pages(memory.regions()), 1, {}); });
    EXPECT_TRUE(silent.front()->wait_readable(kPatience));
    stop.signal();
    EXPECT_THROW(sent.get(), StoppedError);
}

TEST(MigrationPageSender, AStreamThatIsCutEndsTheWaitsOfTheOthers) {
    const GuestMemory memory(std::array{GuestRange{GuestAddress{0}, 64 * kMiB}}, PageSize::k4K);
    fill_at_random(memory.regions()[0].bytes(), 9);
    for (const std::size_t cut : {std::size_t{0}, std::size_t{2}}) {
        PageSender sender(memory, {});
        std::vector<std::unique_ptr<Channel>> channels;
        std::vector<std::unique_ptr<Channel>> silent;
        for (int i = 0; i < 3; ++i) {
            ChannelEnds ends(std::chrono::hours(1));
            channels.push_back(std::move(ends.source));
            silent.push_back(std::move(ends.destination));
        }
        sender.use(std::move(channels));
        auto sent = std::async(std::launch::async, [&] { return sender.send(all_pages(memory.regions()), 1, {}); });
        for (const auto& channel : silent) {
            EXPECT_TRUE(channel->wait_readable(kPatience));
        }
        silent[cut].reset();
        EXPECT_THROW(sent.get(), LinkError);
    }
}

/// Stands between a sender and a receiver, and cuts the way after so many bytes.
class CutAfter {
  public:
    CutAfter(std::unique_ptr<Channel> from, std::unique_ptr<Channel> to, std::size_t bytes)
        : from_(std::move(from)), to_(std::move(to)), left_(bytes), thread_([this] { pass_on(); }) {}
    ~CutAfter() { thread_.join(); }
    CutAfter(const CutAfter&) = delete;
    CutAfter& operator=(const CutAfter&) = delete;

    /// The frames that were passed on completely, without the ends of rounds. To be called after the cut.
    [[nodiscard]] std::vector<GuestRange> frames() {
        thread_.join();
        thread_ = std::thread([] {});
        std::vector<GuestRange> frames;
        FrameHeader header;
        for (std::size_t at = 0; at + sizeof header <= passed_.size();) {
            std::memcpy(&header, passed_.data() + at, sizeof header);
            at += sizeof header + header.payload_bytes;
            if (at <= passed_.size() && header.kind != FrameKind::kSync) {
                frames.push_back(header.range());
            }
        }
        return frames;
    }

  private:
    void pass_on() {
        try {
            std::array<std::byte, 997> buffer{};
            while (left_ != 0) {
                const std::span<std::byte> bytes = std::span(buffer).first(std::min(left_, buffer.size()));
                from_->receive(bytes);
                to_->send(bytes);
                passed_.insert(passed_.end(), bytes.begin(), bytes.end());
                left_ -= bytes.size();
            }
        } catch (const LinkError&) { // one end has closed before
        }
        from_->shut_down();
        to_.reset();
    }

    std::unique_ptr<Channel> from_;
    std::unique_ptr<Channel> to_;
    std::size_t left_;
    std::vector<std::byte> passed_;
    std::thread thread_;
};

TEST(MigrationCut, ExactlyWhatIsMissingIsSentAgain) {
    // Cuts at the beginning, in a header, behind one, in a payload, behind a frame, and somewhere later.
    for (const Compression compression : {Compression::kNone, Compression::kZstd}) {
        for (const std::size_t bytes : {0U, 1U, 31U, 32U, 33U, 4128U, 262'176U, 262'177U, 262'208U, 1'000'003U}) {
            constexpr unsigned kStreams = 2;
            GuestMemory source(kTransferLayout, PageSize::k4K);
            const GuestMemory destination(kTransferLayout, PageSize::k4K);
            Told told;
            PageSender sender(source, {.compression = compression});
            PageReceiver receiver(destination, kStreams, told.callbacks());
            fill_as_guests_do(source, 10);

            std::vector<std::unique_ptr<CutAfter>> ways;
            std::vector<std::unique_ptr<Channel>> channels;
            for (unsigned i = 0; i < kStreams; ++i) {
                ChannelEnds here(kPatience);
                ChannelEnds there(kPatience);
                channels.push_back(std::move(here.source));
                receiver.add(i, std::move(there.destination));
                ways.push_back(
                    std::make_unique<CutAfter>(std::move(here.destination), std::move(there.source), bytes / (i + 1)));
            }
            sender.use(std::move(channels));
            const PageBits pages = all_pages(source.regions());
            try {
                static_cast<void>(sender.send(pages, 1, {}));
            } catch (const LinkError&) { // unless all of it was in flight before the cut
            }
            sender.shut_down();
            ASSERT_TRUE(told.has_cuts(kStreams));
            receiver.cut();

            PageBits wanted = pages;
            std::vector<std::uint64_t> counts;
            for (const auto& way : ways) {
                const std::vector<GuestRange> frames = way->frames();
                counts.push_back(frames.size());
                for (const GuestRange& frame : frames) {
                    for (std::size_t region = 0; region < wanted.size(); ++region) {
                        if (kTransferLayout[region].contains(frame)) {
                            const std::uint64_t offset =
                                to_integer(frame.base) - to_integer(kTransferLayout[region].base);
                            set_pages(wanted[region], offset / kSentPage, frame.size / kSentPage, false);
                        }
                    }
                }
            }
            EXPECT_EQ(receiver.applied_frames(), counts) << bytes;
            const PageBits left = sender.missing(pages, receiver.applied_frames());
            EXPECT_EQ(left, wanted) << bytes;

            channels.clear();
            for (unsigned i = 0; i < kStreams; ++i) {
                ChannelEnds ends(kPatience);
                channels.push_back(std::move(ends.source));
                receiver.add(i, std::move(ends.destination));
            }
            sender.use(std::move(channels));
            ASSERT_TRUE(sender.send(left, 2, {}));
            ASSERT_TRUE(told.has_synced(2));
            EXPECT_EQ(difference(source, destination), "") << bytes;

            // The count continues from there.
            sender.note_synced();
            receiver.cut();
            EXPECT_EQ(sender.missing(pages, receiver.applied_frames()), pages);
        }
    }
}

TEST(MigrationCut, WhatTheDestinationSaysHasToBePossible) {
    Transfer transfer(2);
    fill_as_guests_do(transfer.source, 11);
    ASSERT_TRUE(transfer.send(transfer.everything(), 1));
    fill_as_guests_do(transfer.source, 12);
    ASSERT_TRUE(transfer.sender.send(transfer.everything(), 2, {}));
    ASSERT_TRUE(transfer.told.has_synced(2));
    transfer.receiver.cut();
    const std::vector<std::uint64_t> applied = transfer.receiver.applied_frames();
    const auto refusal = [&](std::vector<std::uint64_t> counts) {
        return error_of([&] { return transfer.sender.missing(transfer.everything(), counts); });
    };
    EXPECT_TRUE(mentions(refusal({}), "speaks of 0 streams of pages, and there are 2"));
    EXPECT_TRUE(mentions(refusal({applied[0], applied[1], 0}), "speaks of 3 streams"));
    EXPECT_TRUE(mentions(refusal({applied[0] + 1, applied[1]}), "never sent"));
    EXPECT_TRUE(mentions(refusal({0, 0}), "never sent"));
    EXPECT_TRUE(mentions(refusal({~std::uint64_t{0}, applied[1]}), "never sent"));
}

/// A receiver of one stream. The test sends the data by hand.
class MigrationPageReceiver : public ::testing::Test {
  protected:
    MigrationPageReceiver() {
        receiver_.emplace(memory_, 2, told_.callbacks());
        receiver_->add(0, std::move(ends_.destination));
    }

    void send(const FrameHeader& header, std::span<const std::byte> payload = {}) {
        ends_.source->send(header.as_bytes());
        if (!payload.empty()) {
            ends_.source->send(payload);
        }
    }
    [[nodiscard]] bool is_memory_zero() const {
        return std::ranges::all_of(memory_.regions(),
                                   [](const MemoryRegion& region) { return is_zero(region.bytes()); });
    }
    static std::vector<std::byte> packed(std::span<const std::byte> bytes) {
        std::vector<std::byte> all(ZSTD_compressBound(bytes.size()));
        all.resize(ZSTD_compress(all.data(), all.size(), bytes.data(), bytes.size(), 1));
        return all;
    }

    GuestMemory memory_{kTransferLayout, PageSize::k4K};
    Told told_;
    ChannelEnds ends_{kPatience};
    std::optional<PageReceiver> receiver_;
};

TEST_F(MigrationPageReceiver, PutsEachKindOfFrameInItsPlace) {
    std::vector<std::byte> bytes(2 * kSentPage);
    fill_at_random(bytes, 1);
    const auto at = [&](std::uint64_t address) { return *memory_.at({GuestAddress{address}, bytes.size()}); };
    std::ranges::fill(at(0), std::byte{1});
    send(frame_of(FrameKind::kZero, 0, 2 * kSentPage));
    send(frame_of(FrameKind::kRaw, 16 * kMiB, 2 * kSentPage, bytes), bytes);
    const std::vector<std::byte> small = packed(std::vector<std::byte>(2 * kSentPage, std::byte{0x55}));
    send(frame_of(FrameKind::kZstd, 4 * kGiB, 2 * kSentPage, small), small);
    EXPECT_TRUE(eventually([&] { return receiver_->applied_frames()[0] == 3; }));
    receiver_->cut();
    EXPECT_TRUE(is_zero(at(0)));
    EXPECT_TRUE(std::ranges::equal(at(16 * kMiB), bytes));
    EXPECT_TRUE(std::ranges::all_of(at(4 * kGiB), [](std::byte byte) { return byte == std::byte{0x55}; }));
}

TEST_F(MigrationPageReceiver, ARoundIsOverWhenAllStreamsSaySo) {
    ChannelEnds other(kPatience);
    receiver_->add(1, std::move(other.destination));
    // No page goes through two streams at once, as it is with a source that keeps to the protocol.
    const auto end_round = [&](Channel& channel, std::uint64_t round) {
        channel.send(frame_of(FrameKind::kSync, round, 0).as_bytes());
        channel.send(frame_of(FrameKind::kZero, &channel == other.source.get() ? 4096 : 0, 4096).as_bytes());
    };
    end_round(*ends_.source, 1);
    EXPECT_TRUE(eventually([&] { return receiver_->applied_frames()[0] == 1; }));
    EXPECT_TRUE(told_.rounds().empty());
    end_round(*other.source, 1);
    EXPECT_TRUE(told_.has_synced(1));
    end_round(*other.source, 2);
    end_round(*other.source, 3);
    end_round(*ends_.source, 3);
    EXPECT_TRUE(told_.has_synced(3));
    EXPECT_EQ(told_.rounds(), (std::vector<std::uint64_t>{1, 3}));
}

TEST_F(MigrationPageReceiver, APayloadThatWasChangedIsNoticed) {
    std::vector<std::byte> bytes(kSentPage, std::byte{1});
    FrameHeader header = frame_of(FrameKind::kRaw, 0, kSentPage, bytes);
    bytes[kSentPage - 1] = std::byte{2};
    send(header, bytes);
    EXPECT_TRUE(mentions(told_.failure(), "were changed on their way"));
    EXPECT_EQ(receiver_->applied_frames()[0], 0U);
}

TEST_F(MigrationPageReceiver, ACompressedPayloadThatWasChangedIsNoticedBeforeItIsUnpacked) {
    std::vector<std::byte> small = packed(std::vector<std::byte>(kSentPage, std::byte{0x55}));
    FrameHeader header = frame_of(FrameKind::kZstd, 0, kSentPage, small);
    small.back() ^= std::byte{1};
    send(header, small);
    EXPECT_TRUE(mentions(told_.failure(), "were changed on their way"));
    EXPECT_TRUE(is_memory_zero());
}

TEST_F(MigrationPageReceiver, AHeaderThatWasChangedIsNoticed) {
    FrameHeader header = frame_of(FrameKind::kZero, 0, kSentPage);
    header.address = kSentPage;
    send(header);
    EXPECT_TRUE(mentions(told_.failure(), "something else than pages"));
}

TEST_F(MigrationPageReceiver, AHeaderThatCannotBeEndsIt) {
    send(frame_of(FrameKind{9}, 0, kSentPage));
    EXPECT_TRUE(mentions(told_.failure(), "a frame that cannot be (kind 9"));
}

TEST_F(MigrationPageReceiver, ASourceDoesNotAskForPages) {
    send(frame_of(FrameKind::kAsk, 0, kSentPage));
    EXPECT_TRUE(mentions(told_.failure(), "asks for pages, which it has itself"));
}

class MigrationPageOutside : public MigrationPageReceiver, public ::testing::WithParamInterface<GuestRange> {};

TEST_P(MigrationPageOutside, IsRefused) {
    const auto bytes = static_cast<std::uint32_t>(GetParam().size);
    const std::uint64_t address = to_integer(GetParam().base);
    const std::vector<std::byte> payload(bytes, std::byte{1});
    send(frame_of(FrameKind::kRaw, address, bytes, payload));
    EXPECT_TRUE(mentions(told_.failure(), "where the guest has no memory"));

    Told told;
    PageReceiver other(memory_, 1, told.callbacks());
    ChannelEnds ends(kPatience);
    other.add(0, std::move(ends.destination));
    ends.source->send(frame_of(FrameKind::kZero, address, bytes).as_bytes());
    EXPECT_TRUE(mentions(told.failure(), "where the guest has no memory"));
    EXPECT_TRUE(is_memory_zero());
}

INSTANTIATE_TEST_SUITE_P(Of, MigrationPageOutside,
                         ::testing::Values(GuestRange{GuestAddress{8 * kMiB}, 4096},
                                           GuestRange{GuestAddress{5 * kMiB + 2 * 4096}, 8192},
                                           GuestRange{GuestAddress{16 * kMiB - 4096}, 8192},
                                           GuestRange{GuestAddress{4 * kGiB + 2 * kMiB}, 4096},
                                           GuestRange{GuestAddress{~std::uint64_t{0} - 4095}, 4096},
                                           GuestRange{GuestAddress{~std::uint64_t{0} - 4095}, 8192},
                                           GuestRange{GuestAddress{std::uint64_t{1} << 63U}, 256 * kKiB}));

TEST_F(MigrationPageReceiver, WhatUnpacksToAnotherSizeIsRefused) {
    const std::vector<std::byte> bomb = packed(std::vector<std::byte>(16 * kMiB, std::byte{0}));
    ASSERT_LE(bomb.size(), kSentPage);
    const std::vector<std::byte> small = packed(std::vector<std::byte>(kSentPage - 1, std::byte{0}));
    const std::vector<std::byte> large = packed(std::vector<std::byte>(kSentPage + 1, std::byte{0}));
    std::vector<std::byte> garbage(100);
    fill_at_random(garbage, 1);
    std::vector<std::byte> half = packed(std::vector<std::byte>(kSentPage, std::byte{0x55}));
    half.pop_back();
    for (const std::vector<std::byte>& payload : {bomb, small, large, garbage, half}) {
        Told told;
        PageReceiver receiver(memory_, 1, told.callbacks());
        ChannelEnds ends(kPatience);
        receiver.add(0, std::move(ends.destination));
        ends.source->send(frame_of(FrameKind::kZstd, 4 * kSentPage, kSentPage, payload).as_bytes());
        ends.source->send(payload);
        EXPECT_TRUE(mentions(told.failure(), "are not what their compression says")) << payload.size();
        // Only the page was written.
        std::ranges::fill(page_of(memory_, 0, 4), std::byte{0});
        EXPECT_TRUE(is_memory_zero());
    }
}

TEST_F(MigrationPageReceiver, AStreamComesOnceAndHasANumber) {
    const auto refusal = [&](unsigned index) {
        ChannelEnds ends(kPatience);
        return error_of([&] {
            receiver_->add(index, std::move(ends.destination));
            return 0;
        });
    };
    EXPECT_TRUE(mentions(refusal(0), "stream 0 of pages is there already"));
    EXPECT_TRUE(mentions(refusal(2), "none has the number 2"));
    EXPECT_TRUE(mentions(refusal(0xffffffff), "none has the number 4294967295"));
    // A stream that has failed exists until all are cut.
    ends_.source->shut_down();
    EXPECT_TRUE(told_.has_cuts(1));
    EXPECT_TRUE(mentions(refusal(0), "there already"));
    receiver_->cut();
    EXPECT_EQ(refusal(0), "");
}

TEST_F(MigrationPageReceiver, CuttingEndsAStreamThatIsWaitedFor) {
    send(frame_of(FrameKind::kRaw, 0, kSentPage, std::vector<std::byte>(kSentPage))); // and no payload
    receiver_->cut();
    EXPECT_EQ(receiver_->applied_frames(), std::vector<std::uint64_t>(2));
    EXPECT_TRUE(told_.has_cuts(1));
}

TEST_F(MigrationPageReceiver, ManyMayCutItWhileStreamsAreAdded) {
    std::atomic<bool> over = false;
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; ++i) {
        threads.emplace_back([&] {
            while (!over) {
                receiver_->cut();
                std::this_thread::sleep_for(std::chrono::microseconds(100));
            }
        });
    }
    unsigned added = 0;
    while (added < 100) {
        try {
            ChannelEnds ends(kPatience);
            const unsigned stream = added % 2;
            receiver_->add(stream, std::move(ends.destination));
            ++added;
            // No page goes through two streams at once, as it is with a source that keeps to the protocol.
            ends.source->send(frame_of(FrameKind::kZero, std::uint64_t{stream} * 4096, 4096).as_bytes());
        } catch (const Error&) { // it still exists, or was cut already
        }
    }
    over = true;
    for (std::thread& thread : threads) {
        thread.join();
    }
    receiver_->cut();
    const std::uint64_t applied = receiver_->applied_frames()[0];
    ChannelEnds ends(kPatience);
    receiver_->add(0, std::move(ends.destination));
    ends.source->send(frame_of(FrameKind::kZero, 0, 4096).as_bytes());
    EXPECT_TRUE(eventually([&] { return receiver_->applied_frames()[0] == applied + 1; }));
}

} // namespace
} // namespace vmm
