#include "devices/disk_io.hpp"

#include <utility>

#include "devices/aligned_disk_io.hpp"
#include "devices/thread_disk_io.hpp"
#include "devices/uring_disk_io.hpp"
#include "kvm/host/error.hpp"
#include "kvm/host/event_fd.hpp"

namespace vmm::devices {

std::string_view to_string(DiskIoKind kind) noexcept {
    switch (kind) {
    case DiskIoKind::kAuto:
        return "auto";
    case DiskIoKind::kUring:
        return "uring";
    case DiskIoKind::kThreads:
        return "threads";
    }
    return "auto";
}

DiskIoChoice make_disk_io(const DiskImage& image, unsigned depth, DiskIoKind kind) {
    const DiskFiles files{image.fd(), image.tail_fd(), image.tail_begins()};
    DiskIoChoice choice;
    if (kind != DiskIoKind::kThreads) {
        try {
            choice.io = std::make_unique<UringDiskIo>(files, depth);
        } catch (const UringRefused& refused) {
            if (kind == DiskIoKind::kUring) {
                throw Error(std::string(refused.what()) + ", which \"io=uring\" of the disk " + image.path() +
                            " asks for: without it, threads do the I/O");
            }
            choice.why_threads = refused.what();
        }
    }
    if (!choice.io) {
        choice.io = std::make_unique<ThreadDiskIo>(files, depth, !image.is_direct());
    }
    if (image.offset_alignment() > 1 || image.memory_alignment() > 1) {
        choice.io = std::make_unique<AlignedDiskIo>(
            std::move(choice.io), depth,
            DiskAlignment{image.offset_alignment(), image.memory_alignment(), image.tail_begins()});
    }
    return choice;
}

std::string why_no_uring() {
    try {
        const EventFd any; // A ring accepts every kind of descriptor.
        const UringDiskIo probe({any.fd(), -1, UINT64_MAX}, 1);
        return {};
    } catch (const Error& error) {
        return error.what();
    }
}

} // namespace vmm::devices
