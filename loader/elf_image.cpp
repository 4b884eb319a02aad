#include "loader/elf_image.hpp"

#include <elf.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "loader/foreign_image.hpp"

namespace vmm::loader {
namespace {

using namespace std::string_view_literals;

constexpr std::string_view kNotForUs = "use a kernel built for x86";

constexpr std::string_view kXenNoteName = "Xen\0"sv;     // with its NUL
constexpr std::uint32_t kXenNotePhys32Entry = 18;        // XEN_ELFNOTE_PHYS32_ENTRY, xen/include/public/elfnote.h
constexpr std::string_view kOurNoteName = "vmm\0"sv;     // with its NUL
constexpr std::uint32_t kOurNoteTakesPageTables = 1;     // docs/prefault.md, "Shadow paging"
constexpr std::uint32_t kOurNoteTakesDeviceTree = 2;     // docs/devices.md, "What tells of the hardware"
constexpr std::string_view kLinuxNoteName = "Linux\0"sv; // with its NUL; include/linux/elfnote.h

std::string machine_name(std::uint16_t machine) {
    switch (machine) {
    case EM_X86_64:
        return "x86-64, of the 32-bit class";
    case EM_386:
        return "32-bit x86, of the 64-bit class";
    case EM_ARM:
        return "32-bit ARM";
    case EM_AARCH64:
        return "ARM64";
    case EM_RISCV:
        return "RISC-V";
    case EM_PPC64:
        return "PowerPC";
    case EM_S390:
        return "s390";
    default:
        return "machine number " + std::to_string(machine);
    }
}

std::string_view type_name(std::uint16_t type) {
    switch (type) {
    case ET_REL:
        return "an object file or a kernel module";
    case ET_CORE:
        return "a core dump";
    default:
        return "an ELF file of no known type";
    }
}

/// The fields of a header that we use, for both classes: the 32-bit headers have the same fields, but narrower.
Elf64_Ehdr widened(const Elf32_Ehdr& narrow) {
    Elf64_Ehdr wide{};
    wide.e_type = narrow.e_type;
    wide.e_machine = narrow.e_machine;
    wide.e_entry = narrow.e_entry;
    wide.e_phoff = narrow.e_phoff;
    wide.e_phentsize = narrow.e_phentsize;
    wide.e_phnum = narrow.e_phnum;
    return wide;
}

Elf64_Phdr widened(const Elf32_Phdr& narrow) {
    Elf64_Phdr wide{};
    wide.p_type = narrow.p_type;
    wide.p_offset = narrow.p_offset;
    wide.p_paddr = narrow.p_paddr;
    wide.p_filesz = narrow.p_filesz;
    wide.p_memsz = narrow.p_memsz;
    wide.p_align = narrow.p_align;
    return wide;
}

struct Header {
    bool is_64_bit;
    Elf64_Ehdr fields; // without e_ident
};

Header checked_header(const ImageFile& file) {
    // The identification comes first and is the same for every class. The size of the rest depends on the class.
    const auto ident = file.load<std::array<unsigned char, EI_NIDENT>>(0);
    if (!ident) {
        refuse_kernel(file, "its ELF header is cut short", kDamaged);
    }
    const unsigned elf_class = (*ident)[EI_CLASS];
    if (elf_class != ELFCLASS64 && elf_class != ELFCLASS32) {
        refuse_kernel(file, "it is an ELF file of class " + std::to_string(elf_class), kDamaged);
    }
    const bool is_64_bit = elf_class == ELFCLASS64;
    if ((*ident)[EI_DATA] != ELFDATA2LSB) {
        refuse_kernel(file, "it is a big-endian ELF file", kNotForUs);
    }
    std::optional<Elf64_Ehdr> header;
    if (is_64_bit) {
        header = file.load<Elf64_Ehdr>(0);
    } else if (const auto narrow = file.load<Elf32_Ehdr>(0)) {
        header = widened(*narrow);
    }
    if (!header) {
        refuse_kernel(file, "its ELF header is cut short", kDamaged);
    }
    if (header->e_machine != (is_64_bit ? EM_X86_64 : EM_386)) {
        refuse_kernel(file, "it is an ELF file for " + machine_name(header->e_machine), kNotForUs);
    }
    if (header->e_type != ET_EXEC && header->e_type != ET_DYN) {
        refuse_kernel(file, "it is " + std::string{type_name(header->e_type)} + ", not a kernel");
    }
    return {is_64_bit, *header};
}

std::vector<Elf64_Phdr> read_program_headers(const ImageFile& file, const Header& elf) {
    const Elf64_Ehdr& header = elf.fields;
    const std::size_t entry_bytes = elf.is_64_bit ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr);
    if (header.e_phnum == 0) {
        refuse_kernel(file, "it has no program headers, so nothing says where to load it");
    }
    if (header.e_phentsize != entry_bytes) {
        refuse_kernel(file,
                      "its program headers have " + std::to_string(header.e_phentsize) + " bytes each, not " +
                          std::to_string(entry_bytes),
                      kDamaged);
    }
    if (header.e_phnum > ElfImage::kMaxProgramHeaders) {
        refuse_kernel(file,
                      "it has " + std::to_string(header.e_phnum) + " program headers; a kernel has at most " +
                          std::to_string(ElfImage::kMaxProgramHeaders),
                      kDamaged);
    }
    const auto read = [&](auto& headers) {
        if (!file.read_at(header.e_phoff, std::as_writable_bytes(std::span{headers}))) {
            refuse_kernel(file, "its program headers lie beyond its end", kDamaged);
        }
    };
    std::vector<Elf64_Phdr> headers(header.e_phnum);
    if (elf.is_64_bit) {
        read(headers);
    } else {
        std::vector<Elf32_Phdr> narrow(header.e_phnum);
        read(narrow);
        std::ranges::transform(narrow, headers.begin(), [](const Elf32_Phdr& one) { return widened(one); });
    }
    return headers;
}

void check_file_part(const ImageFile& file, const Elf64_Phdr& header, std::string_view what) {
    if (header.p_offset > file.size() || header.p_filesz > file.size() - header.p_offset) {
        refuse_kernel(file,
                      std::string{what} + " at file offset " + to_string(GuestAddress{header.p_offset}) +
                          " lies beyond its end",
                      kDamaged);
    }
}

ElfSegment checked_segment(const ImageFile& file, const Elf64_Phdr& header) {
    const std::string name = "its segment for address " + to_string(GuestAddress{header.p_paddr});
    check_file_part(file, header, name);
    if (header.p_filesz > header.p_memsz) {
        refuse_kernel(file, name + " has more bytes in the file than in memory", kDamaged);
    }
    if (!checked_add(GuestAddress{header.p_paddr}, header.p_memsz)) {
        refuse_kernel(file, name + " passes the end of the address space", kDamaged);
    }
    return {{GuestAddress{header.p_paddr}, header.p_memsz}, header.p_offset, header.p_filesz};
}

bool is_loaded(GuestAddress entry, std::span<const ElfSegment> segments) {
    return std::ranges::any_of(segments, [entry](const ElfSegment& segment) {
        return GuestRange{segment.range.base, segment.file_bytes}.contains({entry, 1});
    });
}

/// Throws Error unless the entry point lies in what is read from the file, and where its protocol can reach it: PVH and
/// linux32 start without paging, and linux64 with page tables for the first 4 GiB.
void check_entry(const ImageFile& file, GuestAddress entry, std::span<const ElfSegment> segments) {
    if (!is_loaded(entry, segments)) {
        refuse_kernel(file, "its entry point " + to_string(entry) + " lies in none of its segments",
                      "the entry point of a kernel is a physical address");
    }
    if (to_integer(entry) >= 4 * kGiB) {
        refuse_kernel(file, "its entry point " + to_string(entry) + " lies above 4 GiB");
    }
}

struct Note {
    std::string_view name; // with its NUL
    std::uint32_t type;
    std::span<const std::byte> content;
};

/// Takes notes from a PT_NOTE segment one by one. Each note takes at least its 12-byte header, so the walk ends.
class NoteReader {
  public:
    /// `alignment` is that of names and contents, 4 or 8.
    NoteReader(std::span<const std::byte> bytes, std::uint64_t alignment) : bytes_(bytes), alignment_(alignment) {}

