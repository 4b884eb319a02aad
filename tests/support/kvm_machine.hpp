// Machines with kernels of a few instructions.
#pragma once

#include <poll.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <exception>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "support/host_pipe.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/host_waiting.hpp"
#include "support/loader_images.hpp"
#include "vmm/machine.hpp"

namespace vmm::testing {

/// True if a kernel declares that it uses the prefault's page tables (docs/prefault.md).
enum class Tables { kOwn, kAdopted };

/// A PVH kernel: `code` runs in 32-bit protected mode, without paging, stack or interrupts.
[[nodiscard]] inline std::string kernel_image(const std::vector<std::uint8_t>& code, Tables tables = Tables::kOwn) {
    loader::testing::TestElf elf = loader::testing::make_elf();
    const auto bytes = std::as_bytes(std::span(code));
    elf.content.assign(bytes.begin(), bytes.end());
    elf.program_headers[0].p_filesz = elf.content.size();
    elf.content.resize((elf.content.size() + 7) / 8 * 8);
    const std::uint64_t entry = loader::testing::TestElf::kAddress;
    auto notes = loader::testing::make_note("Xen", loader::testing::kPvhNoteType, std::as_bytes(std::span(&entry, 1)));
    if (tables == Tables::kAdopted) {
        constexpr std::uint32_t kTakesPageTables = 1;
        const auto note = loader::testing::make_note("vmm", kTakesPageTables, {});
        notes.insert(notes.end(), note.begin(), note.end());
    }
    loader::testing::add_notes(elf, notes);
    std::string text;
    for (const std::byte byte : elf.bytes()) {
        text += static_cast<char>(byte);
    }
    return text;
}

/// A kernel in a file, and the configuration of a small machine that boots it.
class TestKernel {
  public:
    explicit TestKernel(const std::vector<std::uint8_t>& code, Tables tables = Tables::kOwn)
        : path_(directory_.write("kernel", kernel_image(code, tables))) {}

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
/// more than the port's ring and a small pipe take
constexpr std::size_t kManyBytes = 270'000;
/// Writes so many bytes to the serial port, and then switches itself off.
inline const Code kManyBytesThenPowerOff{0x66, 0xba, 0xf8, 0x03,        // mov $0x3f8, %dx
                                         0xb9, 0xb0, 0x1e, 0x04, 0x00,  // mov $270000, %ecx
                                         0xee, 0xe2, 0xfd,              // again: out %al, %dx; loop again
                                         0x66, 0xba, 0x00, 0x06,        // mov $0x600, %dx
                                         0xb0, 0x34, 0xee, 0xeb, 0xfe}; // mov $0x34, %al; out %al, %dx; jmp .
/// Sleep type 5 and sleep enable to the ACPI sleep control register: mov $0x600, %dx; mov $0x34, %al; out %al, %dx
inline const Code kPowerOff{0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xeb, 0xfe};
/// The ACPI reset register: mov $0x602, %dx; mov $6, %al; out %al, %dx
inline const Code kAcpiReset{0x66, 0xba, 0x02, 0x06, 0xb0, 0x06, 0xee, 0xeb, 0xfe};
/// The same register in memory: mov $6, %al; mov %al, 0xd0020002
inline const Code kResetByMemory{0xb0, 0x06, 0xa2, 0x02, 0x00, 0x02, 0xd0, 0xeb, 0xfe};
/// Waits for a byte on the serial port, sends it back, and so on.
inline const Code kEcho{0x66, 0xba, 0xfd, 0x03, 0xec,       // again: mov $0x3fd, %dx; in %dx, %al
                        0xa8, 0x01, 0x74, 0xf7,             // test $1, %al; jz again
                        0x66, 0xba, 0xf8, 0x03, 0xec, 0xee, // mov $0x3f8, %dx; in %dx, %al; out %al, %dx
                        0xeb, 0xef};                        // jmp again

// clang-format off
/// Runs in ring 3, on the prefault's page tables. Reads two 64-bit numbers from the serial port, a start and an end.
/// Writes to each 4 KiB from the start to the end without changing it, answers '.', and begins again. If the end is 0,
/// it powers off.
inline const Code kToucherCode{
    0x0f, 0x01, 0x15, 0xe8, 0x00, 0x10, 0x00,             // 100000: lgdt 0x1000e8
    0xb8, 0x10, 0x00, 0x00, 0x00, 0x8e, 0xd0,             // mov $0x10, %eax; mov %eax, %ss
    0xb8, 0x20, 0x00, 0x00, 0x00, 0x0f, 0x22, 0xe0,       // mov $0x20, %eax; mov %eax, %cr4
    0xb8, 0x00, 0x10, 0x00, 0xe0, 0x0f, 0x22, 0xd8,       // mov $0xe0001000, %eax; mov %eax, %cr3
    0xb9, 0x80, 0x00, 0x00, 0xc0,                         // mov $0xc0000080, %ecx
    0xb8, 0x00, 0x05, 0x00, 0x00, 0x31, 0xd2, 0x0f, 0x30, // mov $0x500, %eax; xor %edx, %edx; wrmsr
    0xb8, 0x33, 0x00, 0x01, 0x80, 0x0f, 0x22, 0xc0,       // mov $0x80010033, %eax; mov %eax, %cr0
    0xea, 0x3b, 0x00, 0x10, 0x00, 0x28, 0x00,             // ljmp $0x28, $0x10003b
    0xb8, 0x30, 0x00, 0x00, 0x00, 0x0f, 0x00, 0xd8,       // 10003b: mov $0x30, %eax; ltr %ax
    0xbc, 0xf0, 0x00, 0x10, 0x00, 0x48, 0xcf,             // mov $0x1000f0, %esp; iretq
    0xbf, 0x00, 0x12, 0x10, 0x00,                         // 10004a: mov $0x101200, %edi
    0xb9, 0x10, 0x00, 0x00, 0x00,                         // mov $16, %ecx
    0xbb, 0xd0, 0x07, 0x00, 0x00,                         // 100054: mov $2000, %ebx
    0xf3, 0x90, 0xff, 0xcb, 0x75, 0xfa,                   // 100059: pause; dec %ebx; jnz 100059
    0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xec, // mov $0x3fd, %dx; in %dx, %al; test $1, %al; jz 100054
    0x66, 0xba, 0xf8, 0x03, 0xec, 0xaa, 0xe2, 0xe4,       // mov $0x3f8, %dx; in %dx, %al; stosb; loop 100054
    0x48, 0x8b, 0x3c, 0x25, 0x00, 0x12, 0x10, 0x00,       // mov 0x101200, %rdi
    0x48, 0x8b, 0x34, 0x25, 0x08, 0x12, 0x10, 0x00,       // mov 0x101208, %rsi
    0x48, 0x85, 0xf6, 0x74, 0x1a,                         // test %rsi, %rsi; jz 10009f
    0xf0, 0x48, 0x83, 0x0f, 0x00,                         // 100085: lock orq $0, (%rdi)
    0x48, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00,             // add $4096, %rdi
    0x48, 0x39, 0xf7, 0x72, 0xef,                         // cmp %rsi, %rdi; jb 100085
    0x66, 0xba, 0xf8, 0x03, 0xb0, 0x2e, 0xee, 0xeb, 0xab, // mov $0x3f8, %dx; mov $'.', %al; out %al, %dx; jmp 10004a
    0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xeb, 0xfe, // 10009f: mov $0x600, %dx; mov $0x34, %al; out %al, %dx; jmp .
    // 1000a8: descriptors: none; ring 0: 32-bit code, data; ring 3: data, 64-bit code; ring 0: 64-bit code; task state
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,       0xff, 0xff, 0x00, 0x00, 0x00, 0x9b, 0xcf, 0x00,
    0xff, 0xff, 0x00, 0x00, 0x00, 0x93, 0xcf, 0x00,       0xff, 0xff, 0x00, 0x00, 0x00, 0xf3, 0xcf, 0x00,
    0xff, 0xff, 0x00, 0x00, 0x00, 0xfb, 0xaf, 0x00,       0xff, 0xff, 0x00, 0x00, 0x00, 0x9b, 0xaf, 0x00,
    0x2b, 0x01, 0x00, 0x10, 0x10, 0x89, 0x00, 0x00,       0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x3f, 0x00, 0xa8, 0x00, 0x10, 0x00, 0x00, 0x00,       // 1000e8: 64 bytes at 0x1000a8
    0x4a, 0x00, 0x10, 0x00, 0x00, 0x00, 0x00, 0x00,       // 1000f0: the values that iretq pops: RIP 10004a
    0x23, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,       // CS
    0x02, 0x30, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,       // RFLAGS: IOPL 3
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,       // RSP
    0x1b, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,       // SS
};
// clang-format on

/// Its task state is at 0x101000. Only the offset of the I/O bitmap in it is not zero: all ports are permitted.
[[nodiscard]] inline Code toucher() {
    constexpr std::size_t kTaskState = 0x1000;
    constexpr std::size_t kBitmapOffsetField = kTaskState + 102;
    Code code = kToucherCode;
    code.resize(kBitmapOffsetField + 2);
    code[kBitmapOffsetField] = 104;
    return code;
}

} // namespace kernels

/// The next byte; nothing if none comes.
[[nodiscard]] inline std::optional<char> read_one(int fd) {
    pollfd ready{fd, POLLIN, 0};
    char byte = 0;
    constexpr std::chrono::milliseconds kPatienceOfPoll = kPatience;
    if (::poll(&ready, 1, static_cast<int>(kPatienceOfPoll.count())) <= 0 || ::read(fd, &byte, 1) != 1) {
        return std::nullopt;
    }
    return byte;
}

/// A guest that writes to memory when it is told to. Its machine must be prefaulted with Scope::kAll, at least in part,
/// before it runs, because the guest needs the page tables.
///
/// Threads: one at a time for touch() and power_off(), besides the machine's.
class TouchingGuest {
  public:
    [[nodiscard]] Config config() const {
        Config config = kernel_.config();
        config.prefault = {.scope = prefault::Scope::kAll, .workers = 2};
        config.serial.input_fd = keyboard_.reader.get();
        config.serial.output_fd = screen_.writer.get();
        return config;
    }

