#include "vmm/cli/serial_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "kvm/error.hpp"

namespace vmm {

SerialFile::SerialFile(const std::string& path) : path_(path) {
    constexpr int kFlags = O_WRONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
    fd_.reset(::open(path.c_str(), kFlags | O_CREAT | O_EXCL, 0666));
    created_ = static_cast<bool>(fd_);
    if (!fd_ && errno == EEXIST) {
        fd_.reset(::open(path.c_str(), kFlags | O_CREAT, 0666));
    }
    if (!fd_) {
        const int error_number = errno;
        throw_errno(error_number, "write serial output to " + path,
                    error_number == ENXIO ? "it is a pipe that nobody reads yet" : "");
    }
}

SerialFile::~SerialFile() {
    if (created_ && !kept_) {
        ::unlink(path_.c_str());
    }
}

void SerialFile::keep() noexcept {
    kept_ = true;
    [[maybe_unused]] const int ignored = ::ftruncate(fd_.get(), 0); // What is no regular file has no length.
}

} // namespace vmm
