// Where a report is written.
#pragma once

#include <string>
#include <string_view>

namespace vmm {

/// The file of `--report`. Construction finds out whether it can be written, while nothing has been done yet; write()
/// replaces it as a whole, so that a reader sees the old text or the new one and never half of it. What is no regular
/// file (a pipe, /dev/stdout) is written to directly.
class ReportFile {
  public:
    /// Throws Error where `path` cannot be written.
    explicit ReportFile(std::string path);
    /// Throws Error; the file is then as it was.
    void write(std::string_view text) const;

  private:
    std::string path_;
    bool in_place_ = false;
};

} // namespace vmm
