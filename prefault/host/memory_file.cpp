#include "prefault/host/memory_file.hpp"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>

namespace vmm::prefault {

namespace {

unsigned memfd_flags(PageSize page_size) noexcept {
    switch (page_size) {
    case PageSize::k4K:
    case PageSize::kThp:
        break;
    case PageSize::k2M:
        return MFD_HUGETLB | MFD_HUGE_2MB;
    case PageSize::k1G:
        return MFD_HUGETLB | MFD_HUGE_1GB;
    }
    return 0;
}

} // namespace

UniqueFd make_memory_file(const char* name, std::uint64_t bytes, PageSize page_size, int seals) noexcept {
    UniqueFd file(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | memfd_flags(page_size)));
    if (file &&
        (::ftruncate(file.get(), static_cast<off_t>(bytes)) != 0 || ::fcntl(file.get(), F_ADD_SEALS, seals) != 0)) {
        const int error_number = errno;
        file = {};
        errno = error_number;
    }
    return file;
}

} // namespace vmm::prefault
