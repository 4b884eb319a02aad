// A file that is written to as long as a guest runs: its serial output, the log.
#pragma once

#include <sys/stat.h>

#include <optional>
#include <string>

#include "vmm/cli/queued_output.hpp"
#include "vmm/output/output_place.hpp"

namespace vmm {

/// Writes at the end of the file, so a file that is cut off (copytruncate of logrotate(8)) gets no hole. If the file
/// has been renamed or deleted, it goes on in a new file of the name. Threads: one at a time.
class LongLivedFile final : public OutputTarget {
  public:
    /// Opens `path`, or makes the file. Its content stays for now. The name of a descriptor that we were started with
    /// (/dev/stdout) is that descriptor, which is neither opened anew nor emptied. `tried` is for messages: "write the
    /// log to vmm.log".
    /// Throws Error: the file cannot be written, leads over another user's link (OutputPlace), or is locked as a disk.
    LongLivedFile(std::string path, std::string tried);
    /// Deletes the file if it was made here and never kept.
    ~LongLivedFile() override;

    /// Makes a file stay that was made here.
    void keep() noexcept { kept_ = true; }
    /// Drops the content of the file. Throws Error: somebody has locked it since.
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
