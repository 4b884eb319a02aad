// The file that a report is written to.
#pragma once

#include <sys/stat.h>

#include <optional>
#include <string>
#include <string_view>

#include "kvm/host/unique_fd.hpp"
#include "vmm/output/output_place.hpp"
#include "vmm/output/patient_write.hpp"

namespace vmm {

/// The file of `--report`, or of something else that is written at the end. Construction finds out whether it can be
/// written, while nothing has been done yet, and leaves what is there as it is. write() replaces it as a whole, so that
/// a reader sees the old text or the new one and never half of it, and with the owner and the mode that it had. It is
/// overwritten in place where replacing it would change more than its content: where the name is a link, the file has
/// other names (hard links), attributes, or an owner that we cannot give to a new one, or where it can be written but
/// not replaced (others' folders, mounted files). A pipe or terminal, and /dev/stdout and the like, are written to
/// directly; a reader who does not read is not waited for without end. Threads: one.
class ReportFile {
  public:
    /// Throws Error if `path` cannot be written, leads over another user's link (OutputPlace), or is locked as a
    /// disk. `what` it will be is for messages.
    explicit ReportFile(std::string path, std::string what = "the report");
    /// True if what was written is replaced by another write(): it is a file, and neither a pipe nor a terminal nor a
    /// descriptor of ours.
    [[nodiscard]] bool is_replaced_by_writing() const noexcept { return overwritable_; }
    /// Throws Error; a file that is replaced as a whole is then as it was. To be called once, unless
    /// is_replaced_by_writing().
    void write(std::string_view text, const WritePatience& patience = {});

  private:
    void examine();
    /// Makes a file without a name that will take the place of the one there is, or of none. Says by errno why not.
    [[nodiscard]] bool prepare_replacement(const struct stat* existing);
    [[nodiscard]] bool replace(std::string_view text);

    [[nodiscard]] std::string tried() const { return "write " + what_ + " to " + path_; }

    std::string path_;
    std::string what_;
    std::optional<OutputPlace> place_; ///< nothing for a descriptor of ours
    bool overwritable_ = false;        ///< it is, or will be, a regular file of its own
    bool exists_ = false;
    UniqueFd direct_;      ///< to be written to as it is
    UniqueFd replacement_; ///< a file without a name, that will take the place of the one at `place_`
};

/// The descriptor of ours that `path` is a name of ("/dev/stdout", "/dev/fd/3"). Opening such a name anew would begin
/// at the start of a file that we are writing to already.
[[nodiscard]] std::optional<int> named_descriptor(std::string_view path);

} // namespace vmm
