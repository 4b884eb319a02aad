// A device of our own, a guest of a few instructions that uses it, pause and resume from another thread.
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <iostream>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <vmm/device.hpp>
#include <vmm/error.hpp>
#include <vmm/machine.hpp>

/// Counts: each read gives the next number. From the hundredth on its interrupt line is up, until something is written.
class Counter : public vmm::CustomDevice {
  public:
    explicit Counter(const vmm::DeviceHost& host) : raise_(host.raise_interrupt), lower_(host.lower_interrupt) {}

    void read(std::uint64_t, std::span<std::byte> data) override {
        const std::uint32_t value = ++count_;
        std::memcpy(data.data(), &value, std::min(data.size(), sizeof value));
        if (value == 100) {
            raise_();
        }
    }
    void write(std::uint64_t, std::span<const std::byte>) override { lower_(); }
    std::uint32_t count() const { return count_; }

  private:
    std::function<void()> raise_;
    std::function<void()> lower_;
    std::atomic<std::uint32_t> count_{0};
};

/// A PVH kernel at 1 MiB: a 32-bit ELF file with its entry in a note.
std::shared_ptr<const std::vector<std::byte>> make_kernel() {
    // again: mov $0x5000, %dx; in %dx, %eax; jmp again
    const std::string code("\x66\xba\x00\x50\xed\xeb\xf9", 7);
    std::string file(4096, '\0');
    const auto put = [&](std::size_t at, std::uint64_t value, std::size_t size) {
        std::memcpy(&file[at], &value, size);
    };
    std::memcpy(&file[0], "\x7f\x45LF\x02\x01\x01", 7); // ELF, 64 bit, little endian
    put(16, 2, 2), put(18, 62, 2), put(20, 1, 4), put(24, 0x100000, 8), put(32, 64, 8);
    put(52, 64, 2), put(54, 56, 2), put(56, 2, 2);
    put(64, 1, 4), put(68, 7, 4), put(72, 0x200, 8), put(80, 0x100000, 8), put(88, 0x100000, 8);
    put(96, code.size(), 8), put(104, code.size(), 8), put(112, 8, 8);
    put(120, 4, 4), put(128, 0x100, 8), put(152, 20, 8), put(160, 20, 8), put(168, 4, 8);
    put(0x100, 4, 4), put(0x104, 4, 4), put(0x108, 18, 4), std::memcpy(&file[0x10c], "Xen", 4);
    put(0x110, 0x100000, 4);
    std::memcpy(&file[0x200], code.data(), code.size());
    const auto bytes = std::as_bytes(std::span(file));
    return std::make_shared<const std::vector<std::byte>>(bytes.begin(), bytes.end());
}

int main() {
    try {
        std::shared_ptr<Counter> counter;
        vmm::Config config;
        config.memory_bytes = 16 * vmm::kMiB;
        config.kernel_image = make_kernel();
        config.devices.push_back(
            {.name = "counter",
             .space = vmm::DeviceSpace::kPortIo,
             .base = 0x5000,
             .size = 4,
             .interrupt = 20,
             .trigger = vmm::InterruptTrigger::kLevel,
             .make = [&](const vmm::DeviceHost& host) { return counter = std::make_shared<Counter>(host); }});

        vmm::Machine machine(config);
        std::thread observer([&] {
            while (counter->count() < 100) {
                std::this_thread::sleep_for(std::chrono::milliseconds(1));
            }
            machine.pause();
            const std::uint32_t held = counter->count();
            std::this_thread::sleep_for(std::chrono::milliseconds(20));
            std::cout << (counter->count() == held ? "paused" : "not paused") << '\n';
            machine.resume();
            while (counter->count() < held + 100) {
                std::this_thread::sleep_for(std::chrono::milliseconds(1));
            }
            std::cout << "exits " << (machine.statistics().vcpus[0].exits > 0 ? "counted" : "lost") << '\n';
            machine.request_stop();
        });
        const vmm::ExitReason reason = machine.run();
        observer.join();
        std::cout << to_string(reason) << '\n';
        return reason == vmm::ExitReason::kStopped ? 0 : 1;
    } catch (const vmm::Error& error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
}
