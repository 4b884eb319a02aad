// How long it takes from the construction of a machine of 512 MiB to its guest's first instruction, without prefault.
#include <algorithm>
#include <iostream>
#include <vector>

#include <vmm/machine.hpp>

int main() {
    std::vector<double> milliseconds;
    for (int i = 0; i < 31; ++i) {
        vmm::Config config;
        config.memory_bytes = 512 * vmm::kMiB;
        config.command_line = "passes=1";
        vmm::Machine machine(config);
        machine.run();
        milliseconds.push_back(machine.report().seconds_to_first_instruction * 1e3);
    }
    std::cout << "first " << milliseconds.front();
    std::sort(milliseconds.begin(), milliseconds.end());
    std::cout << " ms; of 31: least " << milliseconds.front() << ", median " << milliseconds[15] << ", most "
              << milliseconds.back() << " ms\n";
}
