#include "vmm/state/state_container.hpp"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <optional>
#include <string_view>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/text.hpp"
#include "vmm/state/crc32c.hpp"
#include "vmm/state/state_file.hpp"
#include "vmm/version.hpp"

namespace vmm {

namespace {

using namespace state_container;

constexpr std::string_view kMagic = "VMMSTATE";
constexpr std::uint32_t kArchitecture = 62; // ELF's number of x86-64
constexpr std::uint32_t kRequired = 1;
constexpr std::size_t kChecksumBytes = 4;
constexpr std::size_t kLengthOffset = 16;

class ByteWriter {
  public:
    template <typename Number>
    void number(Number value) {
        for (std::size_t i = 0; i < sizeof value; ++i) {
            bytes_.push_back(static_cast<std::byte>(value >> (8 * i)));
        }
    }
    void name(std::string_view text) {
        assert(text.size() <= kMostNameBytes);
        bytes(std::as_bytes(std::span(text)));
        bytes_.resize(bytes_.size() + kMostNameBytes - text.size());
    }
    void bytes(std::span<const std::byte> bytes) { bytes_.insert(bytes_.end(), bytes.begin(), bytes.end()); }

    [[nodiscard]] std::vector<std::byte>& all() noexcept { return bytes_; }

  private:
    std::vector<std::byte> bytes_;
};

/// Reads values. The caller must know that the bytes are there.
class ByteReader {
  public:
    explicit ByteReader(std::span<const std::byte> bytes) : left_(bytes) {}

    template <typename Number>
    Number number() {
        Number value = 0;
        const std::span<const std::byte> from = bytes(sizeof value);
        for (std::size_t i = 0; i < sizeof value; ++i) {
            value |= static_cast<Number>(static_cast<Number>(from[i]) << (8 * i));
        }
        return value;
    }
    std::string name() {
        std::string text(kMostNameBytes, '\0');
        std::memcpy(text.data(), bytes(kMostNameBytes).data(), kMostNameBytes);
        text.resize(std::min(text.find('\0'), text.size()));
        return text;
    }
    std::span<const std::byte> bytes(std::size_t count) {
        assert(count <= left_.size());
        const std::span<const std::byte> front = left_.first(count);
        left_ = left_.subspan(count);
        return front;
    }
    [[nodiscard]] std::size_t left() const noexcept { return left_.size(); }

  private:
    std::span<const std::byte> left_;
};

constexpr std::string_view kAdvice = "take a snapshot that is whole";

[[noreturn]] void refuse_state(std::string_view why, std::string_view advice = kAdvice) {
    throw Error(format("cannot use this state: {} ({})", why, advice));
}

bool is_section_name(std::string_view name) {
    return !name.empty() && std::ranges::all_of(name, [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
    });
}

struct Header {
    std::string writer;
    std::uint32_t sections = 0;
};

/// Throws Error unless `bytes` are a complete file of this format.
Header read_header(std::span<const std::byte> bytes) {
    if (bytes.size() > kMostStateBytes) {
        refuse_state(format("it has {} bytes, and a state has at most {}", bytes.size(), kMostStateBytes));
    }
    if (bytes.size() < kMagic.size() || std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0) {
        refuse_state("it is no state of a machine", "name the directory of a snapshot");
    }
    if (bytes.size() < kHeaderBytes + kChecksumBytes) {
        refuse_state(format("it is truncated: it has {} bytes", bytes.size()));
    }
    ByteReader reader(bytes.subspan(kMagic.size()));
    const auto version = reader.number<std::uint32_t>();
    const auto architecture = reader.number<std::uint32_t>();
    const auto length = reader.number<std::uint64_t>();
    const auto sections = reader.number<std::uint32_t>();
    static_cast<void>(reader.number<std::uint32_t>());
    const std::string writer = reader.name();
    if (version != kFormatVersion) {
        refuse_state(
            format("its format is of version {}, and vmm {} knows version {}", version, kVersion, kFormatVersion),
            format("use the version of vmm that wrote it, which is {}", shown(writer)));
    }
    if (architecture != kArchitecture) {
        refuse_state(format("it is of another architecture, whose number is {}; this is x86-64, {}", architecture,
                            kArchitecture),
                     "restore it on a host of its architecture");
    }
    if (length != bytes.size()) {
        refuse_state(format("it has {} bytes, and was written with {}: it is {}", bytes.size(), length,
                            bytes.size() < length ? "truncated" : "damaged"));
    }
    if (sections > kMostSections) {
        refuse_state(format("it has {} sections, and can have {}", sections, kMostSections));
    }
    return {writer, sections};
}

/// One section, as it stands in a file.
struct RawSection {
    std::string name;
    std::uint32_t version = 0;
    std::uint32_t flags = 0;
    std::uint32_t checksum = 0;
    std::span<const std::byte> content;