    [[nodiscard]] bool at_end() const { return bytes_.size() < sizeof(Elf64_Nhdr); }

    /// The next note; nothing if its sizes pass the end of the segment. Must not be called at the end.
    std::optional<Note> next() {
        Elf64_Nhdr header;
        std::memcpy(&header, bytes_.data(), sizeof header);
        // The sums are 64 bits wide and the sizes 32 bits, so nothing can wrap here.
        const std::uint64_t name_end = sizeof header + std::uint64_t{header.n_namesz};
        const std::uint64_t content_begin = rounded_up(name_end);
        const std::uint64_t content_end = content_begin + header.n_descsz;
        if (content_end > bytes_.size()) {
            return std::nullopt;
        }
        // The name is within `bytes_`, because it ends before the content does. A char may alias bytes.
        const Note note{{reinterpret_cast<const char*>(bytes_.data()) + sizeof header, header.n_namesz},
                        header.n_type,
                        bytes_.subspan(content_begin, header.n_descsz)};
        bytes_ = bytes_.subspan(std::min<std::uint64_t>(rounded_up(content_end), bytes_.size()));
        return note;
    }

  private:
    /// Only for sums of 32-bit sizes, which are far from wrapping.
    [[nodiscard]] std::uint64_t rounded_up(std::uint64_t value) const {
        return align_down(value + alignment_ - 1, alignment_);
    }

