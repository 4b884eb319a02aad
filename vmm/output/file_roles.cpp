#include "vmm/output/file_roles.hpp"

#include <fcntl.h>
#include <sys/stat.h>

#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/unique_fd.hpp"
#include "vmm/output/output_place.hpp"
#include "vmm/output/report_file.hpp"

namespace vmm {

std::optional<FileRoles::File> FileRoles::look_at(const std::string& path, const std::string& role, Use use) {
    File file;
    file.path = path;
    struct stat facts {};
    std::optional<OutputPlace> place;
    if (use != Use::kRead) {
        try {
            place.emplace(path, "write to " + path + " (" + role + ")");
        } catch (const ForeignLink&) {
            throw;
        } catch (const Error&) { // the code that writes the file reports the error
            return std::nullopt;
        }
    }
    if (::stat(path.c_str(), &facts) == 0) {
        file.mode = facts.st_mode;
        file.device = S_ISBLK(facts.st_mode) ? facts.st_rdev : facts.st_dev;
        file.inode = S_ISBLK(facts.st_mode) ? 0 : facts.st_ino;
        return file;
    }
    if (!place || ::fstat(place->directory(), &facts) != 0) {
        return std::nullopt; // the code that reads the file reports the error
    }
    file.device = facts.st_dev;
    file.inode = facts.st_ino;
    file.name = place->name();
    return file;
}

bool FileRoles::is_same(const File& one, const File& other) {
    return one.device == other.device && one.inode == other.inode && one.name == other.name &&
           S_ISBLK(one.mode) == S_ISBLK(other.mode);
}

bool FileRoles::go_together(const File& one, const File& other) {
    const bool both_write = one.use != Use::kRead && other.use != Use::kRead;
    return (one.use == Use::kRead && other.use == Use::kRead) ||
           (one.use == Use::kAppend && other.use == Use::kAppend) || (one.is_descriptor && other.is_descriptor) ||
           S_ISCHR(one.mode) || (S_ISFIFO(one.mode) && both_write);
}

void FileRoles::add(File file) {
    for (const File& other : files_) {
        if (is_same(file, other) && !go_together(file, other)) {
            if (file.role == kDisk && other.role == kDisk) {
                throw Error("cannot use the disk " + file.path +
                            ": another disk of this guest uses it (only readers can share a disk: \",ro\" for each)");
            }
            throw Error("cannot use " + file.path + " for " + file.role + ": " + other.role +
                        (other.path == file.path ? "" : " (" + other.path + ")") +
                        " has the same file (name another one for one of them)");
        }
    }
    files_.push_back(std::move(file));
}

void FileRoles::add(Use use, const std::string& role, const std::string& path) {
    if (const auto fd = named_descriptor(path); fd && use != Use::kRead) {
        add_descriptor(role, *fd);
        return;
    }
    if (std::optional<File> file = look_at(path, role, use)) {
        file->use = use;
        file->role = role;
        add(std::move(*file));
    }
}

void FileRoles::add_descriptor(const std::string& role, int fd) {
    struct stat facts {};
    const int flags = ::fcntl(fd, F_GETFL);
    if (flags < 0 || ::fstat(fd, &facts) != 0) {
        return;
    }
    File file;
    file.use = (flags & O_APPEND) != 0 ? Use::kAppend : Use::kWrite;
    file.role = role;
    file.path = "descriptor " + std::to_string(fd);
    file.is_descriptor = true;
    file.mode = facts.st_mode;
    file.device = S_ISBLK(facts.st_mode) ? facts.st_rdev : facts.st_dev;
    file.inode = S_ISBLK(facts.st_mode) ? 0 : facts.st_ino;
    add(std::move(file));
}

} // namespace vmm
