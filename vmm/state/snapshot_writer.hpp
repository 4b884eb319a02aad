// A snapshot's directory while it is written.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "kvm/host/unique_fd.hpp"

namespace vmm {

/// Makes a snapshot's directory under a temporary name, in the directory in which it is to be. commit() completes it
/// and gives it its name. If commit() is not called, or throws, the destructor removes all of it.
///
/// Directories have mode 0700, files 0600. Threads: one at a time; the memory file may be written by any.
class SnapshotWriter {
  public:
    /// Throws Error in the cases in which the constructor would: `directory` exists, or its parent does not, or cannot
    /// be written. It creates nothing.
    static void check_place(const std::filesystem::path& directory);

    /// Throws Error if `directory` exists, or if its parent does not exist or cannot be written.
    explicit SnapshotWriter(const std::filesystem::path& directory);
    ~SnapshotWriter();
    SnapshotWriter(const SnapshotWriter&) = delete;
    SnapshotWriter& operator=(const SnapshotWriter&) = delete;

    /// The memory file, on loan, open for reading and writing. It is empty at first. The code that writes it must set
    /// its size (MemoryLayout::file_bytes()) and leave out what is zero.
    [[nodiscard]] int memory_fd() const noexcept { return memory_.get(); }
    /// Opens the same file once more, with `flags` beside O_RDWR, such as O_DIRECT. Returns nothing if the file system
    /// cannot open files in this way. Throws Error.
    [[nodiscard]] UniqueFd open_memory(int flags) const;

    /// Writes the other files (`state` is that of encode_state(), `config` the text of config.json), waits until
    /// everything is on the disk, and gives the directory its name. It may be called once. Throws Error if the file
    /// system is full or fails, or if a file of that name exists by now.
    void commit(std::span<const std::byte> state, std::string_view config);

  private:
    /// The path that the file `name` will have after commit(), for messages.
    [[nodiscard]] std::string path_of(const char* name) const;
    [[nodiscard]] UniqueFd create(const char* name) const;
    void write_file(const char* name, std::span<const std::byte> content) const;
    static void sync(int fd, const std::string& path);
    void sync_directory(int fd) const;
    void remove() noexcept;

    std::filesystem::path directory_;
    std::string name_; ///< its name in the parent; empty once all is done
    UniqueFd parent_;
    UniqueFd partial_; ///< the directory itself
    UniqueFd memory_;
};

} // namespace vmm
