// A snapshot's directory, opened for reading.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "kvm/host/unique_fd.hpp"
#include "vmm/state/memory_layout.hpp"
#include "vmm/state/memory_source.hpp"
#include "vmm/state/snapshot_state.hpp"

namespace vmm {

/// A snapshot. Everything in it has been read and checked, except the content of its memory file. It may be hostile:
/// see decode_state().
///
/// Threads: any; nothing changes after construction.
class SnapshotReader {
  public:
    /// The most snapshots in a chain of bases.
    static constexpr unsigned kMostBases = 32;

    /// Throws Error if `directory` is no directory, is no snapshot, or cannot be read; if its state is damaged or of
    /// another version; if a file is missing or is no regular file; or if the size of the memory file does not match
    /// the state. Throws Error, too, if this is so for a snapshot on which it builds, or if that snapshot has been
    /// replaced by another one.
    explicit SnapshotReader(const std::filesystem::path& directory) : SnapshotReader(directory, kMostBases) {}

    [[nodiscard]] const std::filesystem::path& directory() const noexcept { return directory_; }
    /// The state. SnapshotState::memory is there, with an entry for each chunk of layout(); MemoryChunk::file is an
    /// index of the files of memory().
    [[nodiscard]] const SnapshotState& state() const noexcept { return state_; }
    [[nodiscard]] const MemoryLayout& layout() const noexcept { return layout_; }
    /// The text of config.json: the configuration of the machine. It has at most 1 MiB, and nothing else about it is
    /// checked.
    [[nodiscard]] const std::string& config() const noexcept { return config_; }
    /// Its own memory file, on loan, open for reading.
    [[nodiscard]] int memory_fd() const noexcept { return memory_.get(); }
    /// Opens the same file once more, with `flags` beside O_RDONLY, such as O_DIRECT. Returns nothing if the file
    /// system cannot open files in this way. Throws Error.
    [[nodiscard]] UniqueFd open_memory(int flags) const;
    /// All of its memory, from its own file and those of its bases. The result refers to this object.
    [[nodiscard]] MemorySource memory() const noexcept { return {layout_, *state_.memory, files_}; }
    /// The snapshot on which this one builds; null: none.
    [[nodiscard]] const SnapshotReader* base() const noexcept { return base_.get(); }
    /// What a snapshot that builds on this one must know about it. `from` is the directory of that snapshot. Throws
    /// Error.
    [[nodiscard]] SnapshotBase as_base(const std::filesystem::path& from) const;
    /// The directory, on loan.
    [[nodiscard]] int directory_fd() const noexcept { return fd_.get(); }

  private:
    SnapshotReader(std::filesystem::path directory, unsigned most_bases);
    void open_base(unsigned most_bases);

    std::filesystem::path directory_;
    UniqueFd fd_;
    SnapshotBase identity_; ///< without a path
    SnapshotState state_;
    MemoryLayout layout_;
    std::string config_;
    UniqueFd memory_;
    std::unique_ptr<const SnapshotReader> base_;
    std::vector<MemoryFile> files_; ///< its own memory file, that of its base, and so on
};

} // namespace vmm
