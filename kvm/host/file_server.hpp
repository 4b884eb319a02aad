// How files are reached by their names: by this process, or, if that may not, by another one that does it for it.
#pragma once

#include <fcntl.h>
#include <sys/types.h>

#include <span>
#include <string>
#include <vector>

#include "kvm/host/unique_fd.hpp"

namespace vmm {

/// Another process, which reaches files and starts programs for this one, as far as it was told to. Each call fails as
/// the system call would that it is named after, with errno set: EACCES if it is not allowed, EPIPE if the other
/// process has ended.
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
    /// As pidfd_open(2), of the process that has connected the other end of `socket`, a unix socket.
    virtual UniqueFd open_process_of_peer(int socket) noexcept = 0;

    /// What a program is started with (vmm/host/child_process.hpp).
    struct Program {
        std::span<const std::string> words; ///< its name or path, and its arguments with their first
        std::span<const int> fds;           ///< its descriptors from 0 on; -1: /dev/null, or nothing from 3 on
    };
    /// Returns its process, whose parent is the other process. Throws Error, "cannot <tried>".
    struct Started {
        pid_t pid = -1;
        UniqueFd pidfd;
    };
    virtual Started start(const Program& program, const std::string& tried) = 0;

  protected:
    FileServer() = default;
};

/// Has the calling thread use `server` from now on, or every thread of the process; null: none. It outlives its use.
void use_file_server_in_this_thread(FileServer* server) noexcept;
void use_file_server(FileServer* server) noexcept;
/// The one that the calling thread is to use; null: it reaches files itself.
[[nodiscard]] FileServer* file_server() noexcept;

/// These do what the calls do that they are named after, by the calling thread's server if it has one. They are for
/// what is reached after a process has been confined. `directory` may be AT_FDCWD. They fail with errno set.
namespace files {
[[nodiscard]] UniqueFd open_at(int directory, const char* path, int flags, mode_t mode = 0) noexcept;
/// The directory at `path`: its files can be named by the descriptor, and sync_directory() takes it.
[[nodiscard]] UniqueFd open_directory_at(int directory, const char* path, int flags = 0) noexcept;
bool make_directory_at(int directory, const char* name, mode_t mode) noexcept;
bool remove_at(int directory, const char* name, int flags = 0) noexcept;
/// Within one directory. `flags` are those of renameat2(2).
bool rename_at(int directory, const char* from, const char* to, unsigned flags = 0) noexcept;
bool sync_directory(int directory) noexcept;
/// As realpath(3); empty: it fails.
[[nodiscard]] std::string canonical(const char* path) noexcept;
} // namespace files

} // namespace vmm
