// The place of a file that is written, after the links of its path have been followed.
#pragma once

#include <sys/stat.h>

#include <string>

#include "kvm/host/error.hpp"
#include "kvm/host/unique_fd.hpp"

namespace vmm {

/// A path leads over a link that belongs to another user.
class ForeignLink : public Error {
  public:
    using Error::Error;
};

/// A directory, and a name in it. A link that belongs to neither this user nor root is refused, wherever it stands in
/// the path: its owner could lead us to any file of ours. Once found, the directory is held, and the name in it is not
/// followed again if it becomes a link. Threads: one.
class OutputPlace {
  public:
    /// `tried` is for messages: "write the report to r.json". Throws Error: a directory of the path is not there or not
    /// ours to enter; ForeignLink: a link is refused. What is named need not be there.
    OutputPlace(const std::string& path, const std::string& tried);

    /// open(2) with `flags` and, where it makes the file, `mode`. Sets errno if the result is empty.
    [[nodiscard]] UniqueFd open(int flags, mode_t mode = 0666) const noexcept;
    /// The directory, on loan, for the calls whose names end in "at".
    [[nodiscard]] int directory() const noexcept { return directory_.get(); }
    [[nodiscard]] const std::string& name() const noexcept { return name_; }
    /// Whether the last part of the path was itself no link: the directory is the one that the user named.
    [[nodiscard]] bool is_named_itself() const noexcept { return named_itself_; }
    /// Whether the file has a name at all: one behind /proc/self/fd has not.
    [[nodiscard]] bool has_name() const noexcept { return !by_descriptor_; }

  private:
    [[nodiscard]] bool find_without_links(const std::string& path);
    void walk(const std::string& path, const std::string& tried);

    UniqueFd directory_;
    std::string name_;
    bool named_itself_ = true;
    bool by_descriptor_ = false; ///< the name is a link of procfs, which only the kernel can follow
};

/// Throws Error if another process, or a disk of this one, has a lock on `fd`: what is written there would go into
/// somebody's disk. `fd` is open for writing. Nothing happens for what is neither a file nor a block device.
void check_not_locked(int fd, const std::string& tried);

/// Throws Error "cannot <tried>: ..." for a value of errno that opening a file for writing gave.
[[noreturn]] void throw_cannot_open(int error_number, const std::string& tried);

} // namespace vmm
