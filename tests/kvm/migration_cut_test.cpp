// Migrations whose connections are cut, at any message and at any byte: exactly one guest goes on, with correct memory.

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <iterator>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "support/host_errors.hpp"
#include "support/host_waiting.hpp"
#include "support/kvm_machine.hpp"
#include "support/kvm_migration.hpp"
#include "support/vmm_migration_link.hpp"
#include "support/vmm_migration_proxy.hpp"
#include "vmm/machine.hpp"

namespace vmm {
namespace {

using testing::Destination;
using testing::eventually;
using testing::MigrationProxy;
using testing::Running;
using testing::TestKernel;
using CutWay = MigrationProxy::Way;

struct MigrationCut : testing::MigrationTest {
    static constexpr unsigned kVcpus = 2;

    enum class Outcome { kMoved, kStayed, kStandsStill };

    /// Moves a guest through a proxy that cuts connections. In all cases exactly one guest goes on. `reconnects` gets
    /// the number of new connections.
    Outcome migrate_through(const MigrationProxy::Cut& cut, bool tcp, unsigned streams = 1,
                            unsigned* reconnects = nullptr) const {
        const std::string where = (tcp ? "tcp, way " : "unix, way ") + std::to_string(static_cast<int>(cut.way)) +
                                  ", message " + std::to_string(cut.message ? static_cast<int>(*cut.message) : 0) +
                                  (cut.passes ? ", passes" : "") + (cut.for_good ? ", for good" : "") + ", bytes " +
                                  std::to_string(cut.bytes);
        SCOPED_TRACE(where);
        const auto address = [&](std::string_view name) { return tcp ? loopback() : unix_socket(name); };
        Running source(guest(kVcpus));
        EXPECT_TRUE(source.says("pass=2 "));
        Destination destination(guest(kVcpus), address("there"),
                                std::chrono::seconds(cut.for_good ? 1 : 120)); // no wait lasts so long
        MigrationProxy proxy(address("between"), destination.address(), cut);
        MigrationOptions options = patient(proxy.address());
        options.streams = streams;
        options.reconnect = std::chrono::seconds(cut.for_good ? 1 : 120);
        std::optional<MigrationReport> report;
        std::string error;
        try {
            report = source->migrate(options);
        } catch (const Error& thrown) {
            error = thrown.what();
        }
        if (report) {
            EXPECT_TRUE(report->complete);
            if (reconnects != nullptr) {
                *reconnects = report->reconnects;
            }
            EXPECT_EQ(source.end().exit, ExitReason::kMigrated);
            expect_runs(*destination.take(), source.output());
            return Outcome::kMoved;
        }
        if (source->statistics().state == RunState::kRunning) {
            destination.stop();
            const std::string there = destination.failure();
            EXPECT_NE(there, "");
            stayed_because_ = error + "; there: " + there;
            expect_runs(source, "");
            return Outcome::kStayed;
        }
        EXPECT_EQ(source->statistics().state, RunState::kPaused) << error;
        EXPECT_TRUE(testing::mentions(error, "resume it here")) << error;
        std::unique_ptr<Running> there;
        try {
            there = destination.take();
        } catch (const Error&) { // The destination has not taken the guest.
        }
        if (there) {
            source.stop();
            expect_runs(*there, source.output());
        } else {
            source->resume();
            expect_runs(source, "");
        }
        return Outcome::kStandsStill;
    }
    static void expect_runs(Running& running, const std::string& before) {
        expect_goes_on(running);
        expect_whole_output(before + running.output(), kVcpus);
    }

