// Guests that move from one machine of a test to another.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <future>
#include <memory>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>

#include "kvm/host/error.hpp"
#include "support/host_waiting.hpp"
#include "support/kvm_snapshot.hpp"
#include "vmm/machine.hpp"

namespace vmm::testing {

/// The configuration of a machine that goes on with a guest of `config`.
[[nodiscard]] inline Config arriving(Config config) {
    config.kernel_path.clear();
    config.kernel_image.reset();
    config.command_line.clear();
    return config;
}

/// Waits for a guest on another thread, and makes a machine of it.
class Destination {
  public:
    /// `config` is like the configuration of the guest's machine; its kernel is left out.
    Destination(const Config& config, const MigrationAddress& address,
                std::chrono::seconds reconnect = std::chrono::seconds(30))
        : guest_(std::make_shared<IncomingGuest>(IncomingGuest::Options{address, {}, reconnect}, LogSink{})) {
        Config wanted = arriving(config);
        wanted.stop = stop_;
        made_ = std::async(std::launch::async, [this, wanted = std::move(wanted)]() mutable {
            guest_->wait(waiting_.get_token());
            wanted.incoming = guest_;
            auto running = std::make_unique<Running>(std::move(wanted));
            return running;
        });
    }
    ~Destination() {
        if (!taken_) {
            stop();
        }
    }
    Destination(const Destination&) = delete;
    Destination& operator=(const Destination&) = delete;

    [[nodiscard]] const MigrationAddress& address() const { return guest_->address(); }
    [[nodiscard]] IncomingGuest& guest() { return *guest_; }
    /// The guest, when it runs here. Throws the exception of the machine's constructor, if any.
    [[nodiscard]] std::unique_ptr<Running> take() {
        std::unique_ptr<Running> running = made_.get();
        taken_ = true;
        return running;
    }
    /// Why there is no guest here.
    [[nodiscard]] std::string failure() {
        try {
            static_cast<void>(made_.get());
        } catch (const Error& error) {
            return error.what();
        }
        ADD_FAILURE() << "the guest runs at the destination";
        return {};
    }
    /// Ends it, in any state.
    void stop() {
        waiting_.request_stop();
        stop_->request(ExitReason::kStopped);
    }

  private:
    std::shared_ptr<IncomingGuest> guest_;
    std::shared_ptr<StopRequest> stop_ = std::make_shared<StopRequest>();
    std::stop_source waiting_;
    bool taken_ = false;
    std::future<std::unique_ptr<Running>> made_;
};

struct MigrationTest : SnapshotTest {
    [[nodiscard]] MigrationAddress unix_socket(std::string_view name = "guest.sock") const {
        return MigrationAddress::parse("unix:" + (directory / name));
    }
    [[nodiscard]] static MigrationAddress loopback() { return MigrationAddress::parse("tcp:127.0.0.1:0"); }

    /// Nothing in them depends on the present speed of the host.
    [[nodiscard]] static MigrationOptions patient(const MigrationAddress& address) {
        MigrationOptions options;
        options.address = address;
        options.downtime = kPatience;
        options.within = kPatience;
        return options;
    }

    /// Checks all output of the guest, first at one end and then at the other: each of its vCPUs must have counted its
    /// passes without a gap, and have found no error.
    static void expect_whole_output(std::string output, unsigned vcpus) {
        std::erase(output, '\r');
        std::vector<std::uint64_t> last(vcpus, 0);
        std::istringstream lines(output.substr(0, output.rfind('\n') + 1));
        for (std::string line; std::getline(lines, line);) {
            if (line.empty() || line.starts_with("guest=")) {
                continue;
            }
            std::uint64_t pass = 0;
            unsigned cpu = 0;
            ASSERT_EQ(std::sscanf(line.c_str(), "pass=%lu cpu=%u", &pass, &cpu), 2) << line;
            ASSERT_LT(cpu, vcpus) << line;
            EXPECT_EQ(pass, last[cpu] + 1) << line;
            last[cpu] = pass;
            EXPECT_TRUE(line.ends_with("errors=0")) << line;
        }
    }

    struct Moved {
        MigrationReport report;
        std::unique_ptr<Running> there;
    };
    /// Moves the guest of `source` to a new machine. Afterwards the source's machine has ended.
    [[nodiscard]] static Moved move(Running& source, const Config& config, const MigrationAddress& listens_at,
                                    const MigrationOptions& how = patient({})) {
        Destination destination(config, listens_at);
        MigrationOptions options = how;
        options.address = destination.address();
        Moved moved;
        moved.report = source->migrate(options);
        EXPECT_TRUE(moved.report.complete);
        EXPECT_EQ(source.end().exit, ExitReason::kMigrated);
        moved.there = destination.take();
        return moved;
    }
};

} // namespace vmm::testing
