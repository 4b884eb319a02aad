// Which files a run uses, and for what.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

namespace vmm {

/// Finds out that one file is used for two things that do not go together, by whatever names, before any of them is
/// opened for writing: output into the guest's own disk, a report over the kernel it was made with. Files are the same
/// where device and inode are (of a block device: its number), after links have been followed; files that are not there
/// yet, where directory and name are.
///
/// Two readers go together. So do all who use a character device (/dev/null, a terminal), writers to one pipe, those
/// who write to descriptors that we were started with, and those who only append. Threads: one.
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
        std::string name; ///< in that directory; empty where the file is there
    };
    static std::optional<File> look_at(const std::string& path, const std::string& role, Use use);
    static bool is_same(const File& one, const File& other);
    static bool go_together(const File& one, const File& other);
    void add(File file);

    std::vector<File> files_;
};

} // namespace vmm
