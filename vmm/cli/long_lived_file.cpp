#include "vmm/cli/long_lived_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "kvm/host/error.hpp"
#include "vmm/output/report_file.hpp"

namespace vmm {

namespace {

// With O_NONBLOCK, opening a pipe that nobody reads fails at once and does not wait.
constexpr int kFlags = O_WRONLY | O_APPEND | O_NONBLOCK;

bool is_same_file(const struct stat& one, const struct stat& other) {
    return one.st_dev == other.st_dev && one.st_ino == other.st_ino;
}

} // namespace

LongLivedFile::LongLivedFile(std::string path, std::string tried) : path_(std::move(path)), tried_(std::move(tried)) {
    if (const auto fd = named_descriptor(path_)) {
        file_.reset(::fcntl(*fd, F_DUPFD_CLOEXEC, 0));
        if (!file_) {
            throw_errno(errno, tried_, {{EBADF, "no such descriptor is open"}});
        }
    } else {
        place_.emplace(path_, tried_);
        open_first();
    }
    if (::fstat(file_.get(), &facts_) != 0) {
        throw_errno(errno, tried_);
    }
    check_not_locked(file_.get(), tried_);
    output_.emplace(file_.get());
}

void LongLivedFile::open_first() {
    constexpr int kTries = 4; // Somebody may make and delete the file at the same time.
    for (int i = 0; i < kTries && !file_; ++i) {
        file_ = place_->open(kFlags);
        if (!file_ && errno == ENOENT) {
            file_ = place_->open(kFlags | O_CREAT | O_EXCL);
            created_ = static_cast<bool>(file_);
        }
        if (!file_ && errno != EEXIST && errno != ENOENT) {
            break;
        }
    }
    if (!file_) {
        throw_cannot_open(errno, tried_);
    }
}

LongLivedFile::~LongLivedFile() {
    if (created_ && !kept_) {
        ::unlinkat(place_->directory(), place_->name().c_str(), 0);
    }
}

void LongLivedFile::empty() {
    if (is_regular() && place_) {
        check_not_locked(file_.get(), tried_);
        [[maybe_unused]] const int ignored = ::ftruncate(file_.get(), 0);
    }
}

void LongLivedFile::follow_name() {
    struct stat now {};
    if (!place_ || !place_->has_name() || (::stat(path_.c_str(), &now) == 0 && is_same_file(now, facts_))) {
        return;
    }
    try {
        constexpr mode_t kPermissions = 0777;
        const OutputPlace place(path_, tried_);
        UniqueFd file = place.open(kFlags | O_CREAT, facts_.st_mode & kPermissions);
        if (file && ::fstat(file.get(), &now) == 0 && S_ISREG(now.st_mode)) {
            check_not_locked(file.get(), tried_);
            output_.emplace(file.get());
            file_ = std::move(file);
            facts_ = now;
        }
    } catch (const Error&) { // the old file still takes everything, whatever its name is now
    }
}

NonblockingOutput::Result LongLivedFile::write(std::span<const std::byte> bytes) {
    if (is_regular()) {
        follow_name();
    }
    return output_->write(bytes);
}

} // namespace vmm
