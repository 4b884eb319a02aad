// vmm is killed while its guest writes to a disk. All data that the guest was told to be on stable storage must be
// there.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "devices/character_port.hpp"
#include "support/disk_writer.hpp"
#include "support/kvm_command.hpp"
#include "support/kvm_require.hpp"

namespace vmm::testing {
namespace {

using namespace disk_writer;

/// The guest's kernel: the one of the build, or else the one beside vmm (in the lab).
std::string kernel() {
    return std::filesystem::exists(DISK_WRITER_KERNEL) ? DISK_WRITER_KERNEL : "/bin/disk_writer.elf";
}

/// The most lines that the ring of the serial port can hold: no line is shorter than this one.
constexpr std::uint64_t kMostUnsaidLines =
    devices::CharacterPort::kDefaultOutputBytes / std::string_view("flushed=1\n").size();

/// The number in the last complete line "flushed=N"; 0 if there is none.
std::uint64_t last_flushed(const std::string& console) {
    constexpr std::string_view kWord = "flushed=";
    const std::size_t end = console.rfind('\n');
    const std::size_t begin = end == std::string::npos ? end : console.rfind(kWord, end);
    return begin == std::string::npos ? 0 : std::stoull(console.substr(begin + kWord.size()));
}

/// The number of the write that filled the sector of 512 bytes at `words` of the block at `place`; 0 if no write did.
std::uint64_t writer_of(const std::uint64_t* words, std::uint64_t place, std::uint64_t first_word) {
    const std::uint64_t number = words[0] >> 16;
    for (std::uint64_t i = 0; i < 512 / 8; ++i) {
        if (words[i] != word_of(number, first_word + i)) {
            return 0;
        }
    }
    return place_of(number) == place ? number : 0;
}

/// The first error on the disk, or an empty text. `wanted` has the newest flushed write of each place; no write after
/// `newest` was begun.
std::string fault_of(const std::string& disk, const std::vector<std::uint64_t>& wanted, std::uint64_t newest) {
    std::ifstream file(disk, std::ios::binary);
    std::array<std::uint64_t, kBlockBytes / 8> block{};
    for (std::uint64_t place = 0; place < kPlaces; ++place) {
        if (!file.read(reinterpret_cast<char*>(block.data()), sizeof(block))) { // bytes may be of any type
            return "it became shorter";
        }
        for (std::uint64_t word = 0; word < block.size() && wanted[place] != 0; word += 512 / 8) {
            const std::uint64_t found = writer_of(&block[word], place, word);
            if (found < wanted[place] || found > newest) {
                return "block " + std::to_string(place) + " has write " + std::to_string(found) + ", not " +
                       std::to_string(wanted[place]) + " or a later one up to " + std::to_string(newest);
            }
        }
    }
    return {};
}

class Kill : public KvmTest {};

/// The set-up of the disk and of the memory that it reads from, and the message if this host cannot do it.
struct Way {
    std::string_view of_disk;
    std::vector<std::string> options;
    std::string_view refusal;
};
const std::vector<Way> kWays{
    {"", {"--prefault=none"}, ""},
    {",queues=2", {"--prefault=none"}, ""},
    // The file system of temporary files may not support direct I/O.
    {",direct", {"--prefault=none"}, "leave out \"direct\""},
    // The disk writes from fixed buffers in guest memory.
    {"", {"--prefault=all", "--pin=longterm"}, "RLIMIT_MEMLOCK"},
};

// VMM_KILL_ROUNDS is the number of rounds (4).
TEST_F(Kill, NoFlushedWriteIsLost) {
    const char* const asked = std::getenv("VMM_KILL_ROUNDS");
    const int rounds = asked != nullptr ? std::atoi(asked) : static_cast<int>(kWays.size());
    ASSERT_GT(rounds, 0);
    const TemporaryDirectory directory;
    const std::string disk = directory.write("disk", "");
    std::filesystem::resize_file(disk, kPlaces * kBlockBytes);
    const std::string console = directory / "console";
    std::mt19937 random(std::random_device{}()); // different moments in each run
    std::vector<std::uint64_t> wanted(kPlaces, 0);
    std::uint64_t newest = 0;
    std::uint64_t acknowledged = 0;
    for (int round = 0; round < rounds; ++round) {
        // Numbers grow, and no number is used twice.
        const std::uint64_t first = newest + 1;
        std::filesystem::remove(console);
        const Way& way = kWays[static_cast<std::size_t>(round) % kWays.size()];
        std::vector<std::string> words{"run",
                                       "--transport",
                                       "mmio",
                                       "-m",
                                       "32M",
                                       "--serial",
                                       console,
                                       "--disk",
                                       disk + std::string(way.of_disk),
                                       "--cmdline",
                                       "first=" + std::to_string(first)};
        words.insert(words.end(), way.options.begin(), way.options.end());
        words.push_back(kernel());
        CommandBeside vmm(words);
        const bool writes = eventually([&] { return last_flushed(content_of(console)) != 0; });
        if (!writes) {
            ASSERT_FALSE(way.refusal.empty()) << "round " << round << ": " << vmm.errors() << content_of(console);
            ASSERT_NE(vmm.errors().find(way.refusal), std::string::npos)
                << "round " << round << ": " << vmm.errors() << content_of(console);
            continue;
        }
        ASSERT_EQ(vmm.errors().find("does without fixed buffers"), std::string::npos) << vmm.errors();
        std::this_thread::sleep_for(std::chrono::microseconds(random() % 100'000));
        vmm.send(SIGKILL);
        ASSERT_EQ(vmm.wait(), -1) << vmm.errors();
        const std::uint64_t last = last_flushed(content_of(console));
        ASSERT_GE(last, first);
        ASSERT_EQ(content_of(console).find("error"), std::string::npos) << content_of(console);
        acknowledged += last - first + 1;
        for (std::uint64_t number = first; number <= last; ++number) {
            wanted[place_of(number)] = number;
        }
        // The guest's last lines may still be in the serial port's ring, and two batches were in flight.
        newest = last + ((kMostUnsaidLines + 2) * kBatch);
        ASSERT_EQ(fault_of(disk, wanted, newest), "") << "round " << round;
    }
    RecordProperty("flushed_writes", std::to_string(acknowledged));
    std::cout << "killed " << rounds << " times; " << acknowledged << " flushed writes, none lost\n";
}

} // namespace
} // namespace vmm::testing
