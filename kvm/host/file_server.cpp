#include "kvm/host/file_server.hpp"

#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <memory>

namespace vmm {

namespace {
thread_local constinit FileServer* server_of_thread = nullptr;
constinit std::atomic<FileServer*> server_of_process{nullptr};
} // namespace

void use_file_server_in_this_thread(FileServer* server) noexcept {
    server_of_thread = server;
}

void use_file_server(FileServer* server) noexcept {
    server_of_process.store(server);
}

FileServer* file_server() noexcept {
    return server_of_thread != nullptr ? server_of_thread : server_of_process.load();
}

namespace files {

UniqueFd open_at(int directory, const char* path, int flags, mode_t mode) noexcept {
    if (FileServer* const server = file_server()) {
        return server->open_at(directory, path, flags, mode);
    }
    return UniqueFd(::openat(directory, path, flags, mode));
}

UniqueFd open_directory_at(int directory, const char* path, int flags) noexcept {
    // A server does not allow a directory to be listed.
    const int access = file_server() != nullptr ? O_PATH : O_RDONLY;
    return open_at(directory, path, access | O_DIRECTORY | O_CLOEXEC | flags);
}

bool make_directory_at(int directory, const char* name, mode_t mode) noexcept {
    if (FileServer* const server = file_server()) {
        return server->make_directory_at(directory, name, mode);
    }
    return ::mkdirat(directory, name, mode) == 0;
}

bool remove_at(int directory, const char* name, int flags) noexcept {
    if (FileServer* const server = file_server()) {
        return server->remove_at(directory, name, flags);
    }
    return ::unlinkat(directory, name, flags) == 0;
}

bool rename_at(int directory, const char* from, const char* to, unsigned flags) noexcept {
    if (FileServer* const server = file_server()) {
        return server->rename_at(directory, from, to, flags);
    }
    if (flags == 0) {
        return ::renameat(directory, from, directory, to) == 0;
    }
    // glibc has had a function for this call since 2.28; musl has none.
    return ::syscall(SYS_renameat2, directory, from, directory, to, flags) == 0;
}

bool sync_directory(int directory) noexcept {
    if (FileServer* const server = file_server()) {
        return server->sync_directory(directory);
    }
    return ::fsync(directory) == 0;
}

std::string canonical(const char* path) noexcept {
    if (FileServer* const server = file_server()) {
        return server->canonical(path);
    }
    struct Free {
        void operator()(char* text) const noexcept { std::free(text); }
    };
    const std::unique_ptr<char, Free> found(::realpath(path, nullptr));
    return found ? std::string(found.get()) : std::string();
}

} // namespace files

} // namespace vmm
