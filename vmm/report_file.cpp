#include "vmm/report_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <utility>

#include "kvm/error.hpp"
#include "kvm/unique_fd.hpp"

namespace vmm {

namespace {

/// False with errno set where not everything was written.
bool write_all(int fd, std::string_view text) {
    while (!text.empty()) {
        const ssize_t written = ::write(fd, text.data(), text.size());
        if (written < 0 && errno != EINTR) {
            return false;
        }
        text.remove_prefix(written > 0 ? static_cast<std::size_t>(written) : 0);
    }
    return true;
}

std::string directory_of(const std::string& path) {
    const auto directory = std::filesystem::path(path).parent_path();
    return directory.empty() ? "." : directory.string();
}

/// The file that `path` leads to, so that a link still is one afterwards. It need not be there yet.
std::string follow_links(std::string path) {
    constexpr int kMostLinks = 40; // as the kernel's own limit (path_resolution(7))
    std::error_code failed;
    for (int i = 0; i < kMostLinks; ++i) {
        const auto target = std::filesystem::read_symlink(path, failed);
        if (failed) {
            break;
        }
        path = (std::filesystem::path(path).parent_path() / target).string();
    }
    return path;
}

mode_t creation_mode() {
    const mode_t mask = ::umask(0);
    ::umask(mask);
    return 0666 & ~mask;
}

} // namespace

ReportFile::ReportFile(std::string path) : path_(std::move(path)) {
    struct stat facts {};
    if (::stat(path_.c_str(), &facts) == 0) {
        if (S_ISDIR(facts.st_mode)) {
            throw_errno(EISDIR, "write the report to " + path_);
        }
        in_place_ = !S_ISREG(facts.st_mode);
        if (::access(path_.c_str(), W_OK) != 0) {
            throw_errno(errno, "write the report to " + path_);
        }
    }
    if (!in_place_) {
        path_ = follow_links(path_);
    }
    if (!in_place_ && ::access(directory_of(path_).c_str(), W_OK | X_OK) != 0) {
        throw_errno(errno, "write the report to " + path_, "its directory must exist and be writable");
    }
}

void ReportFile::write(std::string_view text) const {
    if (in_place_) {
        const UniqueFd fd(::open(path_.c_str(), O_WRONLY | O_CLOEXEC));
        if (!fd || !write_all(fd.get(), text)) {
            throw_errno(errno, "write the report to " + path_);
        }
        return;
    }
    std::string temporary = path_ + ".XXXXXX";
    const UniqueFd fd(::mkostemp(temporary.data(), O_CLOEXEC));
    if (!fd) {
        throw_errno(errno, "write the report to " + path_);
    }
    if (!write_all(fd.get(), text) || ::fchmod(fd.get(), creation_mode()) != 0 ||
        ::rename(temporary.c_str(), path_.c_str()) != 0) {
        const int error_number = errno;
        ::unlink(temporary.c_str());
        throw_errno(error_number, "write the report to " + path_);
    }
}

} // namespace vmm
