// A snapshot's directory while it is written.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "kvm/host/unique_fd.hpp"

namespace vmm {

/// Makes a snapshot's directory beside where it is to be, under a temporary name. commit() gives it its name, and it is
/// whole then. If commit() is not called, or throws, the destructor removes all of it.
///
/// Directories have mode 0700, files 0600. Threads: one at a time; the memory file is written by any.
class SnapshotWriter {
  public:
    /// Throws Error if the constructor would: `directory` exists, or its parent does not, or cannot be written. Creates
    /// nothing.
    static void check_place(const std::filesystem::path& directory);

    /// Throws Error: `directory` exists, or its parent does not, or cannot be written.
    explicit SnapshotWriter(const std::filesystem::path& directory);
    ~SnapshotWriter();
    SnapshotWriter(const SnapshotWriter&) = delete;
    SnapshotWriter& operator=(const SnapshotWriter&) = delete;

    /// The memory file, on loan, open to read and to write. It is empty at first. Whoever writes it sets its size
    /// (MemoryLayout::file_bytes()) and leaves out what is zero.
    [[nodiscard]] int memory_fd() const noexcept { return memory_.get(); }
    /// The same, opened once more with `flags` beside O_RDWR, such as O_DIRECT. Nothing if the file system has no such
    /// files. Throws Error.
    [[nodiscard]] UniqueFd open_memory(int flags) const;

    /// Writes the rest (`state` is that of encode_state(), `config` the text of config.json), waits until all of it is
    /// on the disk, and gives the directory its name. Once only. Throws Error: the file system is full or fails, or
    /// there is a file of that name by now.
    void commit(std::span<const std::byte> state, std::string_view config);

  private:
    /// The file `name` as it is called once all is done, for messages.
    [[nodiscard]] std::string path_of(const char* name) const;
    [[nodiscard]] UniqueFd create(const char* name) const;
    void write_file(const char* name, std::span<const std::byte> content) const;
    static void sync(int fd, const std::string& path);
    void sync_directory(int fd) const;
    void remove() noexcept;

    std::filesystem::path directory_;
    std::string name_; ///< in the parent; empty once all is done
    UniqueFd parent_;
    UniqueFd partial_; ///< the directory itself
    UniqueFd memory_;
};

} // namespace vmm
