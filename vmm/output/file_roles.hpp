// The files that a run uses, and what it uses them for.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

namespace vmm {

/// Finds one file that is used for two things that do not go together, under whatever names, before it is opened for
/// writing: output into the guest's own disk, or a report over the kernel. Two files are the same if their device and
/// inode are, after links have been followed; two block devices, if their numbers are; two files that do not exist yet,
/// if directory and name are.
///
/// Two readers go together. So do all users of a character device (/dev/null, a terminal), writers to one pipe, writers
/// to descriptors that the process was started with, and writers that only append. Threads: one.
class FileRoles {
  public:
    enum class Use { kRead, kWrite, kAppend };
    static constexpr const char* kDisk = "--disk";

    /// `role` is for messages: "--report", "the disk". Opens nothing but for looking at it. A name of a descriptor of
    /// ours counts as that descriptor. Throws Error: the file has another role already; or it is to be written, and its
    /// path leads over another user's link (OutputPlace).
    void add(Use use, const std::string& role, const std::string& path);
    /// A descriptor that we were started with. Nothing is known of one that is closed.
    void add_descriptor(const std::string& role, int fd);

  private:
    struct File {
        Use use = Use::kRead;
        std::string role;
        std::string path;
        bool is_descriptor = false;
        mode_t mode = 0; ///< 0: not there yet
        dev_t device = 0;
        ino_t inode = 0;  ///< of the file, or of its directory where it is not there yet
        std::string name; ///< in that directory; empty if the file is there
    };
    static std::optional<File> look_at(const std::string& path, const std::string& role, Use use);
    static bool is_same(const File& one, const File& other);
    static bool go_together(const File& one, const File& other);
    void add(File file);

    std::vector<File> files_;
};

} // namespace vmm
