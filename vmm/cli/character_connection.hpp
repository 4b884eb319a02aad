// The file or terminal to which the command connects a guest's serial port or virtio console.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "vmm/cli/long_lived_file.hpp"
#include "vmm/cli/messages.hpp"
#include "vmm/cli/queued_output.hpp"
#include "vmm/config.hpp"
#include "vmm/output/patient_write.hpp"

namespace vmm {

/// The guest's output on its way to a regular file. Its storage may not answer, and the guest must not wait for that.
/// Threads: one.
class FileOutput {
  public:
    /// `hurry_fd` is that of WritePatience.
    FileOutput(std::shared_ptr<OutputTarget> target, int hurry_fd);
    /// Waits until the output is written, also after a run that failed.
    ~FileOutput();
    FileOutput(const FileOutput&) = delete;
    FileOutput& operator=(const FileOutput&) = delete;

    /// Makes this the sink of `config`. This object must outlive `config`.
    void connect(CharacterConfig& config);

  private:
    QueuedOutput queue_;
    WritePatience patience_;
};

/// The connection of a serial port or console, for as long as the guest runs.
struct CharacterConnection {
    std::shared_ptr<LongLivedFile> file; ///< the file that was named, if any
    std::optional<FileOutput> output;
};

/// Returns the configuration of a port that goes to `where`: "stdio", "none" or a file. `what` is for messages:
/// "serial". `connection` and `messages` must outlive the machine. Throws Error if the file cannot be written.
[[nodiscard]] CharacterConfig connect_characters(const std::string& where, const char* what,
                                                 CharacterConnection& connection, int hurry_fd, Messages& messages);

} // namespace vmm