    /// Returns when the guest has written to each 4 KiB of `range`; false if it never does.
    [[nodiscard]] bool touch(GuestRange range) const {
        tell(to_integer(range.base), to_integer(range.end()));
        return read_one(screen_.reader.get()) == '.';
    }
    void power_off() const { tell(0, 0); }

  private:
    void tell(std::uint64_t start, std::uint64_t end) const {
        const std::array numbers{start, end};
        std::string text(sizeof numbers, '\0');
        std::memcpy(text.data(), numbers.data(), sizeof numbers);
        write_text(keyboard_.writer.get(), text);
    }

    TestKernel kernel_{kernels::toucher(), Tables::kAdopted};
    Pipe keyboard_;
    Pipe screen_;
};

/// Runs `machine` while `beside` runs on another thread. `beside` must make the machine end. If it throws, the machine
/// ends, and this function throws the same.
template <typename Beside>
ExitReason run_beside(Machine& machine, Beside beside) {
    std::exception_ptr failure;
    std::jthread other([&] {
        try {
            beside();
        } catch (...) {
            failure = std::current_exception();
            machine.request_stop();
        }
    });
    const ExitReason reason = machine.run();
    other.join();
    if (failure) {
        std::rethrow_exception(failure);
    }
    return reason;
}

} // namespace vmm::testing