    std::span<const std::byte> bytes_;
    std::uint64_t alignment_;
};

/// The entry point in a PVH note. It is 32 or 64 bits wide, depending on who wrote the kernel.
std::optional<GuestAddress> pvh_entry(const Note& note) {
    if (note.content.size() != 4 && note.content.size() != 8) {
        return std::nullopt;
    }
    std::uint64_t entry = 0;
    std::memcpy(&entry, note.content.data(), note.content.size());
    return GuestAddress{entry};
}

/// The facts that we read from the notes of a kernel.
struct NotedFacts {
    std::optional<GuestAddress> pvh_entry;
    bool takes_page_tables = false;
    bool takes_device_tree_address = false;
    bool is_linux = false;
};

/// Reads the notes of one PT_NOTE segment. If there are several of a kind, the first one counts.
NotedFacts read_notes(const ImageFile& file, const Elf64_Phdr& header) {
    check_file_part(file, header, "its note segment");
    if (header.p_filesz > ElfImage::kMaxNoteBytes) {
        refuse_kernel(file,
                      "its notes take " + format_bytes(header.p_filesz) + "; those of a kernel take at most " +
                          format_bytes(ElfImage::kMaxNoteBytes),
                      kDamaged);
    }
    std::vector<std::byte> bytes(header.p_filesz);
    if (!file.read_at(header.p_offset, bytes)) {
        refuse_kernel(file, "its notes cannot be read to their end", kDamaged);
    }
    NotedFacts facts;
    NoteReader notes{bytes, header.p_align == 8 ? 8U : 4U};
    while (!notes.at_end()) {
        const auto note = notes.next();
        if (!note) {
            refuse_kernel(file, "one of its notes is longer than the segment it is in", kDamaged);
        }
        if (note->name == kOurNoteName && note->type == kOurNoteTakesPageTables) {
            facts.takes_page_tables = true;
        }
        if (note->name == kOurNoteName && note->type == kOurNoteTakesDeviceTree) {
            facts.takes_device_tree_address = true;
        }
        facts.is_linux = facts.is_linux || note->name == kLinuxNoteName;
        if (note->name != kXenNoteName || note->type != kXenNotePhys32Entry || facts.pvh_entry) {
            continue;
        }
        facts.pvh_entry = pvh_entry(*note);
        if (!facts.pvh_entry) {
            refuse_kernel(file, "its PVH note has " + std::to_string(note->content.size()) + " bytes, not 4 or 8",
                          kDamaged);
        }
    }
    return facts;
}

} // namespace

bool ElfImage::recognises(const ImageFile& file) {
    const auto magic = file.load<std::array<char, SELFMAG>>(0);
    return magic && std::string_view{magic->data(), magic->size()} == std::string_view{ELFMAG, SELFMAG};
}

ElfImage ElfImage::parse(const ImageFile& file) {
    const Header header = checked_header(file);
    ElfImage image;
    image.protocol_ = header.is_64_bit ? EntryProtocol::kLinux64 : EntryProtocol::kLinux32;
    image.entry_ = GuestAddress{header.fields.e_entry};
    bool is_linux = false;
    for (const Elf64_Phdr& program_header : read_program_headers(file, header)) {
        switch (program_header.p_type) {
        case PT_LOAD:
            if (program_header.p_memsz != 0 || program_header.p_filesz != 0) {
                image.segments_.push_back(checked_segment(file, program_header));
            }
            break;
        case PT_NOTE: {
            const NotedFacts facts = read_notes(file, program_header);
            image.takes_page_tables_ = image.takes_page_tables_ || facts.takes_page_tables;
            image.takes_device_tree_address_ = image.takes_device_tree_address_ || facts.takes_device_tree_address;
            is_linux = is_linux || facts.is_linux;
            if (facts.pvh_entry) {
                image.protocol_ = EntryProtocol::kPvh;
                image.entry_ = *facts.pvh_entry;
            }
            break;
        }
        case PT_INTERP:
            refuse_kernel(file, "it is a program for Linux, not a kernel");
        default:
            break;
        }
    }
    if (image.segments_.empty()) {
        refuse_kernel(file, "it has no segment to load");
    }
    check_entry(file, image.entry_, image.segments_);
    if (image.protocol_ == EntryProtocol::kPvh && is_linux && header.is_64_bit && header.fields.e_entry < 4 * kGiB &&
        is_loaded(GuestAddress{header.fields.e_entry}, image.segments_)) {
        image.linux64_entry_ = GuestAddress{header.fields.e_entry};
    }
    return image;
}

LoadedKernel ElfImage::load(const ImageFile& file, const GuestMemory& memory, Placement& placement) const {
    for (const ElfSegment& segment : segments_) {
        placement.claim(segment.range, "the kernel " + file.name());
    }
    GuestAddress begin = segments_.front().range.base;
    GuestAddress end = segments_.front().range.end();
    for (const ElfSegment& segment : segments_) {
        file.read_into(memory, segment.range.base, segment.file_offset, segment.file_bytes);
        fill_with_zeros(memory, {GuestAddress{to_integer(segment.range.base) + segment.file_bytes},
                                 segment.range.size - segment.file_bytes});
        begin = std::min(begin, segment.range.base);
        end = std::max(end, segment.range.end());
    }
    return {{begin, to_integer(end) - to_integer(begin)}, entry_};
}

} // namespace vmm::loader
