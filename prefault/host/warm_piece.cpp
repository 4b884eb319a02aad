#include "prefault/host/warm_piece.hpp"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/mapping.hpp"
#include "prefault/host/memory_file.hpp"
#include "prefault/host/numa.hpp"
#include "prefault/host/populate.hpp"
#include "prefault/host/workforce.hpp"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010 // Linux 5.1
#endif

namespace vmm::prefault {

namespace {

constexpr int kSizeSeals = F_SEAL_SHRINK | F_SEAL_GROW;
/// The seals that the owner of a piece adds. After F_SEAL_SEAL no seal can be added, so only one process can be the
/// first.
constexpr int kOwnerSeals = F_SEAL_FUTURE_WRITE | F_SEAL_SEAL;
constexpr std::uint64_t kBlockBytes = 512; ///< of st_blocks (stat(2))

std::string warm_memory(std::uint64_t bytes, PageSize page_size) {
    return format_bytes(bytes) + " of warm memory (" + std::string(to_string(page_size)) + " pages)";
}

[[noreturn]] void throw_make_error(int error_number, const WarmPiece::Spec& spec) {
    const bool from_pool = is_from_pool(spec.page_size);
    throw_errno(
        error_number, "make " + warm_memory(spec.bytes, spec.page_size),
        {{ENOMEM, from_pool ? "the host's pool of huge pages has too few free: raise vm.nr_hugepages, or wait "
                              "until a guest has ended"
                            : "free some memory, or raise the limit of the control group"},
         {ENODEV, "this host has no pages of that size: take another MemoryPoolConfig::page_size"},
         {EINVAL,
          "this host has no pages of that size, or Linux is older than 5.14: take another MemoryPoolConfig::page_size"},
         {ENOENT, "this host has no pages of that size: take another MemoryPoolConfig::page_size"},
         {EPERM, "the limit on locked memory, a seccomp filter or a security module forbids it"}});
}

UniqueFd make_file(const WarmPiece::Spec& spec) {
    UniqueFd file = make_memory_file("vmm-warm", spec.bytes, spec.page_size, F_SEAL_GROW);
    if (!file) {
        throw_make_error(errno, spec);
    }
    return file;
}

Mapping map_file(int fd, std::uint64_t bytes, PageSize page_size) {
    Mapping mapping = Mapping::reserve(bytes, std::max(2 * kMiB, largest_page_bytes(page_size)), "warm memory");
    mapping.put_file(0, fd, 0, bytes, "warm memory");
    if (!is_from_pool(page_size)) { // A kernel without transparent huge pages knows neither advice, and needs none.
        ::madvise(mapping.data(), mapping.size(), page_size == PageSize::kThp ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    }
    return mapping;
}

std::uint64_t existing_bytes(int fd) {
    struct stat file {};
    return ::fstat(fd, &file) == 0 ? static_cast<std::uint64_t>(file.st_blocks) * kBlockBytes : 0;
}

/// The reason why `fd` is not memory of `page_size`; empty if it is.
std::string why_not_memory(int fd, PageSize page_size) {
    struct stat file {};
    struct statfs system {};
    if (::fstat(fd, &file) != 0 || !S_ISREG(file.st_mode) || ::fstatfs(fd, &system) != 0) {
        return "it is no file in memory";
    }
    if (is_from_pool(page_size)) {
        if (system.f_type != HUGETLBFS_MAGIC) {
            return "it is no file of huge pages";
        }
        if (static_cast<std::uint64_t>(system.f_bsize) != certain_page_bytes(page_size)) {
            return "it is of pages of " + format_bytes(static_cast<std::uint64_t>(system.f_bsize));
        }
        return {};
    }
    return system.f_type == TMPFS_MAGIC ? "" : "it is no file of shared memory";
}

} // namespace

WarmPiece::WarmPiece(const Spec& spec) : file_(make_file(spec)), bytes_(spec.bytes), node_(spec.node) {}

WarmPiece::WarmPiece(UniqueFd file, std::uint64_t bytes, PageSize page_size, std::optional<unsigned> node)
    : file_(std::move(file)), bytes_(bytes), node_(node), is_sealed_(true) {
    const int fd = file_.get();
    const int flags = ::fcntl(fd, F_GETFL);
    if (flags < 0 || (flags & O_ACCMODE) != O_RDWR || (flags & O_PATH) != 0) {
        throw Error("it cannot be read and written");
    }
    if (const std::string why = why_not_memory(fd, page_size); !why.empty()) {
        throw Error(why);
    }
    // The seals are checked before the size, because the size cannot change after that.
    const int seals = ::fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & kSizeSeals) != kSizeSeals) {
        throw Error("its size is not sealed");
    }
    if ((seals & (F_SEAL_WRITE | kOwnerSeals)) != 0) {
        throw Error("it was handed out before");
    }
    struct stat facts {};
    if (bytes == 0 || !is_aligned(bytes, certain_page_bytes(page_size)) || ::fstat(fd, &facts) != 0 ||
        facts.st_size < 0 || static_cast<std::uint64_t>(facts.st_size) != bytes) {
        throw Error("it has another size than was said");
    }
}

