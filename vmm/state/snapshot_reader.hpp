// A snapshot's directory, opened to be read.
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

/// A snapshot, of which all but the content of its memory file has been read and checked. It may be hostile: see
/// decode_state().
///
/// Threads: any; nothing changes after construction.
class SnapshotReader {
  public:
    /// Most of the snapshots that one builds on.
    static constexpr unsigned kMostBases = 32;

    /// Throws Error: `directory` is none, is no snapshot, or cannot be read; its state is damaged or of another
    /// version; a file is missing or is no regular file; the memory file has not the size that belongs to the state; or
    /// that is so with a snapshot that it builds on, or that is another one by now.
    explicit SnapshotReader(const std::filesystem::path& directory) : SnapshotReader(directory, kMostBases) {}

    [[nodiscard]] const std::filesystem::path& directory() const noexcept { return directory_; }
    /// SnapshotState::memory is there, with an entry for each chunk of layout(); MemoryChunk::file counts the files of
    /// memory().
    [[nodiscard]] const SnapshotState& state() const noexcept { return state_; }
    [[nodiscard]] const MemoryLayout& layout() const noexcept { return layout_; }
    /// The text of config.json: what the machine was configured with. At most 1 MiB, and nothing else is checked.
    [[nodiscard]] const std::string& config() const noexcept { return config_; }
    /// Its own memory file, on loan, open to read.
    [[nodiscard]] int memory_fd() const noexcept { return memory_.get(); }
    /// The same, opened once more with `flags` beside O_RDONLY, such as O_DIRECT. Nothing if the file system has no
    /// such files. Throws Error.
    [[nodiscard]] UniqueFd open_memory(int flags) const;
    /// All of memory, wherever it is. It refers to this object.
    [[nodiscard]] MemorySource memory() const noexcept { return {layout_, *state_.memory, files_}; }
    /// What it builds on; null: nothing.
    [[nodiscard]] const SnapshotReader* base() const noexcept { return base_.get(); }
    /// What one that builds on it has to know of it. `from` is the directory of that one. Throws Error.
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
    std::vector<MemoryFile> files_; ///< its own, its base's own, and so on
};

} // namespace vmm
