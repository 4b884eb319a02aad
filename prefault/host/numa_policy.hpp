// The policy that chooses the host's NUMA nodes for guest memory.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "kvm/host/export.hpp"

VMM_API_BEGIN
namespace vmm::prefault {

/// The nodes on which guest memory lies.
struct NumaPolicy {
    enum class Kind {
        kDefault,    ///< by the process's own policy; without one, on the node of the thread that populates it
        kNode,       ///< all on `node`
        kInterleave, ///< page by page in turn over all nodes with memory
        kSplit,      ///< cut into equal contiguous parts, one for each node with memory
    };
    Kind kind = Kind::kDefault;
    unsigned node = 0; ///< for kNode

    friend bool operator==(const NumaPolicy&, const NumaPolicy&) = default;
};

/// The word on the command line: "default", "interleave", "split", or the number of the node.
[[nodiscard]] std::string to_string(const NumaPolicy& policy);
/// The reverse of to_string(); nothing if the text is no such word. A number must be below kMaxNodes;
/// check_numa_policy() says whether there is such a node.
[[nodiscard]] std::optional<NumaPolicy> parse_numa_policy(std::string_view text);

} // namespace vmm::prefault
VMM_API_END
