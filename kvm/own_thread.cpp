#include "kvm/own_thread.hpp"

#include <filesystem>
#include <vector>

#include "kvm/host/thread_rights.hpp"

namespace vmm::kvm {

std::string own_thread_advice(const CgroupRoots& roots) {
    const std::string text = "KVM cannot start a thread of its own, which counts among this program's: ";
    for (const CgroupLineage& lineage :
         may_open_files() ? cgroup_lineages("pids", roots) : std::vector<CgroupLineage>{}) {
        for (const std::filesystem::path& folder : lineage.folders) {
            const auto most = read_cgroup_number(folder / "pids.max");
            const auto now = read_cgroup_number(folder / "pids.current");
            if (most && now && *now >= *most) {
                return text + "the pids cgroup " + folder.string() + " allows " + std::to_string(*most) +
                       " tasks, raise its pids.max";
            }
        }
    }
    return text + "raise pids.max of its pids cgroup, or `ulimit -u`";
}

} // namespace vmm::kvm
