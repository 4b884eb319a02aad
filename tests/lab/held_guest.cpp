// Runs the built-in guest, and waits between its steps. So somebody outside can count the cost of each step: the host
// of the machine that this runs on, if that machine is itself a guest (tests/lab/nested_checks).
//
//   held_guest METHOD PAGE-SIZE MIB PASSES [OPTION]...    METHOD as --prefault-method takes it, or none; OPTIONS of the
//   guest
//
// It prints "HELD filled ...", "HELD ended ..." and "HELD gone ...". After each of the first two it waits for a line of
// input. The guest's output is between them.
#include <array>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "kvm/host/stopwatch.hpp"
#include "vmm/error.hpp"
#include "vmm/machine.hpp"

namespace {

using vmm::prefault::Method;

template <typename Value, std::size_t size>
Value parse(std::string_view word, const std::array<Value, size>& values) {
    for (const Value value : values) {
        if (to_string(value) == word) {
            return value;
        }
    }
    throw vmm::Error("cannot run the guest: '" + std::string(word) + "' is no value here");
}

vmm::Config config_of(std::span<char*> words) {
    vmm::Config config;
    const auto method = parse(
        words[0], std::array{Method::kNone, Method::kAuto, Method::kTouch, Method::kIoctl, Method::kIoctlThenTouch});
    config.prefault.scope = method == Method::kNone ? vmm::prefault::Scope::kNone : vmm::prefault::Scope::kAll;
    config.prefault.method = method;
    config.page_size =
        parse(words[1], std::array{vmm::PageSize::k4K, vmm::PageSize::kThp, vmm::PageSize::k2M, vmm::PageSize::k1G});
    config.memory_bytes = std::stoull(words[2]) * vmm::kMiB;
    config.command_line = "passes=" + std::string(words[3]);
    for (const char* const option : words.subspan(4)) {
        config.command_line += " " + std::string(option);
    }
    config.serial.sink = [](std::span<const std::byte> bytes) {
        // chars may alias any bytes.
        std::cout << std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()) << std::flush;
    };
    return config;
}

void wait_for_a_line() {
    std::string line;
    std::getline(std::cin, line);
}

void run(const vmm::Config& config) {
    std::optional<vmm::Machine> machine(config);
    const vmm::prefault::Report filled = machine->prefault();
    std::cout << "HELD filled by " << to_string(filled.method) << " in " << filled.total_seconds << " s, complete "
              << filled.complete << ", nested " << machine->report().host.nested << ", because " << filled.method_reason
              << std::endl;
    wait_for_a_line();
    static_cast<void>(machine->run());
    std::cout << "HELD ended with " << machine->report().second_level_faults_total() << " faults" << std::endl;
    wait_for_a_line();
    const auto before = std::chrono::steady_clock::now();
    machine.reset();
    std::cout << "HELD gone after " << vmm::seconds_since(before) << " s" << std::endl;
}

} // namespace

int main(int argc, char** argv) {
    try {
        if (argc < 5) {
            std::cerr << "usage: held_guest METHOD PAGE-SIZE MIB PASSES [OPTION]...\n";
            return 2;
        }
        run(config_of(std::span(argv, static_cast<std::size_t>(argc)).subspan(1)));
        return 0;
    } catch (const std::exception& error) {
        std::cerr << "HELD failed: " << error.what() << std::endl;
        return 1;
    }
}
