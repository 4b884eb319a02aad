#include "vmm/cli/pool_options.hpp"

#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "kvm/host/error.hpp"
#include "prefault/host/numa_policy.hpp"
#include "vmm/cli/given.hpp"
#include "vmm/cli/values.hpp"

namespace vmm {

namespace {

Option size(std::string names, std::string form, std::string help, std::function<void(Given&, std::uint64_t)> set) {
    return text(std::move(names), {.kind = OptionValue::Kind::kText, .form = std::move(form)}, std::move(help),
                [set = std::move(set)](Given& given, const std::string& word) {
                    const auto bytes = parse_size(word);
                    if (!bytes) {
                        throw Error("'" + word + "' is no size (a whole number and K, M, G or T)");
                    }
                    set(given, *bytes);
                });
}

} // namespace

std::vector<Option> pool_options() {
    using prefault::NumaPolicy;
    std::vector<Option> rows{
        file("--socket", "The unix socket at which guests get memory: their --memory-from",
             [](Given& given, const std::string& path) { given.pool.config.path = path; })
            .setting("path")
            .required(),
        size("--size", "SIZE", "How much memory is kept ready",
             [](Given& given, std::uint64_t bytes) { given.pool.config.size_bytes = bytes; })
            .setting("size_bytes")
            .required(),
        size("--piece", "SIZE", "The size of each piece",
             [](Given& given, std::uint64_t bytes) { given.pool.config.piece_bytes = bytes; })
            .setting("piece_bytes")
            .with_standard(size_text(MemoryPoolConfig{}.piece_bytes)),
        choice<PageSize>("--page-size", {kPageSizes.begin(), kPageSizes.end()},
                         "Pages of the memory; 2M and 1G: huge page pool; thp: shared memory with huge pages",
                         [](Given& given, PageSize page_size) { given.pool.config.page_size = page_size; })
            .setting("page_size")
            .with_standard(std::string(to_string(MemoryPoolConfig{}.page_size))),
        choice<NumaPolicy>("--numa", {NumaPolicy{NumaPolicy::Kind::kSplit}},
                           "As many pieces on each NUMA node, for guests with --numa split or --numa-node",
                           [](Given& given, NumaPolicy) { given.pool.config.split_over_nodes = true; })
            .setting("split_over_nodes"),
        size("--bandwidth", "SIZE", "How much memory is made in a second at most",
             [](Given& given, std::uint64_t bytes) { given.pool.config.bytes_per_second = bytes; })
            .setting("bytes_per_second"),
        number("--workers", {1, prefault::kMaxWorkers}, "Threads that make memory, at low priority",
               [](Given& given, unsigned workers) { given.pool.config.workers = workers; })
            .setting("workers")
            .with_standard(std::to_string(MemoryPoolConfig{}.workers)),
        flag("-q,--quiet", "Say nothing but errors", [](Given& given, bool quiet) { given.pool.quiet = quiet; }),
    };
    for (Option& row : rows) {
        row.places = {Place::kPool};
    }
    return rows;
}

} // namespace vmm
