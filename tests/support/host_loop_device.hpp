// A block device of the host's with the bytes of a file. Needs root, and loop devices.
#pragma once

#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>

#include <string>
#include <utility>

#include "kvm/unique_fd.hpp"

namespace vmm::testing {

/// A block device with the bytes of a file.
class LoopDevice {
  public:
    explicit LoopDevice(const std::string& path) {
        const UniqueFd control(::open("/dev/loop-control", O_RDWR | O_CLOEXEC));
        const UniqueFd file(::open(path.c_str(), O_RDWR | O_CLOEXEC));
        for (int tries = 0; tries < 8 && !device_; ++tries) { // Another may take the same one.
            const int number = control ? ::ioctl(control.get(), LOOP_CTL_GET_FREE) : -1;
            path_ = "/dev/loop" + std::to_string(number);
            UniqueFd device(number < 0 ? -1 : ::open(path_.c_str(), O_RDWR | O_CLOEXEC));
            if (!device) {
                return;
            }
            if (::ioctl(device.get(), LOOP_SET_FD, file.get()) == 0) {
                device_ = std::move(device);
            }
        }
    }
    ~LoopDevice() {
        if (device_) {
            ::ioctl(device_.get(), LOOP_CLR_FD, 0);
        }
    }
    LoopDevice(const LoopDevice&) = delete;
    LoopDevice& operator=(const LoopDevice&) = delete;

    [[nodiscard]] bool is_there() const { return static_cast<bool>(device_); }
    [[nodiscard]] const std::string& path() const { return path_; }

  private:
    std::string path_;
    UniqueFd device_;
};

} // namespace vmm::testing
