// The files that a run uses, and their roles.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

namespace vmm {

/// Finds a file that has two roles that exclude each other, even under different names, before it is opened for
/// writing: output into the guest's own disk, or a report over the kernel. Two files are the same if they have the same
/// device and inode, after links have been followed. Two block devices are the same if they have the same numbers, and
/// two files that do not exist yet if they have the same directory and name.
///
/// Two readers of a file are allowed. So are all users of a character device (/dev/null, a terminal), writers to one
/// pipe, writers to descriptors that the process was started with, and writers that only append. Threads: one.
class FileRoles {
  public:
    enum class Use { kRead, kWrite, kAppend };
    static constexpr const char* kDisk = "--disk";

    /// Adds a role of a file. `role` is for messages: "--report", "the disk". It opens the file only to look at it. The
    /// name of a descriptor of this process means that descriptor. Throws Error if the file has another role already.
    /// Throws Error, too, if the file is to be written and its path leads over another user's link (OutputPlace).
    void add(Use use, const std::string& role, const std::string& path);
    /// Adds a descriptor that this process was started with. A closed descriptor is ignored.
    void add_descriptor(const std::string& role, int fd);

  private:
    struct File {
        Use use = Use::kRead;
        std::string role;
        std::string path;
        bool is_descriptor = false;
        mode_t mode = 0; ///< 0: not there yet
        dev_t device = 0;
        ino_t inode = 0;  ///< of the file; of its directory if the file does not exist yet
        std::string name; ///< in that directory; empty if the file exists
    };
    static std::optional<File> look_at(const std::string& path, const std::string& role, Use use);
    static bool is_same(const File& one, const File& other);
    static bool go_together(const File& one, const File& other);
    void add(File file);

    std::vector<File> files_;
};

} // namespace vmm
