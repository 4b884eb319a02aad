#include "kvm/system.hpp"

#include <fcntl.h>
#include <sys/ioctl.h>

#include <array>
#include <cerrno>

#include "kvm/ask_advice.hpp"
#include "kvm/host/error.hpp"

namespace vmm::kvm {

namespace {

constexpr std::array kOpenAdvice{
    ErrnoAdvice{ENOENT,
                "load kvm_amd or kvm_intel, switch virtualisation on in the firmware, or enable nested virtualisation"},
    ErrnoAdvice{EACCES, "join the group that owns it: `sudo usermod -aG kvm $USER`, then log in again"},
    ErrnoAdvice{EPERM, "the device rules of a container forbid it: allow it there, as by --device /dev/kvm"},
    ErrnoAdvice{ENODEV, "the KVM module is not loaded: load kvm_amd or kvm_intel"},
    ErrnoAdvice{ENXIO, "the KVM module is not loaded: load kvm_amd or kvm_intel"}};

} // namespace

System::System(const std::string& path) : fd_(::open(path.c_str(), O_RDWR | O_CLOEXEC)) {
    if (!fd_) {
        const int error_number = errno;
        throw_errno(error_number, "open " + path, kOpenAdvice);
    }
    const int version = ::ioctl(fd_.get(), KVM_GET_API_VERSION, 0);
    if (version < 0) {
        throw_errno(errno, "use " + path + " as KVM", kAskAdvice);
    }
    if (version != KVM_API_VERSION) {
        throw Error("cannot use " + path + ": it speaks KVM API version " + std::to_string(version) + ", we speak " +
                    std::to_string(KVM_API_VERSION));
    }
}

int System::extension(int capability) const noexcept {
    const int answer = ::ioctl(fd_.get(), KVM_CHECK_EXTENSION, capability);
    return answer < 0 ? 0 : answer;
}

unsigned System::max_vcpus() const noexcept {
    // Without KVM_CAP_MAX_VCPUS the limit is KVM_CAP_NR_VCPUS, without that it is 4 (api.rst, 4.7 KVM_CREATE_VCPU).
    if (const int most = extension(KVM_CAP_MAX_VCPUS); most > 0) {
        return static_cast<unsigned>(most);
    }
    const int recommended = extension(KVM_CAP_NR_VCPUS);
    return recommended > 0 ? static_cast<unsigned>(recommended) : 4U;
}

unsigned System::max_vcpu_ids() const noexcept {
    const int ids = extension(KVM_CAP_MAX_VCPU_ID);
    return ids > 0 ? static_cast<unsigned>(ids) : max_vcpus();
}

std::size_t System::vcpu_mmap_bytes() const {
    const int size = ::ioctl(fd_.get(), KVM_GET_VCPU_MMAP_SIZE, 0);
    if (size < 0 || static_cast<std::size_t>(size) < sizeof(kvm_run)) {
        throw_errno(size < 0 ? errno : EINVAL, "ask KVM for the size of a vCPU's shared area", kAskAdvice);
    }
    return static_cast<std::size_t>(size);
}

} // namespace vmm::kvm
