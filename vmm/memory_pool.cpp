#include "vmm/memory_pool.hpp"

#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "kvm/host/blocked_signals.hpp"
#include "kvm/host/error.hpp"
#include "kvm/host/event_fd.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/unix_listener.hpp"
#include "prefault/host/huge_page_pool.hpp"
#include "prefault/host/numa.hpp"
#include "prefault/host/pace.hpp"
#include "prefault/host/warm_server.hpp"
#include "prefault/host/warm_stock.hpp"
#include "prefault/host/workforce.hpp"
#include "prefault/options.hpp"
#include "vmm/host/memory_facts.hpp"
#include "vmm/host/process_limits.hpp"

namespace vmm {

namespace {

using prefault::WarmPiece;
using prefault::WarmServer;
using prefault::WarmStock;

/// The memory that the pool leaves for the host.
constexpr std::uint64_t kHostMarginBytes = 256 * kMiB;
/// The descriptors that are needed beside the pieces and the connections.
constexpr std::uint64_t kFixedDescriptors = 32;
/// How long the pool waits before it tries again.
constexpr std::chrono::seconds kRetryPause{1};

std::string tried(const MemoryPoolConfig& config) {
    return "cannot keep " + format_bytes(config.size_bytes) + " of memory ready in pieces of " +
           format_bytes(config.piece_bytes) + ": ";
}

/// Throws Error if the host has less than `bytes` left.
void check_host_memory(std::uint64_t bytes, const std::string& tried_to) {
    const auto available = available_bytes(read_memory_facts());
    if (available && (*available < kHostMarginBytes || *available - kHostMarginBytes < bytes)) {
        throw Error(tried_to + "this host has " + format_bytes(*available) + " available, of which the pool leaves " +
                    format_bytes(kHostMarginBytes) +
                    " (take a smaller MemoryPoolConfig::size_bytes, or free some memory)");
    }
}

void check_against_host(const MemoryPoolConfig& config, const prefault::NumaTopology& topology) {
    const std::uint64_t pieces = config.size_bytes / config.piece_bytes;
    if (config.split_over_nodes && pieces < topology.memory_nodes().size()) {
        throw Error(tried(config) + "there are " + std::to_string(topology.memory_nodes().size()) +
                    " nodes with memory, and each needs a piece (take a smaller MemoryPoolConfig::piece_bytes)");
    }
    ProcessNeed need;
    need.descriptors = pieces + WarmServer::kMostConnections + kFixedDescriptors;
    if (const std::string refusal = judge_process(need, read_process_facts()); !refusal.empty()) {
        throw Error(refusal);
    }
    prefault::check_warm_page_size(config.page_size);
    if (is_from_pool(config.page_size)) {
        prefault::check_huge_page_pool(config.page_size, config.size_bytes);
    } else {
        check_host_memory(config.size_bytes, tried(config));
    }
}

std::vector<WarmStock::Target> targets_of(const MemoryPoolConfig& config, const prefault::NumaTopology& topology) {
    const std::size_t pieces = config.size_bytes / config.piece_bytes;
    if (!config.split_over_nodes) {
        return {{std::nullopt, pieces}};
    }
    std::vector<WarmStock::Target> targets;
    const std::vector<unsigned> nodes = topology.memory_nodes();
    for (std::size_t i = 0; i < nodes.size(); ++i) {
        targets.push_back({nodes[i], pieces / nodes.size() + (i < pieces % nodes.size() ? 1 : 0)});
    }
    return targets;
}

MemoryPoolConfig checked(MemoryPoolConfig config, const prefault::NumaTopology& topology) {
    config.check();
    check_against_host(config, topology);
    return config;
}

} // namespace

void MemoryPoolConfig::check() const {
    prefault::check_pool_path(path);
    const std::uint64_t granule = std::max(2 * kMiB, largest_page_bytes(page_size));
    if (piece_bytes == 0 || !is_aligned(piece_bytes, granule)) {
        throw Error(tried(*this) + "a piece must be a multiple of " + format_bytes(granule) +
                    " (MemoryPoolConfig::piece_bytes)");
    }
    if (size_bytes == 0 || size_bytes % piece_bytes != 0) {
        throw Error(
            tried(*this) +
            "the size must be a multiple of the piece (MemoryPoolConfig::size_bytes, MemoryPoolConfig::piece_bytes)");
    }
    if (size_bytes / piece_bytes > kMostPieces) {
        throw Error(tried(*this) + "that are " + std::to_string(size_bytes / piece_bytes) + " pieces, and " +
                    std::to_string(kMostPieces) + " are possible (take a larger MemoryPoolConfig::piece_bytes)");
    }
    if (workers < 1 || workers > prefault::kMaxWorkers) {
        throw Error(tried(*this) + std::to_string(workers) + " workers cannot be: 1 to " +
                    std::to_string(prefault::kMaxWorkers) + " are possible (MemoryPoolConfig::workers)");
    }
}

/// The order of the members follows their dependencies.
struct MemoryPool::Parts {
    explicit Parts(MemoryPoolConfig wanted)
        : topology(prefault::NumaTopology::read()), config(checked(std::move(wanted), topology)),
          stop(config.stop ? config.stop : std::make_shared<StopRequest>()), pace(config.bytes_per_second),
          stock(config.page_size, config.piece_bytes, targets_of(config, topology)),
          listener(config.path, SOCK_SEQPACKET, "the pool's unix socket",
                   [this](const std::string& line) { log(LogLevel::kWarning, line); }) {
        // Other users could not get memory from it, but they could keep it busy.
        ::chmod(config.path.c_str(), S_IRUSR | S_IWUSR);
    }

