// A whole machine: a guest drives the devices, their threads and their host ends with all of its CPUs at once.

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "fuzz/require.hpp"
#include "fuzz/targets.hpp"
#include "kvm/host/error.hpp"
#include "support/host_temporary_directory.hpp"
#include "vmm/machine.hpp"

namespace vmm::fuzz {

namespace {

/// Files that all runs share.
struct Surroundings {
    Surroundings() {
        std::ifstream file(VMM_FUZZ_GUEST, std::ios::binary);
        const std::string text{std::istreambuf_iterator(file), {}};
        require(!text.empty(), "the guest is not built");
        const auto bytes = std::as_bytes(std::span(text));
        kernel = std::make_shared<const std::vector<std::byte>>(bytes.begin(), bytes.end());
        disk = directory.write("disk", std::string(1 << 20U, 'x'));
    }
    vmm::testing::TemporaryDirectory directory;
    std::shared_ptr<const std::vector<std::byte>> kernel;
    std::string disk;
};

/// Ends a guest that does not end by itself.
class Deadline {
  public:
    explicit Deadline(StopRequest& stop)
        : thread_([this, &stop] {
              std::unique_lock hold(lock_);
              constexpr std::chrono::seconds kMost{3};
              if (!over_.wait_for(hold, kMost, [this] { return is_over_; })) {
                  stop.request(ExitReason::kStopped);
              }
          }) {}
    ~Deadline() {
        {
            const std::lock_guard hold(lock_);
            is_over_ = true;
        }
        over_.notify_all();
        thread_.join();
    }
    Deadline(const Deadline&) = delete;
    Deadline& operator=(const Deadline&) = delete;

  private:
    std::mutex lock_;
    std::condition_variable over_;
    bool is_over_ = false;
    std::thread thread_; // last: it uses the rest
};

} // namespace

bool can_run_machines() {
    return ::access("/dev/kvm", R_OK | W_OK) == 0;
}

void machine(Bytes program) {
    static const Surroundings kSurroundings;
    if (program.empty()) {
        return; // An initrd that is empty is refused.
    }
    Config config;
    config.kernel_image = kSurroundings.kernel;
    config.initrd_image = std::make_shared<const std::vector<std::byte>>(program.begin(), program.end());
    config.memory_bytes = 16 * kMiB;
    config.page_size = PageSize::k4K;
    config.vcpus = 2;
    config.transport = VirtioTransport::kMmio; // The guest's driver knows no other transport.
    config.disks.push_back({.path = kSurroundings.disk, .queues = 2});
    config.vsock = VsockConfig{.path = kSurroundings.directory / "vsock"};
    config.balloon = BalloonConfig{};
    config.rng = true;
    config.console = CharacterConfig{};
    std::atomic<std::uint64_t> written = 0;
    config.console->sink = [&written](std::span<const std::byte> bytes) { written += bytes.size(); };
    config.serial.sink = [&written](std::span<const std::byte> bytes) { written += bytes.size(); };
    config.stop = std::make_shared<StopRequest>();
    Machine machine(config);
    const Deadline deadline(*config.stop);
    switch (machine.run()) {
    case ExitReason::kPowerOff:
    case ExitReason::kReboot:
    case ExitReason::kStopped:
    case ExitReason::kCrash:
        return;
    default:
        require(false, "a guest has ended as no guest can");
    }
}

} // namespace vmm::fuzz
