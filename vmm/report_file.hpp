// Where a report is written.
#pragma once

#include <string>
#include <string_view>

#include "kvm/unique_fd.hpp"

namespace vmm {

/// The file of `--report`, or of something else that is written once. Construction finds out whether it can be written,
/// while nothing has been done yet, and leaves what is there as it is; write() replaces it as a whole, so that a reader
/// sees the old text or the new one and never half of it. Where a file can be written but not replaced (others'
/// folders, mounted files), it is overwritten. A pipe or terminal, and /dev/stdout and the like, are written to
/// directly. Threads: one.
class ReportFile {
  public:
    /// Throws Error where `path` cannot be written. `what` it will be is for messages.
    explicit ReportFile(std::string path, std::string what = "the report");
    /// Once. Throws Error; a file that is replaced as a whole is then as it was.
    void write(std::string_view text);

  private:
    /// Makes a file without a name beside `path_`, or says by errno why not.
    [[nodiscard]] bool prepare_replacement();
    [[nodiscard]] bool replace(std::string_view text);

    [[nodiscard]] std::string tried() const { return "write " + what_ + " to " + path_; }

    std::string path_;
    std::string what_;
    bool overwritable_ = false; ///< path_ is, or will be, a regular file of its own
    UniqueFd direct_;           ///< to be written to as it is
    UniqueFd replacement_;      ///< a file without a name, that will take the place of path_
};

} // namespace vmm
