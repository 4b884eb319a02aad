// The place of an output file, after the links of its path have been followed.
#pragma once

#include <sys/stat.h>

#include <string>

#include "kvm/host/error.hpp"
#include "kvm/host/unique_fd.hpp"

namespace vmm {

/// Thrown if a path leads over a link that belongs to another user.
class ForeignLink : public Error {
  public:
    using Error::Error;
};

/// A directory, and a name in it. A link that belongs to neither this user nor root is refused anywhere in the path,
/// because its owner could direct the output to any file of this user. The directory is then held open. If the name
/// becomes a link later, that link is not followed. Threads: one.
class OutputPlace {
  public:
    /// `tried` is for messages: "write the report to r.json". The file itself need not exist. Throws Error if a
    /// directory of the path does not exist or may not be entered, and ForeignLink if a link is refused.
    OutputPlace(const std::string& path, const std::string& tried);

    /// Calls open(2) with `flags`, and with `mode` if it makes the file. If the result is empty, errno is set.
    [[nodiscard]] UniqueFd open(int flags, mode_t mode = 0666) const noexcept;
    /// The directory, on loan, for the calls whose names end in "at".
    [[nodiscard]] int directory() const noexcept { return directory_.get(); }
    [[nodiscard]] const std::string& name() const noexcept { return name_; }
    /// Whether the last part of the path is no link. Then the directory is the one that the user named.
    [[nodiscard]] bool is_named_itself() const noexcept { return named_itself_; }
    /// Whether the file has a name at all. A file behind /proc/self/fd has none.
    [[nodiscard]] bool has_name() const noexcept { return !by_descriptor_; }

  private:
    [[nodiscard]] bool find_without_links(const std::string& path);
    void walk(const std::string& path, const std::string& tried);

    UniqueFd directory_;
    std::string name_;
    bool named_itself_ = true;
    bool by_descriptor_ = false; ///< the name is a link of procfs, which only the kernel can follow
};

/// Throws Error if another process, or a disk of this one, has a lock on `fd`, because the output would go into
/// somebody's disk. `fd` is open for writing. It does nothing if `fd` is neither a file nor a block device.
void check_not_locked(int fd, const std::string& tried);

/// Throws Error "cannot <tried>: ..." for the errno of opening a file for writing.
[[noreturn]] void throw_cannot_open(int error_number, const std::string& tried);

} // namespace vmm
