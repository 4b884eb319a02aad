// A block device of the host with the bytes of a file. Needs root, and loop devices.
#pragma once

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <sys/ioctl.h>

#include <cstdint>
#include <string>
#include <utility>

#include "kvm/host/unique_fd.hpp"

namespace vmm::testing {

/// A writable block device with the bytes of a file, with sectors of `sector_bytes`. The settings of the device's last
/// user do not matter.
class LoopDevice {
  public:
    explicit LoopDevice(const std::string& path, std::uint32_t sector_bytes = 512) {
        const UniqueFd control(::open("/dev/loop-control", O_RDWR | O_CLOEXEC));
        const UniqueFd file(::open(path.c_str(), O_RDWR | O_CLOEXEC));
        for (int tries = 0; tries < kMostTries && !device_; ++tries) { // Another process may take the same device.
            const int number = control ? ::ioctl(control.get(), LOOP_CTL_GET_FREE) : -1;
            path_ = "/dev/loop" + std::to_string(number);
            // Read-only is a property of the device. It outlives the device's file, and prevents opening for writing.
            const UniqueFd reader(number < 0 ? -1 : ::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
            const int read_only = 0;
            if (!reader || ::ioctl(reader.get(), BLKROSET, &read_only) != 0) {
                return;
            }
            UniqueFd device(::open(path_.c_str(), O_RDWR | O_CLOEXEC));
            if (!device) {
                return;
            }
            loop_config config{};
            config.fd = static_cast<std::uint32_t>(file.get());
            config.block_size = sector_bytes;
            if (::ioctl(device.get(), LOOP_CONFIGURE, &config) == 0) {
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
    /// The code that sets it also resets it.
    void set_read_only(bool read_only) const {
        const int value = read_only ? 1 : 0;
        ::ioctl(device_.get(), BLKROSET, &value);
    }

  private:
    static constexpr int kMostTries = 8;

    std::string path_;
    UniqueFd device_;
};

} // namespace vmm::testing
