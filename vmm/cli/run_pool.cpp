#include "vmm/cli/run_pool.hpp"

#include <exception>
#include <memory>
#include <string>
#include <utility>

#include "kvm/host/format.hpp"
#include "vmm/cli/messages.hpp"
#include "vmm/cli/option_names.hpp"
#include "vmm/control/socket.hpp"
#include "vmm/limits.hpp"
#include "vmm/output/stop_on_signals.hpp"

namespace vmm {

int run_pool(const PoolCommand& command) {
    MemoryPoolConfig config = command.config;
    config.check();
    config.stop = std::make_shared<StopRequest>();
    const StopOnSignals signals(*config.stop);
    Messages messages;
    config.log = [&messages, quiet = command.quiet](LogLevel level, std::string_view line) {
        if (!quiet || level == LogLevel::kError) {
            messages.say("vmm pool: " + with_option_names(line) + "\n");
        }
    };
    config.filled = [&config, said = false]() mutable {
        if (!std::exchange(said, true)) {
            if (const std::string problem = control::notify_supervisor("READY=1"); !problem.empty()) {
                config.log(LogLevel::kWarning, problem);
            }
        }
    };
    MemoryPool pool(config);
    config.log(LogLevel::kInfo,
               vmm::format("{} of {} pages in {} pieces at {}: being made", format_bytes(config.size_bytes),
                           to_string(config.page_size), config.size_bytes / config.piece_bytes, config.path));
    pool.serve();
    messages.end({.hurry_fd = signals.fd()});
    return exit_codes::kSuccess;
}

} // namespace vmm
