#include "vmm/bench/contenders.hpp"

#include <map>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"

namespace vmm::bench {

std::string guest_options(const Cell& cell, const RunSettings& settings) {
    return vmm::format("passes={} order={} reader={}", settings.passes, to_string(cell.order),
                       cell.method == Method::kReader ? "one" : "none");
}

Config config_of(const Cell& cell) {
    Config config;
    config.memory_bytes = cell.memory_bytes;
    config.vcpus = cell.vcpus;
    config.page_size = cell.page_size;
    config.prefault.workers = cell.workers;
    if (cell.contender == Contender::kVmm) {
        config.prefault.scope = cell.method == Method::kHost      ? prefault::Scope::kHost
                                : fills_second_level(cell.method) ? prefault::Scope::kAll
                                                                  : prefault::Scope::kNone;
        config.prefault.method = cell.method == Method::kIoctl            ? prefault::Method::kIoctl
                                 : cell.method == Method::kIoctlThenTouch ? prefault::Method::kIoctlThenTouch
                                 : cell.method == Method::kPool           ? prefault::Method::kAuto
                                                                          : prefault::Method::kTouch;
        config.pin = config.prefault.scope == prefault::Scope::kNone ? prefault::Pin::kNone : prefault::Pin::kMlock;
    }
    return config;
}

std::vector<std::string> vmm_words(const Cell& cell, const RunSettings& settings, const std::string& program,
                                   const std::string& report, const std::string& console) {
    const Config config = config_of(cell);
    std::vector<std::string> words{program,
                                   "run",
                                   "--quiet",
                                   "--memory",
                                   std::to_string(cell.memory_bytes),
                                   "--vcpus",
                                   std::to_string(cell.vcpus),
                                   "--page-size",
                                   std::string(vmm::to_string(cell.page_size)),
                                   "--prefault",
                                   std::string(prefault::to_string(config.prefault.scope)),
                                   "--prefault-workers",
                                   std::to_string(cell.workers),
                                   "--cmdline",
                                   guest_options(cell, settings),
                                   "--serial",
                                   console,
                                   "--report",
                                   report};
    if (config.prefault.scope == prefault::Scope::kAll) {
        words.insert(words.end(), {"--prefault-method", std::string(to_string(config.prefault.method))});
    }
    if (cell.method == Method::kPool) {
        words.insert(words.end(), {"--memory-from", settings.pool});
    }
    return words;
}

std::vector<std::string> qemu_words(const Cell& cell, const RunSettings& settings, const std::string& kernel,
                                    const std::string& console) {
    const std::string size = vmm::format("{}M", cell.memory_bytes / kMiB);
    std::string backend = is_from_pool(cell.page_size) ? vmm::format("memory-backend-memfd,hugetlb=on,hugetlbsize={}",
                                                                     vmm::to_string(cell.page_size))
                                                       : "memory-backend-ram";
    backend += ",id=ram,size=" + size;
    if (cell.method == Method::kHost) {
        backend += vmm::format(",prealloc=on,prealloc-threads={}", cell.workers);
    }
    return {settings.qemu,
            "-accel",
            "kvm",
            "-cpu",
            settings.qemu_cpu,
            "-M",
            settings.qemu_machine + ",memory-backend=ram",
            "-object",
            backend,
            "-m",
            size,
            "-smp",
            std::to_string(cell.vcpus),
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-no-shutdown", // the counters are read after the guest has switched itself off
            "-serial",
            "file:" + console,
            "-qmp",
            "stdio",
            "-kernel",
            kernel,
            "-append",
            guest_options(cell, settings)};
}

std::string expand_template(const Cell& cell, const RunSettings& settings, const std::string& kernel) {
    const std::map<std::string, std::string, std::less<>> values{
        {"kernel", kernel},
        {"cmdline", "'" + guest_options(cell, settings) + "'"},
        {"memory_mib", std::to_string(cell.memory_bytes / kMiB)},
        {"memory_bytes", std::to_string(cell.memory_bytes)},
        {"vcpus", std::to_string(cell.vcpus)},
        {"workers", std::to_string(cell.workers)},
        {"page_size", std::string(vmm::to_string(cell.page_size))}};
    std::string text;
    bool names_kernel = false;
    for (std::size_t at = 0; at < settings.command.size();) {
        const std::size_t open = std::min(settings.command.find('{', at), settings.command.size());
        text += settings.command.substr(at, open - at);
        if (open == settings.command.size()) {
            break;
        }
        const std::size_t close = settings.command.find('}', open);
        const std::string name =
            settings.command.substr(open + 1, close == std::string::npos ? close : close - open - 1);
        const auto value = values.find(name);
        if (close == std::string::npos || value == values.end()) {
            throw Error("cannot use the command '" + settings.command + "': there is no {" + name + "}, only " +
                        std::string(kTemplateNames));
        }
        names_kernel = names_kernel || name == "kernel";
        text += value->second;
        at = close + 1;
    }
    if (!names_kernel) {
        throw Error("cannot use the command '" + settings.command + "': it does not name the guest's image, {kernel}");
    }
    return text;
}

} // namespace vmm::bench