void WarmPiece::claim() {
    assert(file_);
    if (::fcntl(file_.get(), F_ADD_SEALS, kOwnerSeals) != 0) {
        const int error_number = errno;
        throw Error(error_number == EPERM    ? "it was handed out to another process, too"
                    : error_number == EINVAL ? "this kernel cannot seal it (Linux 5.1)"
                                             : "it cannot be sealed: " + errno_reason(error_number));
    }
    if (existing_bytes(file_.get()) < bytes_) { // Nobody can take pages out of it any more.
        throw Error("not all of its pages exist");
    }
    file_.reset();
}

std::optional<WarmPiece>
WarmPiece::make(const Spec& spec, const NumaTopology& topology, const Workforce& workforce,
                const std::function<void(std::uint64_t bytes, const std::stop_token& stop)>& after_chunk,
                const std::stop_token& stop) {
    WarmPiece piece(spec);
    const Mapping mapping = map_file(piece.fd(), spec.bytes, spec.page_size);
    // Here, guest addresses are offsets in the piece.
    const MemoryRegion region{{GuestAddress{0}, spec.bytes}, mapping.data()};
    const PlacedRange placed{region.range, spec.node};
    const NumaPolicy policy =
        spec.node ? NumaPolicy{NumaPolicy::Kind::kNode, *spec.node} : NumaPolicy{NumaPolicy::Kind::kDefault};
    bind_memory(std::span(&region, 1), std::span(&placed, 1), policy, topology);
    // fallocate() is not used, because it leaves the clearing of shared memory to the first access (mm/shmem.c,
    // SGP_FALLOC).
    const std::uint64_t chunk_bytes = host_chunk_bytes(spec.page_size, spec.bytes, workforce.workers);
    const bool made =
        for_each_chunk(std::span(&placed, 1), chunk_bytes, workforce, Stage::kHost, "pool", stop,
                       [&](unsigned, GuestRange chunk, const std::stop_token& crew_stop) {
                           const auto bytes = mapping.bytes().subspan(to_integer(chunk.base), chunk.size);
                           if (const int error_number = populate_bytes(bytes, crew_stop); error_number != 0) {
                               if (crew_stop.stop_requested()) {
                                   return false;
                               }
                               // EFAULT means that promised huge pages are gone.
                               throw_make_error(error_number == EFAULT ? ENOMEM : error_number, spec);
                           }
                           after_chunk(chunk.size, crew_stop);
                           return true;
                       });
    return made ? std::optional(std::move(piece)) : std::nullopt;
}

void WarmPiece::cut_and_seal(std::uint64_t bytes) {
    assert(bytes != 0 && bytes <= bytes_);
    if ((bytes != bytes_ && ::ftruncate(file_.get(), static_cast<off_t>(bytes)) != 0) ||
        ::fcntl(file_.get(), F_ADD_SEALS, F_SEAL_SHRINK) != 0) {
        throw_errno(errno, "cut a piece of warm memory to " + format_bytes(bytes));
    }
    bytes_ = bytes;
    is_sealed_ = true;
}

void check_warm_page_size(PageSize page_size) {
    const WarmPiece::Spec spec{largest_page_bytes(page_size), page_size};
    const UniqueFd file = make_file(spec);
    if (page_size != PageSize::kThp) {
        return;
    }
    // If the kernel gives huge pages to shared memory, the first touch of a page makes 2 MiB exist. If memory is
    // fragmented, there may be no huge page at the moment.
    constexpr int kTries = 3;
    for (int i = 0; i < kTries; ++i) {
        const UniqueFd probe = make_file(spec);
        const Mapping mapping = map_file(probe.get(), spec.bytes, page_size);
        if (populate_bytes(mapping.bytes().first(kSmallPageBytes), {}) == 0 &&
            existing_bytes(probe.get()) >= spec.bytes) {
            return;
        }
    }
    throw Error(
        "cannot make warm memory of transparent huge pages: this host gives none to shared memory (write "
        "`advise` to /sys/kernel/mm/transparent_hugepage/shmem_enabled, or take MemoryPoolConfig::page_size=2M)");
}

} // namespace vmm::prefault