    void log(LogLevel level, const std::string& line) const {
        if (config.log) {
            config.log(level, line);
        }
    }

    void tell(const WarmServer::Served& served) const {
        const std::string who = vmm::format("process {} (user {})", served.process, served.user);
        const std::string left = vmm::format("; {} are ready", format_bytes(served.free_bytes));
        if (served.problem.empty()) {
            log(LogLevel::kInfo, vmm::format("{} went to {}{}", format_bytes(served.bytes), who, left));
        } else {
            log(LogLevel::kWarning,
                vmm::format("{} got {}: {}{}", who, format_bytes(served.bytes), served.problem, left));
        }
    }

    void make_pieces(const std::stop_token& token) {
        block_signals_in_this_thread();
        bool failed = false;
        std::size_t made = 0;
        while (config.refills || made < config.size_bytes / config.piece_bytes) {
            const auto spec = stock.wait_for_lack(token);
            if (!spec) {
                return;
            }
            try {
                auto piece = make_piece(*spec, token);
                if (!piece) {
                    return;
                }
                stock.put(std::move(*piece));
                ++made;
                failed = false;
                if (stock.is_full()) {
                    log(LogLevel::kInfo, format_bytes(config.size_bytes) + " are ready");
                    if (config.filled) {
                        config.filled();
                    }
                }
            } catch (const Error& error) {
                if (!std::exchange(failed, true)) {
                    log(LogLevel::kWarning, std::string(error.what()) + "; it is tried again every second");
                }
                std::mutex lock;
                std::unique_lock hold(lock);
                std::condition_variable_any().wait_for(hold, token, kRetryPause, [] { return false; });
            }
        }
    }

    std::optional<WarmPiece> make_piece(const WarmPiece::Spec& spec, const std::stop_token& token) {
        if (!is_from_pool(config.page_size)) {
            check_host_memory(spec.bytes, "cannot make " + format_bytes(spec.bytes) + " of warm memory: ");
        }
        prefault::Workforce workforce;
        workforce.workers = config.workers;
        workforce.low_priority = true;
        for (const prefault::NumaNode& node : topology.nodes) {
            workforce.node_cpus[node.id] = node.cpus;
        }
        return WarmPiece::make(
            spec, topology, workforce,
            [this](std::uint64_t bytes, const std::stop_token& stopped) { pace.wait_after(bytes, stopped); }, token);
    }

    prefault::NumaTopology topology;
    MemoryPoolConfig config;
    std::shared_ptr<StopRequest> stop;
    prefault::Pace pace;
    WarmStock stock;
    UnixListener listener;
};

MemoryPool::MemoryPool(MemoryPoolConfig config) : parts_(std::make_unique<Parts>(std::move(config))) {}

MemoryPool::~MemoryPool() = default;

void MemoryPool::serve() {
    Parts& parts = *parts_;
    std::exception_ptr failure;
    std::jthread maker([&](const std::stop_token& token) {
        try {
            parts.make_pieces(token);
        } catch (...) {
            failure = std::current_exception();
            parts.stop->request_for_failure();
        }
    });
    {
        WarmServer server(parts.stock, {.own_user = ::geteuid(),
                                        .served = [&](const WarmServer::Served& served) { parts.tell(served); }});
        while (!parts.stop->is_requested()) {
            server.turn(parts.listener.fd(), parts.stop->fd(), -1);
        }
    }
    maker.request_stop();
    maker.join();
    if (failure) {
        std::rethrow_exception(failure);
    }
}

void MemoryPool::request_stop() noexcept {
    parts_->stop->request(ExitReason::kStopped);
}

std::size_t MemoryPool::ready_pieces() const {
    return parts_->stock.ready_pieces();
}

bool MemoryPool::is_full() const {
    return parts_->stock.is_full();
}

} // namespace vmm
