#include "vmm/state/state_file.hpp"

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>
#include <utility>

#include "devices/pci/root_bus.hpp"
#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/text.hpp"
#include "vmm/limits.hpp"
#include "vmm/state/board_fields.hpp"
#include "vmm/state/cbor.hpp"
#include "vmm/state/fields.hpp"
#include "vmm/state/machine_fields.hpp"
#include "vmm/state/memory_layout.hpp"
#include "vmm/state/state_container.hpp"
#include "vmm/state/virtio_fields.hpp"
#include "vmm/state/x86/vcpu_fields.hpp"
#include "vmm/state/x86/vm_fields.hpp"
#include "vmm/version.hpp"

namespace vmm {

namespace {

constexpr std::size_t kMostPathBytes = 4096; // PATH_MAX

/// One kind of section. Both functions describe one field, which has the name of the section.
struct SectionKind {
    std::string_view name;
    std::uint32_t version; ///< the version that is written; earlier ones can be read, too
    bool is_required;      ///< whether every state must have the section, and every reader must know it
    void (*write)(FieldWriter& fields, std::string_view name, const SnapshotState& state);
    void (*read)(FieldReader& fields, std::string_view name, SnapshotState& state);
};

void describe_origin(auto& fields, std::string_view name, auto& state) {
    fields.object(name, state.origin, [](auto& inner, auto& value) { machine_fields::origin(inner, value); });
}

void describe_machine(auto& fields, std::string_view name, auto& state) {
    fields.object(name, state.machine, [](auto& inner, auto& value) { machine_fields::machine(inner, value); });
}

void describe_vcpus(auto& fields, std::string_view name, auto& state) {
    fields.list(name, state.machine.vcpus, {1, limits::kMaxVcpus},
                [](auto& inner, auto& value) { vcpu_fields::vcpu(inner, value); });
}

void describe_vm(auto& fields, std::string_view name, auto& state) {
    fields.object(name, state.machine.vm, [](auto& inner, auto& value) { vm_fields::vm(inner, value); });
}

void read_vm(FieldReader& fields, std::string_view name, SnapshotState& state) {
    describe_vm(fields, name, state);
    std::uint32_t id = 0;
    for (kvm_irqchip& controller : state.machine.vm.interrupt_controllers) {
        controller.chip_id = id++;
    }
}

void describe_board(auto& fields, std::string_view name, auto& state) {
    fields.object(name, state.machine.board, [](auto& inner, auto& value) { board_fields::board(inner, value); });
}

void describe_virtio(auto& fields, std::string_view name, auto& state) {
    fields.list(name, state.machine.virtio, {0, devices::pci::RootBus::kSlots - 1},
                [](auto& inner, auto& value) { virtio_fields::virtio_device(inner, value); });
}

/// The index in packed form: a bit for each chunk that is a hole, and the checksums of the others.
struct PackedIndex {
    std::uint64_t chunk_bytes = kMemoryChunkBytes;
    std::vector<std::byte> holes;
    std::vector<std::byte> checksums; ///< little-endian
};

void describe_index(auto& fields, std::string_view name, auto& index, std::size_t chunks) {
    fields.object(name, index, [chunks](auto& inner, auto& value) {
        inner.number("chunk_bytes", value.chunk_bytes, {kMemoryChunkBytes, kMemoryChunkBytes});
        inner.bytes("holes", value.holes, {(chunks + 7) / 8, (chunks + 7) / 8});
        inner.bytes("crc32c", value.checksums, {0, chunks * sizeof(std::uint32_t)});
    });
}

void write_index(FieldWriter& fields, std::string_view name, const SnapshotState& state) {
    const MemoryIndex& index = *state.memory;
    const std::size_t chunks = MemoryLayout(state.machine.memory).chunks();
    FieldSize{chunks, chunks}.check({&fields.path(), name, std::nullopt, false}, index.size(), "chunks");
    PackedIndex packed;
    packed.holes.resize((chunks + 7) / 8);
    for (std::size_t i = 0; i < chunks; ++i) {
        if (index[i].is_hole) {
            packed.holes[i / 8] |= std::byte{1} << (i % 8);
            continue;
        }
        for (std::size_t byte = 0; byte < sizeof index[i].crc32c; ++byte) {
            packed.checksums.push_back(static_cast<std::byte>(index[i].crc32c >> (8 * byte)));
        }
    }
    describe_index(fields, name, packed, chunks);
}

void read_index(FieldReader& fields, std::string_view name, SnapshotState& state) {
    const std::size_t chunks = MemoryLayout(state.machine.memory).chunks();
    PackedIndex packed;
    describe_index(fields, name, packed, chunks);
    const FieldPath path{&fields.path(), name, std::nullopt, false};
    MemoryIndex index(chunks);
    std::size_t taken = 0;
    for (std::size_t i = 0; i < packed.holes.size() * 8; ++i) {
        const bool is_hole = (packed.holes[i / 8] >> (i % 8) & std::byte{1}) != std::byte{0};
        if (is_hole && i >= chunks) {
            path.refuse("has a hole beyond the end of memory");
        }
        if (is_hole || i >= chunks) {
            continue;
        }
        index[i].is_hole = false;
        if (packed.checksums.size() - taken < sizeof index[i].crc32c) {
            path.refuse("has fewer checksums than there are chunks of memory");
        }
        for (std::size_t byte = 0; byte < sizeof index[i].crc32c; ++byte) {
            index[i].crc32c |= static_cast<std::uint32_t>(packed.checksums[taken++]) << (8 * byte);
        }
    }
    if (taken != packed.checksums.size()) {
        path.refuse("has more checksums than there are chunks of memory");
    }
    state.memory = std::move(index);
}

/// The base of a snapshot, and a bit for each chunk that it holds.
struct PackedBase {
    SnapshotBase base;
    std::vector<std::byte> chunks;
};

void describe_base(auto& fields, std::string_view name, auto& packed, std::size_t chunks) {
    fields.object(name, packed, [chunks](auto& inner, auto& value) {
        inner.text("path", value.base.path, kMostPathBytes);
        inner.number("state_bytes", value.base.state_bytes);
        inner.number("state_crc32c", value.base.state_crc32c);
        inner.bytes("chunks", value.chunks, {(chunks + 7) / 8, (chunks + 7) / 8});
    });
}

void write_base(FieldWriter& fields, std::string_view name, const SnapshotState& state) {
    const MemoryIndex& index = *state.memory;
    PackedBase packed{*state.base, std::vector<std::byte>((index.size() + 7) / 8)};
    for (std::size_t i = 0; i < index.size(); ++i) {
        if (index[i].file != 0) {
            packed.chunks[i / 8] |= std::byte{1} << (i % 8);
        }
    }
    describe_base(fields, name, packed, index.size());
}

void read_base(FieldReader& fields, std::string_view name, SnapshotState& state) {
    const FieldPath path{&fields.path(), name, std::nullopt, false};
    if (!state.memory) {
        path.refuse("is there, and the memory is not");
    }
    MemoryIndex& index = *state.memory;
    PackedBase packed;
    describe_base(fields, name, packed, index.size());
    for (std::size_t i = 0; i < packed.chunks.size() * 8; ++i) {
        if ((packed.chunks[i / 8] >> (i % 8) & std::byte{1}) == std::byte{0}) {
            continue;
        }
        if (i >= index.size() || index[i].is_hole) {
            path.refuse("has a chunk that is a hole, or beyond the end of memory");
        }
        index[i].file = 1;
    }
    state.base = std::move(packed.base);
}

constexpr std::string_view kOrigin = "origin";
constexpr std::string_view kBase = "base";
constexpr std::string_view kMemory = "memory";

// The order is that of reading: the memory's index depends on the machine, and the base on the index.
constexpr std::array kSectionKinds{
    SectionKind{kOrigin, 1, false, describe_origin<FieldWriter, const SnapshotState>,
                describe_origin<FieldReader, SnapshotState>},
    SectionKind{"machine", 1, true, describe_machine<FieldWriter, const SnapshotState>,
                describe_machine<FieldReader, SnapshotState>},
    SectionKind{"vcpus", 1, true, describe_vcpus<FieldWriter, const SnapshotState>,
                describe_vcpus<FieldReader, SnapshotState>},
    SectionKind{"vm", 1, true, describe_vm<FieldWriter, const SnapshotState>, read_vm},
    SectionKind{"board", 1, true, describe_board<FieldWriter, const SnapshotState>,
                describe_board<FieldReader, SnapshotState>},
    SectionKind{"virtio", 1, true, describe_virtio<FieldWriter, const SnapshotState>,
                describe_virtio<FieldReader, SnapshotState>},
    SectionKind{kMemory, 1, true, write_index, read_index},
    SectionKind{kBase, 1, true, write_base, read_base},
};

[[noreturn]] void refuse_newer(const StateContainer& container, const std::string& why) {
    throw Error(format("cannot use this state: {}, and vmm {} does not know it (use the version of vmm that wrote it, "
                       "which is {}, or a later one)",
                       why, kVersion, shown(container.writer)));
}

/// Throws Error if a required section is unknown.
void check_all_known(const StateContainer& container) {
    for (const StateSection& section : container.sections) {
        const auto* const kind = std::ranges::find(kSectionKinds, section.name, &SectionKind::name);
        if (kind == kSectionKinds.end() && section.is_required) {
            refuse_newer(container, "it has a section '" + section.name + "'");
        }
        const bool is_newer = kind != kSectionKinds.end() && (section.version == 0 || section.version > kind->version);
        if (is_newer && section.is_required) {
            refuse_newer(container, format("its section '{}' is of version {}", section.name, section.version));
        }
    }
}

void read_section_of(const SectionKind& kind, const StateContainer& container, SnapshotState& state) {
    const auto section = std::ranges::find(container.sections, kind.name, &StateSection::name);
    if (section == container.sections.end() || section->version == 0 || section->version > kind.version) {
        // A state whose memory is kept elsewhere has no index, and most states have no base.
        if (kind.is_required && kind.name != kMemory && kind.name != kBase) {
            throw Error(format("cannot use this state: its section '{}' is missing (take a snapshot that is whole)",
                               kind.name));
        }
        return;
    }
    CborValue fields = CborValue::object();
    fields[section->name] = from_cbor(section->content, section->name);
    const FieldPath path;
    FieldReader reader(fields, path);
    kind.read(reader, kind.name, state);
}

} // namespace

std::vector<std::byte> encode_state(const SnapshotState& state) {
    StateContainer container{kVersion, {}};
    for (const SectionKind& kind : kSectionKinds) {
        if ((kind.name == kMemory && !state.memory) || (kind.name == kBase && !(state.memory && state.base))) {
            continue;
        }
        CborValue fields;
        const FieldPath path{nullptr, {}, std::nullopt, true};
        FieldWriter writer(fields, path);
        kind.write(writer, kind.name, state);
        container.sections.push_back(
            {std::string(kind.name), kind.version, kind.is_required, to_cbor(fields[std::string(kind.name)])});
    }
    return pack_sections(container);
}

SnapshotState decode_state(std::span<const std::byte> bytes) {
    const StateContainer container = unpack_sections(bytes);
    check_all_known(container);
    SnapshotState state;
    for (const SectionKind& kind : kSectionKinds) {
        read_section_of(kind, container, state);
    }
    const MemoryLayout layout(state.machine.memory);
    if (state.machine.boot_memory_bytes > layout.memory_bytes()) {
        throw Error(format("cannot use this state: machine.boot_memory_bytes is {}, which is more than the machine has "
                           "(take a snapshot that is whole)",
                           state.machine.boot_memory_bytes));
    }
    return state;
}

} // namespace vmm
