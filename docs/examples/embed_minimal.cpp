// The built-in guest on populated memory: what it says, and how many second-level faults it took.
#include <iostream>
#include <string_view>

#include <vmm/error.hpp>
#include <vmm/machine.hpp>

int main() {
    try {
        vmm::Config config;
        config.memory_bytes = 64 * vmm::kMiB;
        config.prefault.scope = vmm::prefault::Scope::kAll;
        config.serial.sink = [](std::span<const std::byte> bytes) {
            std::cout << std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size());
        };

        vmm::Machine machine(config);
        const vmm::prefault::Report filled = machine.prefault();
        const vmm::ExitReason reason = machine.run();

        std::cout << to_string(reason) << ", prefault " << (filled.complete ? "complete" : filled.problem)
                  << ", faults " << machine.report().second_level_faults_total() << '\n';
        return machine.report().second_level_faults_total() == 0 ? 0 : 1;
    } catch (const vmm::Error& error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
}
