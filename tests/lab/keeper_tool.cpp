// Functions that checks of the keeper need and that `vmm` and busybox lack.
//
//   keeper_tool merge COMMAND...     runs COMMAND with all its memory for KSM to merge (PR_SET_MEMORY_MERGE)
//   keeper_tool run COMMANDS REPORT MIB KERNEL INITRD CMDLINE
//                                    runs a guest of 2 MiB pages whose second level is kept full. It says the keeper's
//                                    events on standard error, and writes the report at the end. Lines that it reads
//                                    from the pipe COMMANDS switch dirty logging: "on", "off"
#include <fcntl.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iostream>
#include <span>
#include <string>
#include <string_view>
#include <thread>

#include "vmm/machine.hpp"

#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67 // Linux 6.4
#endif

namespace {

[[noreturn]] void fail(const char* what) {
    std::perror(what);
    std::exit(1);
}

int run_merged(char** command) {
    if (::prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0) != 0) {
        fail("PR_SET_MEMORY_MERGE");
    }
    ::execvp(command[0], command);
    fail(command[0]);
}

int run_kept(std::span<char* const> words) {
    vmm::Config config;
    config.memory_bytes = std::stoull(words[2]) * vmm::kMiB;
    config.kernel_path = words[3];
    config.initrd_path = words[4];
    config.command_line = words[5];
    config.prefault.scope = vmm::prefault::Scope::kAll;
    config.prefault_keep = true;
    config.kept = [](const vmm::prefault::KeptEvent& event) {
        std::cerr << vmm::prefault::to_line(event) + "\n" << std::flush;
    };
    config.serial.input_fd = STDIN_FILENO;
    config.serial.output_fd = STDOUT_FILENO;
    vmm::Machine machine(config);
    static_cast<void>(machine.prefault());
    std::atomic<bool> over{false};
    std::thread switcher([&machine, &over, path = std::string(words[0])] {
        std::fstream commands(path, std::ios::in | std::ios::out); // both ends, so that there never is an end of file
        for (std::string line; std::getline(commands, line) && !over;) {
            machine.log_dirty_pages(line == "on");
            std::cerr << "log " + line + "\n" << std::flush;
        }
    });
    machine.run();
    over = true;
    std::ofstream(words[0]) << "over\n" << std::flush;
    switcher.join();
    std::ofstream(words[1]) << vmm::to_json(machine.report());
    return 0;
}

} // namespace

int main(int argc, char** argv) {
    const std::string_view what = argc > 1 ? argv[1] : "";
    try {
        if (what == "merge" && argc > 2) {
            return run_merged(argv + 2);
        }
        if (what == "run" && argc == 8) {
            return run_kept({argv + 2, 6});
        }
    } catch (const std::exception& error) {
        std::cerr << "keeper_tool: " << error.what() << "\n";
        return 1;
    }
    std::cerr << "keeper_tool: see the head of its source\n";
    return 2;
}