    [[nodiscard]] bool is_whole() const { return crc32c(content) == checksum; }
};

/// Returns nothing if the section is longer than the bytes that are left.
std::optional<RawSection> read_section(ByteReader& reader) {
    if (reader.left() < kSectionHeaderBytes) {
        return std::nullopt;
    }
    RawSection section;
    section.name = reader.name();
    section.version = reader.number<std::uint32_t>();
    section.flags = reader.number<std::uint32_t>();
    const auto length = reader.number<std::uint64_t>();
    section.checksum = reader.number<std::uint32_t>();
    static_cast<void>(reader.number<std::uint32_t>());
    if (length > reader.left()) {
        return std::nullopt;
    }
    section.content = reader.bytes(static_cast<std::size_t>(length));
    return section;
}

/// Throws Error because the checksum of the whole file is wrong. If a section is damaged, it is named.
[[noreturn]] void refuse_damaged(std::span<const RawSection> sections) {
    for (const RawSection& section : sections) {
        if (!section.is_whole()) {
            refuse_state("its section '" + shown(section.name) + "' is damaged: its checksum is another");
        }
    }
    refuse_state("it is damaged: its checksum is another");
}

} // namespace

std::vector<std::byte> pack_sections(const StateContainer& container) {
    assert(container.sections.size() <= kMostSections);
    ByteWriter writer;
    writer.bytes(std::as_bytes(std::span(kMagic)));
    writer.number(kFormatVersion);
    writer.number(kArchitecture);
    writer.number(std::uint64_t{0}); // set below
    writer.number(static_cast<std::uint32_t>(container.sections.size()));
    writer.number(std::uint32_t{0});
    writer.name(container.writer);
    writer.number(std::uint64_t{0});
    for (const StateSection& section : container.sections) {
        writer.name(section.name);
        writer.number(section.version);
        writer.number(section.is_required ? kRequired : 0U);
        writer.number(static_cast<std::uint64_t>(section.content.size()));
        writer.number(crc32c(section.content));
        writer.number(std::uint32_t{0});
        writer.bytes(section.content);
    }
    ByteWriter length;
    length.number(static_cast<std::uint64_t>(writer.all().size() + kChecksumBytes));
    std::ranges::copy(length.all(), writer.all().begin() + kLengthOffset);
    writer.number(crc32c(writer.all()));
    if (writer.all().size() > kMostStateBytes) {
        throw Error(format("cannot save the state of this machine: it has {}, and a state has at most {} (give the "
                           "machine fewer vCPUs or less memory)",
                           format_bytes(writer.all().size()), format_bytes(kMostStateBytes)));
    }
    return std::move(writer.all());
}

StateContainer unpack_sections(std::span<const std::byte> bytes) {
    const Header header = read_header(bytes);
    const std::size_t end = bytes.size() - kChecksumBytes;
    ByteReader reader(bytes.subspan(kHeaderBytes, end - kHeaderBytes));
    std::vector<RawSection> sections;
    while (sections.size() < header.sections) {
        const auto section = read_section(reader);
        if (!section) {
            break;
        }
        sections.push_back(*section);
    }
    if (crc32c(bytes.first(end)) != ByteReader(bytes.subspan(end)).number<std::uint32_t>()) {
        refuse_damaged(sections);
    }
    // From here on the bytes are as somebody wrote them, but that writer may be hostile.
    if (sections.size() != header.sections || reader.left() != 0) {
        refuse_state("its sections do not fill it");
    }
    StateContainer container{header.writer, {}};
    for (const RawSection& section : sections) {
        if (!section.is_whole()) {
            refuse_damaged(sections);
        }
        if (!is_section_name(section.name)) {
            refuse_state("'" + shown(section.name) + "' is no name of a section");
        }
        if (std::ranges::find(container.sections, section.name, &StateSection::name) != container.sections.end()) {
            refuse_state("there are two sections '" + section.name + "'");
        }
        container.sections.push_back({section.name,
                                      section.version,
                                      (section.flags & kRequired) != 0,
                                      {section.content.begin(), section.content.end()}});
    }
    return container;
}

} // namespace vmm
