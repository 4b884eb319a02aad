// The file to which a report is written.
#pragma once

#include <sys/stat.h>

#include <optional>
#include <string>
#include <string_view>

#include "kvm/host/unique_fd.hpp"
#include "vmm/output/output_place.hpp"
#include "vmm/output/patient_write.hpp"

namespace vmm {

/// The file of `--report`, or of another text that is written at the end. Construction finds out whether the file can
/// be written, and does not change its content. write() replaces it as a whole and keeps its owner and mode, so that a
/// reader sees either the old text or the new one.
///
/// The file is overwritten in place if replacing it would change more than its content: if the name is a link, or if
/// the file has other names (hard links), attributes, or an owner that a new file cannot get. It is also overwritten if
/// it can be written but not replaced (others' folders, mounted files). A pipe or terminal, and /dev/stdout and the
/// like, are written to directly; the wait for their reader is limited. Threads: one.
class ReportFile {
  public:
    /// `what` is the kind of text, for messages. Throws Error if `path` cannot be written, leads over another user's
    /// link (OutputPlace), or is locked as a disk.
    explicit ReportFile(std::string path, std::string what = "the report");
    /// True if another write() replaces what was written. This is so for a file, but not for a pipe, a terminal or a
    /// descriptor of this process.
    [[nodiscard]] bool is_replaced_by_writing() const noexcept { return overwritable_; }
    /// Writes the report. It may be called once, or repeatedly if is_replaced_by_writing(). Throws Error; a file that
    /// is replaced as a whole is unchanged then.
    void write(std::string_view text, const WritePatience& patience = {});

  private:
    void examine();
    /// Makes a file without a name, which will replace the existing file or take its place if there is none. If this
    /// fails, errno says why.
    [[nodiscard]] bool prepare_replacement(const struct stat* existing);
    [[nodiscard]] bool replace(std::string_view text);

    [[nodiscard]] std::string tried() const { return "write " + what_ + " to " + path_; }

    std::string path_;
    std::string what_;
    std::optional<OutputPlace> place_; ///< nothing if the path names a descriptor of this process
    bool overwritable_ = false;        ///< it is, or will be, a regular file of its own
    bool exists_ = false;
    UniqueFd direct_;      ///< open for writing in place
    UniqueFd replacement_; ///< a file without a name, which will replace the file at `place_`
};

/// The descriptor of this process that `path` names ("/dev/stdout", "/dev/fd/3"). Opening such a name again would begin
/// at the start of a file to which this process is writing already.
[[nodiscard]] std::optional<int> named_descriptor(std::string_view path);

} // namespace vmm
