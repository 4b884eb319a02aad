// The file that the guest's serial output goes to.
#pragma once

#include <string>

#include "kvm/unique_fd.hpp"

namespace vmm {

/// The file of `--serial FILE`: made, or emptied, only once the guest is sure to start. Threads: one.
class SerialFile {
  public:
    /// Throws Error where `path` cannot be written. A file that is there stays as it is for now.
    explicit SerialFile(const std::string& path);
    /// Takes a file away again that was made for nothing.
    ~SerialFile();
    SerialFile(const SerialFile&) = delete;
    SerialFile& operator=(const SerialFile&) = delete;

    /// The guest starts: from now on the file holds its output and nothing else.
    void keep() noexcept;
    /// The descriptor, on loan.
    [[nodiscard]] int fd() const noexcept { return fd_.get(); }

  private:
    std::string path_;
    UniqueFd fd_;
    bool created_ = false;
    bool kept_ = false;
};

} // namespace vmm
