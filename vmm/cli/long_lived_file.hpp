// A file that is written to as long as a guest runs: its serial output, the log.
#pragma once

#include <sys/stat.h>

#include <optional>
#include <string>

#include "vmm/cli/queued_output.hpp"
#include "vmm/output/output_place.hpp"

namespace vmm {

/// Writes at the end of the file, so a file that somebody truncates (copytruncate of logrotate(8)) gets no hole. If the
/// file has been renamed or deleted, it goes on in a new file of the same name. Threads: one at a time.
class LongLivedFile final : public OutputTarget {
  public:
    /// Opens `path`, or makes the file. The content is not removed yet. If `path` is the name of a descriptor that this
    /// process was started with (/dev/stdout), that descriptor is used, and is neither opened again nor emptied.
    /// `tried` is for messages: "write the log to vmm.log". Throws Error if the file cannot be written, leads over
    /// another user's link (OutputPlace), or is locked as a disk.
    LongLivedFile(std::string path, std::string tried);
    /// Deletes the file if it was made here and never kept.
    ~LongLivedFile() override;

    /// Keeps a file that was made here.
    void keep() noexcept { kept_ = true; }
    /// Drops the content of the file. Throws Error if somebody has locked it since it was opened.
    void empty();

    [[nodiscard]] NonblockingOutput::Result write(std::span<const std::byte> bytes) override;
    [[nodiscard]] int fd() const noexcept override { return file_.get(); }
    [[nodiscard]] bool may_wait() const noexcept override { return is_regular(); }
    [[nodiscard]] bool is_regular() const noexcept { return S_ISREG(facts_.st_mode); }

  private:
    void open_first();
    void follow_name();

    std::string path_;
    std::string tried_;
    std::optional<OutputPlace> place_; ///< nothing for a descriptor that we were started with
    UniqueFd file_;
    struct stat facts_ {};
    std::optional<NonblockingOutput> output_;
    bool created_ = false;
    bool kept_ = false;
};

} // namespace vmm
