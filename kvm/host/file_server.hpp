// Reaches files by their names: in this process, or, if this process may not, through another process that does it.
#pragma once

#include <fcntl.h>
#include <sys/types.h>

#include <span>
#include <string>
#include <vector>

#include "kvm/host/unique_fd.hpp"

namespace vmm {

/// Another process that reaches files and starts programs for this one, as far as it was told to allow it. Each
/// function fails like the system call of the same name, with errno set: EACCES if it is not allowed, EPIPE if the
/// other process has ended.
///
/// Threads: any.
class FileServer {
  public:
    virtual ~FileServer() = default;
    FileServer(const FileServer&) = delete;
    FileServer& operator=(const FileServer&) = delete;

    virtual UniqueFd open_at(int directory, const char* path, int flags, mode_t mode) noexcept = 0;
    virtual bool make_directory_at(int directory, const char* name, mode_t mode) noexcept = 0;
    virtual bool remove_at(int directory, const char* name, int flags) noexcept = 0;
    virtual bool rename_at(int directory, const char* from, const char* to, unsigned flags) noexcept = 0;
    virtual bool sync_directory(int directory) noexcept = 0;
    virtual std::string canonical(const char* path) noexcept = 0;
    virtual bool write_output(const char* path, std::string_view text, std::string& problem) noexcept = 0;
    /// Like pidfd_open(2), for the process that has connected the other end of `socket`, a unix socket.
    virtual UniqueFd open_process_of_peer(int socket) noexcept = 0;

    /// The words and descriptors that a program is started with (vmm/host/child_process.hpp).
    struct Program {
        std::span<const std::string> words; ///< its name or path, and its arguments, the first of which is argv[0]
        std::span<const int> fds;           ///< its descriptors from 0 on; -1: /dev/null for 0 to 2, closed from 3 on
    };
    /// The process that start() has started; its parent is the other process. start() throws Error, "cannot <tried>".
    struct Started {
        pid_t pid = -1;
        UniqueFd pidfd;
    };
    virtual Started start(const Program& program, const std::string& tried) = 0;

  protected:
    FileServer() = default;
};

/// Makes the calling thread, or every thread of the process, use `server` from now on. Null means none. `server` must
/// outlive its use.
void use_file_server_in_this_thread(FileServer* server) noexcept;
void use_file_server(FileServer* server) noexcept;
/// The server that the calling thread must use; null: the thread reaches files itself.
[[nodiscard]] FileServer* file_server() noexcept;

/// These functions do what the system calls of the same name do, through the calling thread's server if it has one.
/// They are for files that are reached after the process has been confined. `directory` may be AT_FDCWD. They fail with
/// errno set.
namespace files {
[[nodiscard]] UniqueFd open_at(int directory, const char* path, int flags, mode_t mode = 0) noexcept;
/// Opens the directory at `path`. Its descriptor can be used to name files in it, and for sync_directory().
[[nodiscard]] UniqueFd open_directory_at(int directory, const char* path, int flags = 0) noexcept;
bool make_directory_at(int directory, const char* name, mode_t mode) noexcept;
bool remove_at(int directory, const char* name, int flags = 0) noexcept;
/// Renames within one directory. `flags` are those of renameat2(2).
bool rename_at(int directory, const char* from, const char* to, unsigned flags = 0) noexcept;
bool sync_directory(int directory) noexcept;
/// Like realpath(3); empty if it fails.
[[nodiscard]] std::string canonical(const char* path) noexcept;
} // namespace files

} // namespace vmm
