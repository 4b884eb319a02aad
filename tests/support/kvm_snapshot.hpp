// Machines that run on another thread, are saved, and go on.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <cstddef>
#include <filesystem>
#include <future>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>

#include "support/host_temporary_directory.hpp"
#include "support/host_waiting.hpp"
#include "support/kvm_require.hpp"
#include "vmm/machine.hpp"

namespace vmm::testing {

/// A machine that runs on another thread than the test.
class Running {
  public:
    explicit Running(Config config) {
        config.serial.sink = [this](std::span<const std::byte> bytes) {
            const std::lock_guard hold(lock_);
            for (const std::byte byte : bytes) {
                output_ += static_cast<char>(byte);
            }
        };
        config.started = [this] { note_started(); };
        const bool arrives = config.incoming != nullptr;
        machine_.emplace(std::move(config));
        if (arrives) { // its memory was populated before its state came
            filled_ = machine_->report().prefault;
        } else if (machine_->report().prefault_when == PrefaultWhen::kBefore) {
            filled_ = machine_->prefault();
        }
        thread_ = std::thread([this] {
            try {
                reason_ = machine_->run();
            } catch (const Error& error) {
                failure_ = error.what();
                note_started();
            }
        });
        started_.get_future().wait();
    }
    ~Running() {
        machine_->request_stop();
        if (thread_.joinable()) {
            thread_.join();
        }
    }
    Running(const Running&) = delete;
    Running& operator=(const Running&) = delete;

    Machine& operator*() { return *machine_; }
    Machine* operator->() { return &*machine_; }
    [[nodiscard]] const prefault::Report& filled() const { return filled_; }

    [[nodiscard]] std::string output() const {
        const std::lock_guard hold(lock_);
        return output_;
    }
    /// How many lines of passes the guest has printed.
    [[nodiscard]] unsigned passes() const {
        const std::string text = output();
        unsigned count = 0;
        for (std::size_t at = text.find("pass="); at != std::string::npos; at = text.find("pass=", at + 1)) {
            ++count;
        }
        return count;
    }
    [[nodiscard]] bool says(const std::string& words) const {
        return eventually([&] { return output().find(words) != std::string::npos; });
    }
    /// Waits until the guest has ended by itself.
    RunReport end() {
        thread_.join();
        EXPECT_EQ(failure_, "");
        return machine_->report();
    }
    /// Waits until the run has failed, and returns why.
    std::string failure() {
        thread_.join();
        return failure_;
    }
    RunReport stop() {
        machine_->request_stop();
        return end();
    }

  private:
    /// Also true if it has failed, before or after.
    void note_started() {
        std::call_once(once_, [this] { started_.set_value(); });
    }

    mutable std::mutex lock_;
    std::string output_;
    std::optional<Machine> machine_;
    prefault::Report filled_;
    ExitReason reason_ = ExitReason::kStopped;
    std::string failure_;
    std::once_flag once_;
    std::promise<void> started_;
    std::thread thread_;
};

struct SnapshotTest : KvmTest {
    TemporaryDirectory directory;
    std::string path = directory / "snapshot";

    /// The built-in guest. In each pass it compares what the pass before it wrote.
    [[nodiscard]] static Config guest(unsigned vcpus = 1) {
        Config config;
        config.memory_bytes = 16 * kMiB;
        config.vcpus = vcpus;
        config.command_line = "passes=1000000 check=1 report=live";
        return config;
    }
    [[nodiscard]] Config restored(Config config) const {
        config.command_line.clear();
        config.kernel_path.clear();
        config.restore = RestoreFrom{.path = path};
        return config;
    }
    [[nodiscard]] SnapshotReport take(Running& running, bool resume = false) const {
        SnapshotOptions options;
        options.directory = path;
        options.resume = resume;
        return running->snapshot(options);
    }
    void expect_no_leftovers() const {
        for (const auto& entry : std::filesystem::directory_iterator(directory.path())) {
            ADD_FAILURE() << entry.path();
        }
    }
    /// Checks that the guest makes some more passes and finds no error. Ends the guest.
    static RunReport expect_goes_on(Running& running) {
        constexpr unsigned kMore = 10;
        const unsigned before = running.passes();
        EXPECT_TRUE(eventually([&] { return running.passes() >= before + kMore; })) << running.output();
        RunReport report = running.stop();
        const std::string output = running.output();
        for (std::size_t at = output.find(" errors="); at != std::string::npos; at = output.find(" errors=", at + 1)) {
            // The last line may be incomplete.
            EXPECT_TRUE(std::string(" errors=0").starts_with(output.substr(at, 9))) << output;
        }
        return report;
    }
};

} // namespace vmm::testing