    mutable std::string stayed_because_; ///< the last guest that stayed: what both ends said
};

/// The allowed outcomes if the connections are cut at a message: before it is forwarded, or afterwards; once, or for
/// good.
struct AtMessage {
    using Outcomes = std::vector<MigrationCut::Outcome>;
    CutWay way;
    MessageType message;
    Outcomes before;
    Outcomes before_for_good;
    Outcomes after;
    Outcomes after_for_good;
};

class MigrationCutAt : public MigrationCut, public ::testing::WithParamInterface<AtMessage> {};

TEST_P(MigrationCutAt, OneGuestGoesOn) {
    const AtMessage& at = GetParam();
    for (const bool tcp : {false, true}) {
        for (const bool passes : {false, true}) {
            for (const bool for_good : {false, true}) {
                const AtMessage::Outcomes& wanted =
                    passes ? (for_good ? at.after_for_good : at.after) : (for_good ? at.before_for_good : at.before);
                const Outcome outcome = migrate_through(
                    {.way = at.way, .message = at.message, .passes = passes, .for_good = for_good}, tcp);
                EXPECT_NE(std::ranges::find(wanted, outcome), wanted.end())
                    << static_cast<int>(outcome) << ": " << tcp << passes << for_good << ": " << stayed_because_;
            }
        }
    }
}

const AtMessage::Outcomes kHere{MigrationCut::Outcome::kStayed};
const AtMessage::Outcomes kThere{MigrationCut::Outcome::kMoved};
const AtMessage::Outcomes kNobodyKnows{MigrationCut::Outcome::kStandsStill};
/// The message that is cut may still be on its way, or may have arrived.
const AtMessage::Outcomes kHereOrThere{MigrationCut::Outcome::kStayed, MigrationCut::Outcome::kMoved};
const AtMessage::Outcomes kHereOrNobodyKnows{MigrationCut::Outcome::kStayed, MigrationCut::Outcome::kStandsStill};
const AtMessage::Outcomes kThereOrNobodyKnows{MigrationCut::Outcome::kMoved, MigrationCut::Outcome::kStandsStill};

INSTANTIATE_TEST_SUITE_P(
    , MigrationCutAt,
    ::testing::Values(
        AtMessage{CutWay::kToDestination, MessageType::kHello, kHere, kHere, kHere, kHere},
        AtMessage{CutWay::kToSource, MessageType::kWelcome, kHere, kHere, kHere, kHere},
        AtMessage{CutWay::kToDestination, MessageType::kFirstState, kHere, kHere, kHere, kHere},
        AtMessage{CutWay::kToSource, MessageType::kAccept, kHere, kHere, kHereOrThere, kHere},
        AtMessage{CutWay::kToDestination, MessageType::kStream, kThere, kHere, kThere, kHere},
        AtMessage{CutWay::kToSource, MessageType::kSynced, kThere, kHere, kThere, kHere},
        AtMessage{CutWay::kToDestination, MessageType::kLastState, kThere, kHere, kThere, kHere},
        // The source may have given the guest away without a receiver. Then it asks.
        AtMessage{CutWay::kToSource, MessageType::kPrepared, kThere, kHere, kHereOrThere, kHereOrNobodyKnows},
        AtMessage{CutWay::kToDestination, MessageType::kCommit, kHere, kNobodyKnows, kThere, kThereOrNobodyKnows},
        AtMessage{CutWay::kToSource, MessageType::kRunning, kThere, kNobodyKnows, kThere, kThereOrNobodyKnows},
        AtMessage{CutWay::kToDestination, MessageType::kFarewell, kThere, kThere, kThere, kThere}),
    [](const auto& info) { return "Message" + std::to_string(static_cast<unsigned>(info.param.message)); });

/// Uses all of `places` if VMM_ROUNDS is more than 1, otherwise every third: each takes a second or two.
std::vector<std::uint64_t> some_of(std::initializer_list<std::uint64_t> places) {
    const char* const rounds = std::getenv("VMM_ROUNDS");
    const std::size_t step = rounds != nullptr && std::string_view(rounds) > "1" ? 1 : 3;
    std::vector<std::uint64_t> some;
    for (std::size_t i = 0; i < places.size(); i += step) {
        some.push_back(std::data(places)[i]);
    }
    return some;
}

TEST_F(MigrationCut, AtManyBytesOnTheWayThere) {
    bool tcp = false;
    for (const std::uint64_t bytes : some_of({1, 16, 4000, 200 * kKiB, kMiB, 3 * kMiB + 17, 7 * kMiB + 4096,
                                              11 * kMiB + 1, 14 * kMiB, 16 * kMiB, 20 * kMiB + 5})) {
        const unsigned streams = tcp ? 3 : 1;
        static_cast<void>(migrate_through({.bytes = bytes}, tcp, streams));
        static_cast<void>(migrate_through({.bytes = bytes, .for_good = true}, !tcp, streams));
        tcp = !tcp;
    }
}

TEST_F(MigrationCut, AtManyBytesOnTheWayBack) {
    bool tcp = false;
    for (const std::uint64_t bytes : some_of({1, 16, 40, 100, 116, 130, 140, 150, 170, 200, 250})) {
        static_cast<void>(migrate_through({.way = CutWay::kToSource, .bytes = bytes}, tcp));
        static_cast<void>(migrate_through({.way = CutWay::kToSource, .bytes = bytes, .for_good = true}, !tcp));
        tcp = !tcp;
    }
}

TEST_F(MigrationCut, AgainAndAgain) {
    for (const bool tcp : {false, true}) {
        for (const unsigned streams : {1U, 2U}) {
            unsigned reconnects = 0;
            EXPECT_EQ(migrate_through({.bytes = kMiB, .times = 4}, tcp, streams, &reconnects), Outcome::kMoved);
            EXPECT_GE(reconnects, 4 / streams) << "four cuts, of which as many may come at once as there are streams";
        }
    }
}

/// The destination has then heard of an attempt of which the source has not.
TEST_F(MigrationCut, WhenItIsResumed) {
    for (const MessageType message : {MessageType::kResume, MessageType::kResumed}) {
        for (const bool passes : {false, true}) {
            for (const bool tcp : {false, true}) {
                unsigned reconnects = 0;
                const MigrationProxy::Cut cut{.way = message == MessageType::kResume ? CutWay::kToDestination
                                                                                     : CutWay::kToSource,
                                              .message = message,
                                              .passes = passes,
                                              .bytes_before = kMiB};
                EXPECT_EQ(migrate_through(cut, tcp, 2, &reconnects), Outcome::kMoved);
                EXPECT_GE(reconnects, 1U);
            }
        }
    }
}

/// What the destination has is not sent again.
TEST_F(MigrationCut, MemoryIsNotSentTwice) {
    const TestKernel kernel(testing::kernels::kSpin);
    for (const unsigned streams : {1U, 4U}) {
        Running source(kernel.config());
        const GuestRange filled{GuestAddress{kMiB * 2}, 14 * kMiB};
        const std::vector<std::byte> content = testing::random_bytes(filled.size);
        ASSERT_TRUE(source->memory().copy_in(filled.base, content));
        Destination destination(kernel.config(), unix_socket("there"), std::chrono::seconds(120));
        MigrationProxy proxy(unix_socket("between"), destination.address(), {.bytes = 13 * kMiB});
        MigrationOptions options = patient(proxy.address());
        options.streams = streams;
        options.reconnect = std::chrono::seconds(120);
        const MigrationReport report = source->migrate(options);
        EXPECT_TRUE(report.complete);
        EXPECT_EQ(report.reconnects, 1U);
        EXPECT_LT(report.sent_bytes, 20 * kMiB); // 28 MiB, if all was sent again.
        const auto there = destination.take();
        std::vector<std::byte> found(content.size());
        ASSERT_TRUE((*there)->memory().copy_out(filled.base, found));
        EXPECT_TRUE(found == content);
        there->stop();
        EXPECT_EQ((*there)->report().arrival.value().resumed, 1U);
    }
}

} // namespace
} // namespace vmm
