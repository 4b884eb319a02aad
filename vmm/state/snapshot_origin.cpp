#include <sys/utsname.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>

#include "vmm/machine/x86/cpuid.hpp"
#include "vmm/state/snapshot_state.hpp"
#include "vmm/version.hpp"

namespace vmm {

namespace {

/// The text in registers of CPUID, without its padding.
std::string text_of(std::span<const std::uint32_t> registers) {
    std::string text(registers.size_bytes(), '\0');
    std::memcpy(text.data(), registers.data(), registers.size_bytes());
    text.resize(std::strlen(text.c_str()));
    text.erase(0, std::min(text.find_first_not_of(' '), text.size()));
    text.erase(text.find_last_not_of(' ') + 1);
    return text;
}

} // namespace

SnapshotOrigin origin_here() {
    constexpr std::size_t kMostBytes = 64;
    SnapshotOrigin origin;
    origin.created_at =
        std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
    origin.vmm_version = kVersion;
    utsname names{};
    if (::uname(&names) == 0) {
        origin.kernel_release = std::string(names.release).substr(0, kMostBytes);
    }
    origin.cpu_vendor = text_of(host_cpu_vendor());
    origin.cpu_model = text_of(host_cpu_brand());
    return origin;
}

} // namespace vmm
