#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <random>

#include "kvm/host/unique_fd.hpp"
#include "loader/kernel.hpp"
#include "support/loader_images.hpp"

namespace vmm::loader {
namespace {

using testing::add_notes;
using testing::error_of;
using testing::guest_memory;
using testing::kPvhNoteType;
using testing::make_elf;
using testing::make_note;
using testing::make_pvh_elf;
using testing::mentions;
using testing::TestElf;

/// The message of parsing a correct file after `damage`.
std::string error_after(const std::function<void(TestElf&)>& damage) {
    TestElf elf = make_pvh_elf();
    damage(elf);
    return elf.parse_error();
}

TEST(ElfImage, WithoutNoteIsEnteredByThe64BitProtocol) {
    const Kernel kernel = Kernel::parse(make_elf().file());
    EXPECT_EQ(kernel.protocol(), EntryProtocol::kLinux64);
    EXPECT_EQ(kernel.format_name(), "ELF vmlinux");
    EXPECT_EQ(kernel.max_command_line_bytes(), 2047U);
    EXPECT_EQ(kernel.initrd_limit(), GuestAddress{4 * kGiB});
    EXPECT_TRUE(kernel.setup_header().empty());
}

TEST(ElfImage, SegmentIsLoadedAndItsRestIsZero) {
    const Kernel kernel = Kernel::parse(make_elf().file());
    const GuestMemory memory = guest_memory(4 * kMiB);
    const auto everything = memory.at({GuestAddress{0}, 4 * kMiB});
    ASSERT_TRUE(everything);
    std::fill(everything->begin(), everything->end(), std::byte{0xee});
    const GuestRange ram{GuestAddress{0}, 4 * kMiB};
    Placement placement{std::span{&ram, 1}};

    const LoadedKernel loaded = kernel.load(memory, placement);

    const GuestRange expected{GuestAddress{TestElf::kAddress}, TestElf::kMemoryBytes};
    EXPECT_EQ(loaded.range, expected);
    EXPECT_EQ(loaded.entry, GuestAddress{TestElf::kEntry});
    EXPECT_FALSE(placement.is_free(expected));
    const auto content = everything->subspan(TestElf::kAddress);
    EXPECT_EQ(content[0], std::byte{1});
    EXPECT_EQ(content[TestElf::kFileBytes - 1], std::byte{TestElf::kFileBytes});
    EXPECT_EQ(content[TestElf::kFileBytes], std::byte{0});
    EXPECT_EQ(content[TestElf::kMemoryBytes - 1], std::byte{0});
    EXPECT_EQ(content[TestElf::kMemoryBytes], std::byte{0xee});
    EXPECT_EQ((*everything)[TestElf::kAddress - 1], std::byte{0xee});
}

TEST(ElfImage, PvhNoteGivesProtocolAndEntry) {
    const Kernel kernel = Kernel::parse(make_pvh_elf().file());
    EXPECT_EQ(kernel.protocol(), EntryProtocol::kPvh);
    EXPECT_EQ(kernel.format_name(), "ELF vmlinux with PVH entry");
    const GuestMemory memory = guest_memory(4 * kMiB);
    const GuestRange ram{GuestAddress{0}, 4 * kMiB};
    Placement placement{std::span{&ram, 1}};
    EXPECT_EQ(kernel.load(memory, placement).entry, GuestAddress{TestElf::kPvhEntry});
}

TEST(ElfImage, PvhNoteMayHave32BitsAndComeAfterOthers) {
    TestElf elf = make_elf();
    auto notes = make_note("Linux", 257, testing::bytes_of("x"));
    const auto other = make_note("Xen", 6, testing::bytes_of("linux"));
    const auto entry = static_cast<std::uint32_t>(TestElf::kPvhEntry);
    const auto pvh = make_note("Xen", kPvhNoteType, std::as_bytes(std::span{&entry, 1}));
    notes.insert(notes.end(), other.begin(), other.end());
    notes.insert(notes.end(), pvh.begin(), pvh.end());
    add_notes(elf, notes);
    EXPECT_EQ(Kernel::parse(elf.file()).protocol(), EntryProtocol::kPvh);
}

TEST(ElfImage, Of32BitsIsLoadedAndEnteredLikeThe64BitOne) {
    for (const bool with_note : {false, true}) {
        const Kernel kernel = Kernel::parse((with_note ? make_pvh_elf() : make_elf()).file32());
        EXPECT_EQ(kernel.protocol(), with_note ? EntryProtocol::kPvh : EntryProtocol::kLinux32);
        EXPECT_EQ(kernel.format_name(), with_note ? "ELF vmlinux with PVH entry" : "32-bit ELF vmlinux");
        const GuestMemory memory = guest_memory(4 * kMiB);
        const GuestRange ram{GuestAddress{0}, 4 * kMiB};
        Placement placement{std::span{&ram, 1}};
        const LoadedKernel loaded = kernel.load(memory, placement);
        const GuestRange expected{GuestAddress{TestElf::kAddress}, TestElf::kMemoryBytes};
        EXPECT_EQ(loaded.range, expected);
        EXPECT_EQ(loaded.entry, GuestAddress{with_note ? TestElf::kPvhEntry : TestElf::kEntry});
        EXPECT_EQ(memory.load<std::uint32_t>(expected.base), 0x04030201U);
    }
}

TEST(ElfImage, NotesMayBeAlignedTo8Bytes) {
    TestElf elf = make_elf();
    auto notes = make_note("Linux", 257, testing::bytes_of("x"), 8);
    const auto pvh = make_note("Xen", kPvhNoteType, std::as_bytes(std::span{&TestElf::kPvhEntry, 1}), 8);
    notes.insert(notes.end(), pvh.begin(), pvh.end());
    add_notes(elf, notes, 8);
    EXPECT_EQ(Kernel::parse(elf.file()).protocol(), EntryProtocol::kPvh);
}

TEST(ElfImage, NoteOfAnotherOwnerIsNoPvhNote) {
    TestElf elf = make_elf();
    add_notes(elf, make_note("XXX", kPvhNoteType, std::as_bytes(std::span{&TestElf::kPvhEntry, 1})));
    EXPECT_EQ(Kernel::parse(elf.file()).protocol(), EntryProtocol::kLinux64);
}

TEST(ElfImage, OurNoteSaysThatItTakesPageTables) {
    TestElf elf = make_elf();
    EXPECT_FALSE(Kernel::parse(elf.file()).takes_page_tables());
    add_notes(elf, make_note("vmm", 1, {}));
    EXPECT_TRUE(Kernel::parse(elf.file()).takes_page_tables());
    EXPECT_EQ(Kernel::parse(elf.file()).protocol(), EntryProtocol::kLinux64);
}

std::vector<std::byte> notes_of(std::initializer_list<std::vector<std::byte>> notes) {
    std::vector<std::byte> all;
    for (const auto& note : notes) {
        all.insert(all.end(), note.begin(), note.end());
    }
    return all;
}

std::vector<std::byte> pvh_note() {
    return make_note("Xen", kPvhNoteType, std::as_bytes(std::span{&TestElf::kPvhEntry, 1}));
}

TEST(ElfImage, WithoutPvhNoteGetsADeviceTreeAsSetupData) {
    EXPECT_EQ(Kernel::parse(make_elf().file()).device_tree_hand_over(), DeviceTreeHandOver::kSetupData);
}

TEST(ElfImage, Of32BitsGetsADeviceTreeAsSetupDataOrAsItsNoteSays) {
    TestElf elf = make_elf();
    EXPECT_EQ(Kernel::parse(elf.file32()).device_tree_hand_over(), DeviceTreeHandOver::kSetupData);
    add_notes(elf, make_note("vmm", 2, {}));
    EXPECT_EQ(Kernel::parse(elf.file32()).device_tree_hand_over(), DeviceTreeHandOver::kCommandLine);
}

TEST(ElfImage, LinuxWithPvhEntryHasThe64BitEntryForADeviceTree) {
    TestElf elf = make_elf();
    add_notes(elf, notes_of({make_note("Linux", 257, testing::bytes_of("x")), pvh_note()}));
    const Kernel kernel = Kernel::parse(elf.file());
    EXPECT_EQ(kernel.protocol(), EntryProtocol::kPvh);
    EXPECT_EQ(kernel.linux64_entry(), GuestAddress{TestElf::kEntry});
    EXPECT_EQ(kernel.device_tree_hand_over(), DeviceTreeHandOver::kSetupData);
}

TEST(ElfImage, LinuxWhoseHeaderNamesNoEntryHasOnlyPvh) {
    TestElf elf = make_elf();
    add_notes(elf, notes_of({make_note("Linux", 257, testing::bytes_of("x")), pvh_note()}));
    for (const std::uint64_t entry : {std::uint64_t{0}, std::uint64_t{0x8000000}, UINT64_MAX}) {
        elf.header.e_entry = entry;
        const Kernel kernel = Kernel::parse(elf.file());
        EXPECT_EQ(kernel.linux64_entry(), std::nullopt) << entry;
        EXPECT_EQ(kernel.device_tree_hand_over(), DeviceTreeHandOver::kNone) << entry;
    }
}

TEST(ElfImage, PvhKernelThatIsNotLinuxHasNoWayToGetADeviceTree) {
    const Kernel kernel = Kernel::parse(make_pvh_elf().file());
    EXPECT_EQ(kernel.linux64_entry(), std::nullopt);
    EXPECT_EQ(kernel.device_tree_hand_over(), DeviceTreeHandOver::kNone);
}

TEST(ElfImage, OurNoteSaysThatItTakesADeviceTreeByItsCommandLine) {
    TestElf elf = make_elf();
    add_notes(elf, notes_of({pvh_note(), make_note("vmm", 2, {})}));
    EXPECT_EQ(Kernel::parse(elf.file()).device_tree_hand_over(), DeviceTreeHandOver::kCommandLine);
    EXPECT_FALSE(Kernel::parse(elf.file()).takes_page_tables());
}

TEST(ElfImage, PositionIndependentKernelIsAccepted) {
    EXPECT_EQ(error_after([](TestElf& elf) { elf.header.e_type = ET_DYN; }), "");
}

TEST(ElfImage, FileCutShortAnywhereIsRefused) {
    const auto bytes = make_pvh_elf().bytes();
    for (std::size_t length = 0; length < bytes.size(); ++length) {
        const auto start = std::span{bytes}.first(length);
        EXPECT_NE(error_of([&] { return Kernel::parse(ImageFile::from_bytes("cut", start)); }), "") << length;
    }
}

TEST(ElfImage, OtherKindsOfElfFilesAreNamed) {
    const auto expect = [](std::string_view part, const std::function<void(TestElf&)>& damage) {
        const std::string error = error_after(damage);
        EXPECT_TRUE(mentions(error, part)) << error;
    };
    expect("x86-64, of the 32-bit class", [](TestElf& elf) { elf.header.e_ident[EI_CLASS] = ELFCLASS32; });
    expect("32-bit x86, of the 64-bit class", [](TestElf& elf) { elf.header.e_machine = EM_386; });
    expect("an ELF file of class 3", [](TestElf& elf) { elf.header.e_ident[EI_CLASS] = 3; });
    expect("big-endian", [](TestElf& elf) { elf.header.e_ident[EI_DATA] = ELFDATA2MSB; });
    expect("an ELF file for ARM64", [](TestElf& elf) { elf.header.e_machine = EM_AARCH64; });
    expect("machine number 4711", [](TestElf& elf) { elf.header.e_machine = 4711; });
    expect("a kernel module", [](TestElf& elf) { elf.header.e_type = ET_REL; });
    expect("a core dump", [](TestElf& elf) { elf.header.e_type = ET_CORE; });
    expect("a program for Linux", [](TestElf& elf) { elf.program_headers[1].p_type = PT_INTERP; });
}

TEST(ElfImage, ProgramHeadersBeyondTheFileAreRefused) {
    for (const std::uint64_t offset : {std::uint64_t{0x10000}, UINT64_MAX, UINT64_MAX - 55, UINT64_MAX - 111}) {
        const std::string error = error_after([offset](TestElf& elf) { elf.header.e_phoff = offset; });
        EXPECT_TRUE(mentions(error, "program headers lie beyond its end")) << error;
    }
}

TEST(ElfImage, NoProgramHeadersAreRefused) {
    const std::string error = error_after([](TestElf& elf) { elf.header.e_phnum = 0; });
    EXPECT_TRUE(mentions(error, "no program headers")) << error;
}

TEST(ElfImage, TooManyProgramHeadersAreRefused) {
    const std::string error = error_after([](TestElf& elf) { elf.header.e_phnum = 0xffff; });
    EXPECT_TRUE(mentions(error, "65535 program headers")) << error;
}

TEST(ElfImage, ProgramHeadersOfAnotherSizeAreRefused) {
    const std::string error = error_after([](TestElf& elf) { elf.header.e_phentsize = 32; });
    EXPECT_TRUE(mentions(error, "32 bytes each")) << error;
}

TEST(ElfImage, NothingToLoadIsRefused) {
    const std::string error = error_after([](TestElf& elf) { elf.program_headers[0].p_type = PT_NULL; });
    EXPECT_TRUE(mentions(error, "no segment to load")) << error;
}

TEST(ElfImage, EmptySegmentIsPassedOver) {
    EXPECT_EQ(error_after([](TestElf& elf) {
                  Elf64_Phdr empty{};
                  empty.p_type = PT_LOAD;
                  empty.p_paddr = UINT64_MAX;
                  elf.program_headers.push_back(empty);
                  elf.header.e_phnum = 3;
              }),
              "");
}

TEST(ElfImage, SegmentBeyondTheFileIsRefused) {
    const auto expect_refusal = [](std::uint64_t offset, std::uint64_t file_bytes) {
        const std::string error = error_after([=](TestElf& elf) {
            elf.program_headers[0].p_offset = offset;
            elf.program_headers[0].p_filesz = file_bytes;
            elf.program_headers[0].p_memsz = file_bytes;
        });
        EXPECT_TRUE(mentions(error, "lies beyond its end")) << error;
    };
    expect_refusal(TestElf::kContentOffset, 0x10000);
    expect_refusal(TestElf::kContentOffset, UINT64_MAX);
    expect_refusal(UINT64_MAX, 1);
    expect_refusal(UINT64_MAX, 2);
    expect_refusal(UINT64_MAX - 1, UINT64_MAX);
}

TEST(ElfImage, SegmentWithMoreInTheFileThanInMemoryIsRefused) {
    const std::string error =
        error_after([](TestElf& elf) { elf.program_headers[0].p_memsz = TestElf::kFileBytes - 1; });
    EXPECT_TRUE(mentions(error, "more bytes in the file than in memory")) << error;
}

TEST(ElfImage, SegmentThatWrapsIsRefused) {
    const auto expect_refusal = [](std::uint64_t address, std::uint64_t memory_bytes) {
        const std::string error = error_after([=](TestElf& elf) {
            elf.program_headers[0].p_paddr = address;
            elf.program_headers[0].p_memsz = memory_bytes;
        });
        EXPECT_TRUE(mentions(error, "passes the end of the address space")) << error;
    };
    expect_refusal(UINT64_MAX, 4096);
    expect_refusal(UINT64_MAX - 4094, 4096);
    expect_refusal(4096, UINT64_MAX);
}

TEST(ElfImage, SegmentBeyondRamNamesKernelAndRam) {
    TestElf elf = make_elf();
    elf.program_headers[0].p_memsz = 8 * kMiB;
    const Kernel kernel = Kernel::parse(elf.file());
    const GuestMemory memory = guest_memory(4 * kMiB);
    const GuestRange ram{GuestAddress{0}, 4 * kMiB};
    Placement placement{std::span{&ram, 1}};
    EXPECT_EQ(error_of([&] { return kernel.load(memory, placement); }),
              "the kernel test-vmlinux (0x100000-0x8fffff) does not fit into guest memory 0x0-0x3fffff: give the guest "
              "more memory (Config::memory_bytes)");
}

TEST(ElfImage, SegmentsThatOverlapEachOtherAreRefused) {
    TestElf elf = make_elf();
    elf.program_headers.push_back(elf.program_headers[0]);
    elf.header.e_phnum = 2;
    const Kernel kernel = Kernel::parse(elf.file());
    const GuestMemory memory = guest_memory(4 * kMiB);
    const GuestRange ram{GuestAddress{0}, 4 * kMiB};
    Placement placement{std::span{&ram, 1}};
    const std::string error = error_of([&] { return kernel.load(memory, placement); });
    EXPECT_TRUE(mentions(error, "overlaps the kernel test-vmlinux")) << error;
}

TEST(ElfImage, EntryOutsideOfEverySegmentIsRefused) {
    TestElf elf = make_elf();
    for (const std::uint64_t entry : {std::uint64_t{0}, TestElf::kAddress - 1, TestElf::kAddress + TestElf::kFileBytes,
                                      0xffffffff80000000 + TestElf::kEntry, UINT64_MAX}) {
        elf.header.e_entry = entry;
        EXPECT_TRUE(mentions(elf.parse_error(), "lies in none of its segments")) << entry;
    }
}

TEST(ElfImage, PvhEntryOutsideOfEverySegmentIsRefused) {
    TestElf elf = make_elf();
    const std::uint64_t entry = 0;
    add_notes(elf, make_note("Xen", kPvhNoteType, std::as_bytes(std::span{&entry, 1})));
    EXPECT_TRUE(mentions(elf.parse_error(), "entry point 0x0 lies in none of its segments")) << elf.parse_error();
}

TEST(ElfImage, EntryAbove4GiBIsRefused) {
    const std::string error = error_after([](TestElf& elf) {
        elf.program_headers.resize(1);
        elf.header.e_phnum = 1;
        elf.program_headers[0].p_paddr = 4 * kGiB;
        elf.header.e_entry = 4 * kGiB;
    });
    EXPECT_TRUE(mentions(error, "above 4 GiB")) << error;
}

TEST(ElfImage, NoteSegmentBeyondTheFileIsRefused) {
    for (const std::uint64_t offset : {std::uint64_t{0x10000}, UINT64_MAX}) {
        const std::string error = error_after([offset](TestElf& elf) { elf.program_headers[1].p_offset = offset; });
        EXPECT_TRUE(mentions(error, "its note segment")) << error;
    }
}

TEST(ElfImage, NoteLongerThanItsSegmentIsRefused) {
    const auto expect_refusal = [](std::size_t offset_in_note, std::uint32_t value) {
        const std::string error = error_after([=](TestElf& elf) {
            std::memcpy(elf.content.data() + TestElf::kFileBytes + offset_in_note, &value, sizeof value);
        });
        EXPECT_TRUE(mentions(error, "longer than the segment")) << error;
    };
    constexpr std::size_t kNameSize = 0;
    constexpr std::size_t kContentSize = 4;
    for (const std::uint32_t size : {0x100U, 0x7fffffffU, 0xfffffff4U, 0xfffffffcU, 0xffffffffU}) {
        expect_refusal(kNameSize, size);
        expect_refusal(kContentSize, size);
    }
}

TEST(ElfImage, PvhNoteOfOddSizeIsRefused) {
    TestElf elf = make_elf();
    add_notes(elf, make_note("Xen", kPvhNoteType, testing::bytes_of("abc")));
    EXPECT_TRUE(mentions(elf.parse_error(), "PVH note has 3 bytes")) << elf.parse_error();
}

TEST(ElfImage, TrailingBytesTooFewForANoteAreIgnored) {
    TestElf elf = make_elf();
    add_notes(elf, testing::pattern(11));
    EXPECT_EQ(elf.parse_error(), "");
}

TEST(ElfImage, NotesOf4GiBAreRefusedWithoutReadingThem) {
    TestElf elf = make_pvh_elf();
    elf.program_headers[1].p_filesz = 4 * kGiB;
    const auto bytes = elf.bytes();
    const UniqueFd sparse{::open(std::filesystem::temp_directory_path().c_str(), O_TMPFILE | O_RDWR, 0600)};
    ASSERT_TRUE(sparse);
    ASSERT_EQ(::ftruncate(sparse.get(), static_cast<off_t>(5 * kGiB)), 0);
    ASSERT_EQ(::pwrite(sparse.get(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
    const std::string path = "/proc/self/fd/" + std::to_string(sparse.get());
    const std::string error = error_of([&] { return Kernel::parse(ImageFile{path}); });
    EXPECT_TRUE(mentions(error, "its notes take 4 GiB")) << error;
}

TEST(ElfImage, DamagedBytesAreNeverAccidents) {
    const auto sound = make_pvh_elf().bytes();
    const GuestMemory memory = guest_memory(4 * kMiB);
    const GuestRange ram{GuestAddress{0}, 4 * kMiB};
    std::mt19937 random{42}; // NOLINT(cert-msc32-c,cert-msc51-cpp): the same damage in every run
    for (unsigned i = 0; i < 3000; ++i) {
        auto bytes = sound;
        for (unsigned j = 0; j < 1 + i % 4; ++j) {
            bytes[random() % bytes.size()] = static_cast<std::byte>(random());
        }
        static_cast<void>(error_of([&] {
            Placement placement{std::span{&ram, 1}};
            return Kernel::parse(ImageFile::from_bytes("damaged", bytes)).load(memory, placement);
        }));
    }
}

} // namespace
} // namespace vmm::loader
