// Machines with kernels of a few instructions.
#pragma once

#include <chrono>
#include <cstdint>
#include <fstream>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "support/host_temporary_directory.hpp"
#include "support/loader_images.hpp"
#include "vmm/machine.hpp"

namespace vmm::testing {

/// A PVH kernel: `code` runs in 32-bit protected mode, without paging, stack or interrupts.
[[nodiscard]] inline std::string kernel_image(const std::vector<std::uint8_t>& code) {
    loader::testing::TestElf elf = loader::testing::make_elf();
    const auto bytes = std::as_bytes(std::span(code));
    elf.content.assign(bytes.begin(), bytes.end());
    elf.program_headers[0].p_filesz = elf.content.size();
    elf.content.resize((elf.content.size() + 7) / 8 * 8);
    const std::uint64_t entry = loader::testing::TestElf::kAddress;
    loader::testing::add_notes(
        elf, loader::testing::make_note("Xen", loader::testing::kPvhNoteType, std::as_bytes(std::span(&entry, 1))));
    std::string text;
    for (const std::byte byte : elf.bytes()) {
        text += static_cast<char>(byte);
    }
    return text;
}

/// A kernel in a file, and what a small machine that boots it is made from.
class TestKernel {
  public:
    explicit TestKernel(const std::vector<std::uint8_t>& code)
        : path_(directory_.write("kernel", kernel_image(code))) {}

    [[nodiscard]] Config config() const {
        Config config;
        config.kernel_path = path_;
        config.memory_bytes = 16 * kMiB;
        return config;
    }

  private:
    TemporaryDirectory directory_;
    std::string path_;
};

namespace kernels {

using Code = std::vector<std::uint8_t>;

inline const Code kSpin{0xeb, 0xfe};                                      // jmp .
inline const Code kHalt{0xfa, 0xf4, 0xeb, 0xfd};                          // cli; hlt; again
inline const Code kTripleFault{0xbb, 0xef, 0xbe, 0xad, 0xde, 0x0f, 0x0b}; // mov $0xdeadbeef, %ebx; ud2
inline const Code kReset{0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe};             // mov $0xfe, %al; out %al, $0x64
/// Writes to the serial port for ever: mov $0x3f8, %dx; out %al, %dx; again
inline const Code kFloodSerial{0x66, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xfd};
/// More than the port's ring and a small pipe take.
constexpr std::size_t kManyBytes = 270'000;
/// Writes as many bytes to the serial port, and then switches itself off.
inline const Code kManyBytesThenPowerOff{0x66, 0xba, 0xf8, 0x03,        // mov $0x3f8, %dx
                                         0xb9, 0xb0, 0x1e, 0x04, 0x00,  // mov $270000, %ecx
                                         0xee, 0xe2, 0xfd,              // again: out %al, %dx; loop again
                                         0x66, 0xba, 0x00, 0x06,        // mov $0x600, %dx
                                         0xb0, 0x34, 0xee, 0xeb, 0xfe}; // mov $0x34, %al; out %al, %dx; jmp .
/// Sleep type 5 and sleep enable to the ACPI sleep control register: mov $0x600, %dx; mov $0x34, %al; out %al, %dx
inline const Code kPowerOff{0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xeb, 0xfe};
/// The ACPI reset register: mov $0x602, %dx; mov $6, %al; out %al, %dx
inline const Code kAcpiReset{0x66, 0xba, 0x02, 0x06, 0xb0, 0x06, 0xee, 0xeb, 0xfe};
/// Waits for a byte on the serial port, sends it back, and so on.
inline const Code kEcho{0x66, 0xba, 0xfd, 0x03, 0xec,       // again: mov $0x3fd, %dx; in %dx, %al
                        0xa8, 0x01, 0x74, 0xf7,             // test $1, %al; jz again
                        0x66, 0xba, 0xf8, 0x03, 0xec, 0xee, // mov $0x3f8, %dx; in %dx, %al; out %al, %dx
                        0xeb, 0xef};                        // jmp again

} // namespace kernels

} // namespace vmm::testing
