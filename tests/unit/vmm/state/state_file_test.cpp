#include "vmm/state/state_file.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/vmm_full_state.hpp"
#include "vmm/state/cbor.hpp"
#include "vmm/state/crc32c.hpp"
#include "vmm/state/state_container.hpp"

namespace vmm {
namespace {

using testing::error_of;
using testing::FullState;
using testing::mentions;
using Json = nlohmann::json;
using Bytes = std::vector<std::byte>;

/// For a structure of the kernel, whose padding is zero.
template <typename Value>
void expect_same_bytes(const Value& a, const Value& b) {
    // NOLINTNEXTLINE(bugprone-suspicious-memory-comparison): fillers and the unused part of a union count, too.
    EXPECT_EQ(std::memcmp(&a, &b, sizeof a), 0);
}

void expect_same(const kvm::VcpuState& a, const kvm::VcpuState& b) {
    EXPECT_EQ(a.mp_state, b.mp_state);
    expect_same_bytes(a.registers, b.registers);
    expect_same_bytes(a.special, b.special);
    EXPECT_EQ(a.xsave, b.xsave);
    expect_same_bytes(a.xcrs, b.xcrs);
    expect_same_bytes(a.debug, b.debug);
    expect_same_bytes(a.local_apic, b.local_apic);
    EXPECT_EQ(a.tsc_khz, b.tsc_khz);
    EXPECT_EQ(a.tsc_offset, b.tsc_offset);
    ASSERT_EQ(a.cpuid.size(), b.cpuid.size());
    for (std::size_t i = 0; i < a.cpuid.size(); ++i) {
        expect_same_bytes(a.cpuid[i], b.cpuid[i]);
    }
    EXPECT_EQ(a.msrs, b.msrs);
    EXPECT_EQ(a.nested, b.nested);
    expect_same_bytes(a.events, b.events);
}

void expect_same(const VirtioDeviceState& a, const VirtioDeviceState& b) {
    EXPECT_EQ(a.name, b.name);
    EXPECT_EQ(a.id, b.id);
    EXPECT_TRUE(a.transport == b.transport) << a.name;
    EXPECT_TRUE(a.device == b.device) << a.name;
    EXPECT_EQ(a.pci_slot, b.pci_slot) << a.name;
}

void expect_same(const MachineState& a, const MachineState& b) {
    ASSERT_EQ(a.vcpus.size(), b.vcpus.size());
    for (std::size_t i = 0; i < a.vcpus.size(); ++i) {
        expect_same(a.vcpus[i], b.vcpus[i]);
    }
    expect_same_bytes(a.vm.interrupt_controllers, b.vm.interrupt_controllers);
    expect_same_bytes(a.vm.timer, b.vm.timer);
    expect_same_bytes(a.vm.clock, b.vm.clock);
    EXPECT_EQ(a.vm.realtime_ns, b.vm.realtime_ns);
    EXPECT_TRUE(a.board.serial == b.board.serial);
    EXPECT_TRUE(a.board.system_control == b.board.system_control);
    EXPECT_TRUE(a.board.reset_control == b.board.reset_control);
    EXPECT_TRUE(a.board.power == b.board.power);
    EXPECT_TRUE(a.board.rtc == b.board.rtc);
    ASSERT_EQ(a.board.pci.has_value(), b.board.pci.has_value());
    if (a.board.pci) {
        EXPECT_EQ(a.board.pci->ports, b.board.pci->ports);
        EXPECT_EQ(a.board.pci->hotplug, b.board.pci->hotplug);
    }
    EXPECT_EQ(a.serial_input, b.serial_input);
    ASSERT_EQ(a.virtio.size(), b.virtio.size());
    for (std::size_t i = 0; i < a.virtio.size(); ++i) {
        expect_same(a.virtio[i], b.virtio[i]);
    }
    EXPECT_EQ(a.memory, b.memory);
    EXPECT_EQ(a.boot_memory_bytes, b.boot_memory_bytes);
    EXPECT_EQ(a.adopted_page_tables, b.adopted_page_tables);
    EXPECT_EQ(a.device_tree, b.device_tree);
    EXPECT_EQ(a.generation_id_at, b.generation_id_at);
    EXPECT_EQ(a.generation_id, b.generation_id);
}

/// Like FullState::make(), for a snapshot that builds on another one.
SnapshotState make_based(std::size_t vcpus) {
    SnapshotState state = FullState::make(vcpus);
    state.memory->at(2).file = 1;
    state.base = SnapshotBase{.path = "../before", .state_bytes = 1234, .state_crc32c = 0x89abcdef};
    return state;
}

/// The message about `bytes`, or "".
std::string refusal_of(const Bytes& bytes) {
    return error_of([&] { return decode_state(bytes); });
}

/// The state of make_based() with different content in one section, and all checksums right.
Bytes with_section(const std::string& name, const std::function<void(StateSection&)>& change) {
    static const StateContainer kWhole = unpack_sections(encode_state(make_based(1)));
    StateContainer container = kWhole;
    change(*std::ranges::find(container.sections, name, &StateSection::name));
    return pack_sections(container);
}

Bytes with_fields(const std::string& name, const std::function<void(Json&)>& change) {
    return with_section(name, [&](StateSection& section) {
        Json fields = from_cbor(section.content, name);
        change(fields);
        section.content = to_cbor(fields);
    });
}

std::string refusal_of_fields(const std::string& name, const std::function<void(Json&)>& change) {
    return refusal_of(with_fields(name, change));
}

TEST(StateFile, KeepsEveryField) {
    const SnapshotState state = make_based(3);
    const Bytes bytes = encode_state(state);
    const SnapshotState again = decode_state(bytes);
    expect_same(state.machine, again.machine);
    EXPECT_EQ(state.origin, again.origin);
    EXPECT_EQ(state.memory, again.memory);
    EXPECT_EQ(state.base, again.base);
    EXPECT_EQ(encode_state(again), bytes);
}

TEST(StateFile, KeepsEveryFieldOfAMachineWithPci) {
    const SnapshotState state = FullState::make_with_pci(1);
    const Bytes bytes = encode_state(state);
    const SnapshotState again = decode_state(bytes);
    expect_same(state.machine, again.machine);
    ASSERT_TRUE(again.machine.board.pci);
    EXPECT_EQ(encode_state(again), bytes);
}

TEST(StateFile, KeepsThePairsOfANetwork) {
    SnapshotState state = FullState::make(1);
    auto& net = std::get<devices::virtio::NetState>(state.machine.virtio.at(1).device);
    net.pairs = devices::virtio::NetState::Pairs{2, {{}, {std::byte{1}, std::byte{2}}}};
    const SnapshotState again = decode_state(encode_state(state));
    EXPECT_EQ(std::get<devices::virtio::NetState>(again.machine.virtio.at(1).device), net);
}

// A reader of states from before PCI also reads states of machines without PCI.
TEST(StateFile, OfAMachineWithoutPciSaysNothingOfIt) {
    const StateContainer container = unpack_sections(encode_state(FullState::make(1)));
    for (const StateSection& section : container.sections) {
        if (section.name == "board" || section.name == "virtio") {
            const std::string text =
                from_cbor(section.content, section.name).dump(-1, ' ', true, Json::error_handler_t::replace);
            EXPECT_FALSE(mentions(text, "pci")) << section.name;
        }
    }
}

/// The message about FullState::make_with_pci() after its devices were changed.
std::string refusal_of_pci(const std::function<void(Json&)>& change) {
    StateContainer container = unpack_sections(encode_state(FullState::make_with_pci(1)));
    StateSection& section = *std::ranges::find(container.sections, "virtio", &StateSection::name);
    Json fields = from_cbor(section.content, "virtio");
    change(fields);
    section.content = to_cbor(fields);
    return refusal_of(pack_sections(container));
}

TEST(StateFile, RefusesRegistersOverPciThatNoDeviceHas) {
    EXPECT_EQ(refusal_of_pci([](Json& /*virtio*/) {}), "");
    const auto refusal = [](const std::function<void(Json&)>& change) {
        return refusal_of_pci([&](Json& virtio) { change(virtio[0]["pci_transport"]); });
    };
    EXPECT_TRUE(mentions(refusal([](Json& pci) {
                             const Json one = pci["msix"].at(0);
                             for (std::size_t i = pci["msix"].size(); i < 129; ++i) {
                                 pci["msix"].push_back(one);
                             }
                         }),
                         "virtio[0].pci_transport.msix has 129"));
    EXPECT_TRUE(mentions(refusal([](Json& pci) { pci["msix"].at(0).push_back(1); }), "virtio[0].pci_transport.msix"));
    EXPECT_TRUE(
        mentions(refusal([](Json& pci) { pci.erase("config_space"); }), "virtio[0].pci_transport.config_space"));
    EXPECT_TRUE(mentions(
        refusal([](Json& pci) { pci["config_space"] = Json::binary(Json::binary_t(std::vector<std::uint8_t>(255))); }),
        "virtio[0].pci_transport.config_space"));
    EXPECT_TRUE(
        mentions(refusal([](Json& pci) { pci["config_vector"] = 0x10000; }), "virtio[0].pci_transport.config_vector"));
    EXPECT_TRUE(
        mentions(refusal([](Json& pci) { pci["queue_vectors"] = "none"; }), "virtio[0].pci_transport.queue_vectors"));
    EXPECT_TRUE(
        mentions(refusal_of_pci([](Json& virtio) { virtio[0].erase("pci_transport"); }), "virtio[0].transport"));
    EXPECT_TRUE(mentions(refusal_of_pci([](Json& virtio) { virtio[0]["pci_slot"] = -1; }), "virtio[0].pci_slot"));
}

TEST(StateFile, KeepsWhatIsNotThere) {
    SnapshotState state = FullState::make(1);
    state.machine.adopted_page_tables.reset();
    state.machine.generation_id_at.reset();
    state.machine.virtio.clear();
    state.machine.serial_input.clear();
    state.machine.vcpus[0].nested.clear();
    state.memory.reset();
    const SnapshotState again = decode_state(encode_state(state));
    expect_same(state.machine, again.machine);
    EXPECT_FALSE(again.memory);
    EXPECT_FALSE(again.base);
}

TEST(StateFile, OfASnapshotThatBuildsOnNoneHasNoBase) {
    const SnapshotState state = FullState::make(1);
    const SnapshotState again = decode_state(encode_state(state));
    EXPECT_EQ(state.memory, again.memory);
    EXPECT_FALSE(again.base);
}

TEST(StateFile, RefusesABaseOfWhatIsNotThere) {
    const auto with_chunks = [](std::uint8_t bits) {
        return refusal_of_fields("base", [bits](Json& fields) { fields["chunks"] = Json::binary({bits}); });
    };
    EXPECT_EQ(with_chunks(0b1001), "");
    EXPECT_TRUE(mentions(with_chunks(0b0010), "base has a chunk that is a hole"));
    EXPECT_TRUE(mentions(with_chunks(0b10000), "beyond the end of memory"));
    EXPECT_TRUE(mentions(refusal_of_fields("base", [](Json& fields) { fields["path"] = std::string(5000, 'x'); }),
                         "base.path"));
}

TEST(StateFile, KeepsNothingOfWhatFillsAStructureUp) {
    SnapshotState state = FullState::make(1);
    const Bytes bytes = encode_state(state);
    kvm::VcpuState& vcpu = state.machine.vcpus[0];
    vcpu.special.cs.padding = 1;
    vcpu.special.gdt.padding[0] = 1;
    vcpu.events.reserved[3] = 1;
    vcpu.xcrs.xcrs[7].value = 1;
    vcpu.cpuid[0].padding[0] = 1;
    state.machine.vm.interrupt_controllers[0].chip.dummy[100] = 1;
    state.machine.vm.clock.pad[1] = 1;
    EXPECT_EQ(encode_state(state), bytes);
}

#ifdef VMM_SANITIZED
constexpr std::size_t kStep = 97; // The whole file is read each time, in code without optimization.
#else
constexpr std::size_t kStep = 1;
#endif

TEST(StateFile, RefusesToBeCutAnywhere) {
    const Bytes bytes = encode_state(FullState::make(1));
    for (std::size_t length = 0; length < bytes.size(); length += kStep) {
        const std::string why = error_of([&] { return decode_state(std::span(bytes).first(length)); });
        ASSERT_TRUE(mentions(why, length < 8 ? "no state of a machine" : "truncated")) << length << ": " << why;
    }
}

TEST(StateFile, RefusesAWrongBitInEveryByte) {
    Bytes bytes = encode_state(FullState::make(1));
    for (std::size_t i = 0; i < bytes.size(); i += kStep) {
        const std::byte bit = std::byte{1} << (i % 8);
        bytes[i] ^= bit;
        ASSERT_NE(refusal_of(bytes), "") << i;
        bytes[i] ^= bit;
    }
    EXPECT_EQ(refusal_of(bytes), "");
}

TEST(StateFile, NamesTheSectionThatIsDamaged) {
    Bytes bytes = encode_state(FullState::make(1));
    const std::string name = "virtio";
    const auto found = std::ranges::search(bytes, std::as_bytes(std::span(name)));
    *(found.begin() + 60) ^= std::byte{1};
    EXPECT_EQ(refusal_of(bytes),
              "cannot use this state: its section 'virtio' is damaged: its checksum is another (take a "
              "snapshot that is whole)");
}

TEST(StateFile, RefusesWhatItDoesNotKnowByName) {
    StateContainer container = unpack_sections(encode_state(make_based(1)));
    container.sections.push_back({"teleport", 1, true, {}});
    EXPECT_TRUE(mentions(refusal_of(pack_sections(container)), "it has a section 'teleport', and vmm"));
    container.sections.back().is_required = false;
    EXPECT_EQ(refusal_of(pack_sections(container)), "");
    container.sections.back() = container.sections.front();
    EXPECT_TRUE(mentions(refusal_of(pack_sections(container)), "two sections 'origin'"));
}

TEST(StateFile, RefusesASectionOfALaterVersion) {
    const auto later = [](StateSection& section) { section.version = 2; };
    EXPECT_TRUE(mentions(refusal_of(with_section("vcpus", later)), "its section 'vcpus' is of version 2, and vmm"));
    // Nothing depends on the host on which it was made.
    EXPECT_EQ(decode_state(with_section("origin", later)).origin, SnapshotOrigin{});
}

TEST(StateFile, RefusesAnotherFormatAndArchitecture) {
    Bytes bytes = encode_state(FullState::make(1));
    bytes[8] = std::byte{2};
    EXPECT_TRUE(mentions(refusal_of(bytes), "its format is of version 2"));
    bytes[8] = std::byte{1};
    bytes[12] = std::byte{183};
    EXPECT_TRUE(mentions(refusal_of(bytes), "another architecture, whose number is 183"));
}

TEST(StateFile, RefusesAMissingSection) {
    for (const std::string name : {"machine", "vcpus", "vm", "board", "virtio"}) {
        StateContainer container = unpack_sections(encode_state(make_based(1)));
        std::erase_if(container.sections, [&](const StateSection& section) { return section.name == name; });
        EXPECT_TRUE(mentions(refusal_of(pack_sections(container)), "its section '" + name + "' is missing"));
    }
}

TEST(StateFile, RefusesWhatIsNoField) {
    EXPECT_TRUE(mentions(refusal_of_fields("vcpus", [](Json& vcpus) { vcpus[0]["registers"].erase("rax"); }),
                         "vcpus[0].registers.rax is missing"));
    EXPECT_TRUE(mentions(refusal_of_fields("vcpus", [](Json& vcpus) { vcpus[0]["registers"]["r\x1b"] = 1; }),
                         "vcpus[0].registers has a field 'r?', which is not known"));
    EXPECT_TRUE(mentions(refusal_of_fields("board", [](Json& board) { board["serial"]["divisor"] = 65536; }),
                         "board.serial.divisor is 65536, and has to be 0 to 65535"));
    EXPECT_TRUE(mentions(refusal_of_fields("board", [](Json& board) { board["serial"]["divisor"] = -1; }),
                         "board.serial.divisor is -1, and has to be 0 to 65535"));
    EXPECT_TRUE(mentions(refusal_of_fields("board", [](Json& board) { board["rtc"]["offset_us"] = UINT64_MAX; }),
                         "board.rtc.offset_us is 18446744073709551615, and has to be"));
    EXPECT_TRUE(mentions(refusal_of_fields("board", [](Json& board) { board["rtc"]["index"] = 1.5; }),
                         "board.rtc.index is no number"));
    EXPECT_TRUE(mentions(refusal_of_fields("board", [](Json& board) { board["serial"]["overrun"] = 1; }),
                         "board.serial.overrun is neither true nor false"));
    EXPECT_TRUE(mentions(refusal_of_fields("board", [](Json& board) { board = 7; }), "board has no fields"));
    EXPECT_TRUE(mentions(refusal_of_fields("vm", [](Json& vm) { vm["timer"]["channels"].erase(2); }),
                         "vm.timer.channels has 2 elements, and has to have 3"));
    EXPECT_TRUE(mentions(refusal_of_fields("virtio", [](Json& virtio) { virtio[1]["device"]["frame"] = "text"; }),
                         "virtio[1].device.frame is no string of bytes"));
    EXPECT_TRUE(mentions(refusal_of_fields("vcpus", [](Json& vcpus) { vcpus[0]["cpuid"][1].push_back(1); }),
                         "vcpus[0].cpuid[1] has 8 numbers, and has to have 7"));
    EXPECT_TRUE(mentions(refusal_of_fields("vcpus", [](Json& vcpus) { vcpus[0]["msrs"][1].erase(std::size_t{1}); }),
                         "vcpus[0].msrs[1] has too few numbers: 1"));
    EXPECT_TRUE(mentions(refusal_of_fields("vcpus", [](Json& vcpus) { vcpus[0]["msrs"][1] = 5; }),
                         "vcpus[0].msrs[1] is no row of numbers"));
    EXPECT_TRUE(mentions(refusal_of_fields("virtio",
                                           [](Json& virtio) {
                                               const std::string kind = "disk";
                                               virtio[0]["device"]["kind"] = Json::binary({kind.begin(), kind.end()});
                                           }),
                         "virtio[0].device is of a kind that is not known"));
}

TEST(StateFile, RefusesCountsThatNoMachineHas) {
    const auto many = [](Json& list, std::size_t count) {
        const Json one = list.at(0);
        list = Json::array();
        for (std::size_t i = 0; i < count; ++i) {
            list.push_back(one);
        }
    };
    EXPECT_TRUE(mentions(refusal_of_fields("vcpus", [&](Json& vcpus) { many(vcpus, 255); }),
                         "vcpus has 255 elements, and has to have 1 to 254"));
    EXPECT_TRUE(mentions(refusal_of_fields("vcpus", [&](Json& vcpus) { vcpus = Json::array(); }),
                         "vcpus has 0 elements, and has to have 1 to 254"));
    EXPECT_TRUE(mentions(refusal_of_fields("virtio", [&](Json& virtio) { many(virtio, 32); }),
                         "virtio has 32 elements, and has to have 0 to 31"));
    EXPECT_TRUE(mentions(
        refusal_of_fields("virtio", [&](Json& virtio) { many(virtio[0]["transport"]["negotiation"]["queues"], 65); }),
        "virtio[0].transport.negotiation.queues has 65 elements, and has to have 0 to 64"));
    EXPECT_TRUE(mentions(refusal_of_fields("vcpus", [&](Json& vcpus) { many(vcpus[0]["msrs"], 1025); }),
                         "vcpus[0].msrs has 1025 elements"));
    EXPECT_TRUE(mentions(refusal_of_fields("vcpus", [&](Json& vcpus) { many(vcpus[0]["cpuid"], 257); }),
                         "vcpus[0].cpuid has 257 elements"));
    EXPECT_TRUE(mentions(refusal_of_fields("vcpus", [](Json& vcpus) { vcpus[0]["xcrs"]["nr_xcrs"] = 17; }),
                         "vcpus[0].xcrs.nr_xcrs is 17, and has to be 0 to 16"));
    EXPECT_TRUE(mentions(refusal_of_fields("vcpus",
                                           [](Json& vcpus) {
                                               vcpus[0]["xsave"] =
                                                   Json::binary(Json::binary_t(std::vector<std::uint8_t>(4095)));
                                           }),
                         "vcpus[0].xsave has 4095 bytes, and has to have 4096 to 65536"));
    EXPECT_TRUE(mentions(refusal_of_fields("vcpus",
                                           [](Json& vcpus) {
                                               vcpus[0]["nested"] =
                                                   Json::binary(Json::binary_t(std::vector<std::uint8_t>(65537)));
                                           }),
                         "vcpus[0].nested has 65537 bytes"));
}

TEST(StateFile, RefusesMemoryThatNoGuestHas) {
    EXPECT_TRUE(mentions(refusal_of_fields("machine", [](Json& machine) { machine["memory"][1][0] = 0; }),
                         "does not come after the one before it"));
    EXPECT_TRUE(mentions(refusal_of_fields("machine", [](Json& machine) { machine["memory"][1][1] = 4097; }),
                         "is not of whole pages"));
    EXPECT_TRUE(mentions(refusal_of_fields("machine", [](Json& machine) { machine["memory"][1][1] = 1ULL << 63U; }),
                         "beyond what a guest can have"));
    EXPECT_TRUE(mentions(refusal_of_fields("machine", [](Json& machine) { machine["boot_memory_bytes"] = 8 * kMiB; }),
                         "machine.boot_memory_bytes is 8388608, which is more than the machine has"));
    EXPECT_TRUE(mentions(refusal_of_fields("memory", [](Json& memory) { memory["chunk_bytes"] = 4096; }),
                         "memory.chunk_bytes is 4096, and has to be 2097152"));
    const auto binary = [](std::vector<std::uint8_t> bytes) { return Json::binary(std::move(bytes)); };
    EXPECT_TRUE(mentions(refusal_of_fields("memory", [&](Json& memory) { memory["holes"] = binary({0x12}); }),
                         "memory has a hole beyond the end of memory"));
    EXPECT_TRUE(mentions(refusal_of_fields("memory",
                                           [&](Json& memory) {
                                               memory["holes"] = binary({0x02, 0});
                                           }),
                         "memory.holes has 2 bytes, and has to have 1"));
    EXPECT_TRUE(mentions(refusal_of_fields("memory", [&](Json& memory) { memory["holes"] = binary({0x00}); }),
                         "memory has fewer checksums"));
    EXPECT_TRUE(mentions(refusal_of_fields("memory", [&](Json& memory) { memory["holes"] = binary({0x03}); }),
                         "memory has more checksums"));
}

TEST(StateFile, RefusesCborThatIsNone) {
    const auto refusal_of_content = [](const Bytes& content) {
        return refusal_of(with_section("board", [&](StateSection& section) { section.content = content; }));
    };
    const auto filled = [](std::size_t count, unsigned value) { return Bytes(count, static_cast<std::byte>(value)); };
    const std::string why = "its section 'board' cannot be read as CBOR";
    EXPECT_TRUE(mentions(refusal_of_content({}), why));
    EXPECT_TRUE(mentions(refusal_of_content(filled(1, 0xff)), why));
    // Lists in lists, a list, an object and a string of bytes of 2^64 - 1, and three million numbers.
    EXPECT_TRUE(mentions(refusal_of_content(filled(1 << 20, 0x81)), why));
    EXPECT_TRUE(mentions(refusal_of_content(filled(1 << 20, 0x9f)), why));
    for (const unsigned type : {0x9bU, 0xbbU, 0x5bU, 0x7bU}) {
        Bytes content = filled(12, 0xff);
        content[0] = static_cast<std::byte>(type);
        EXPECT_TRUE(mentions(refusal_of_content(content), why)) << type;
    }
    Bytes numbers = filled(3'000'000, 0);
    numbers[0] = std::byte{0x9f};
    numbers.back() = std::byte{0xff};
    EXPECT_TRUE(mentions(refusal_of_content(numbers), why));
    // There is data behind the value.
    EXPECT_TRUE(mentions(refusal_of_content(filled(2, 0)), why));
}

TEST(StateFile, RefusesToSaveWhatCouldNotBeRead) {
    SnapshotState state = FullState::make(1);
    state.machine.vcpus[0].xsave.resize(100);
    EXPECT_TRUE(mentions(error_of([&] { return encode_state(state); }),
                         "cannot save the state of this machine: vcpus[0].xsave has 100 bytes"));
    state = FullState::make(1);
    state.memory->pop_back();
    EXPECT_TRUE(mentions(error_of([&] { return encode_state(state); }),
                         "cannot save the state of this machine: memory has 3 chunks, and has to have 4"));
}

// golden/state-N is FullState::make(1), as written by the first version with sections of version N. It is never
// changed.
TEST(StateFile, OfEachVersionIsReadForEver) {
    const std::string file = testing::content_of(VMM_SOURCE_DIR "/tests/unit/vmm/state/golden/state-1");
    const SnapshotState state = decode_state(std::as_bytes(std::span(file)));
    EXPECT_EQ(state.origin.kernel_release, "6.12.5");
    ASSERT_EQ(state.machine.vcpus.size(), 1U);
    const kvm::VcpuState& vcpu = state.machine.vcpus.front();
    EXPECT_EQ(vcpu.registers.rip, 0x99f8e4a035606a3dU);
    EXPECT_EQ(crc32c(vcpu.xsave), 0x9dc0f431U);
    EXPECT_EQ(crc32c(std::as_bytes(std::span(vcpu.local_apic.regs))), 0x73f39289U);
    EXPECT_EQ(vcpu.msrs.at(4).value, 0xd1f286ea02d7dd1cU);
    EXPECT_EQ(vcpu.tsc_offset, -3653187);
    EXPECT_EQ(state.machine.vm.timer.channels[2].gate, 57);
    EXPECT_EQ(state.machine.vm.interrupt_controllers[2].chip.ioapic.redirtbl[23].bits, 0xa6dd1f427d8d0143U);
    ASSERT_EQ(state.machine.virtio.size(), 7U);
    const auto& queue = negotiation_of(state.machine.virtio.front().transport).queues.at(0);
    EXPECT_EQ(queue.geometry.size, 62567);
    EXPECT_EQ(queue.in_device->geometry.device_area, GuestAddress{0x8a05fe304e1e85c6});
    EXPECT_EQ(state.memory->at(3).crc32c, 0x15e061U);
}

TEST(StateContainer, RefusesSectionsThatDoNotFillIt) {
    Bytes bytes = pack_sections({"0.1.0", {}});
    EXPECT_EQ(unpack_sections(bytes), (StateContainer{"0.1.0", {}}));
    EXPECT_TRUE(mentions(error_of([&] { return decode_state(bytes); }), "its section 'machine' is missing"));
    EXPECT_TRUE(mentions(error_of([&] {
                             return unpack_sections(pack_sections({"x", {{"BAD name", 1, true, {}}}}));
                         }),
                         "'BAD name' is no name of a section"));
    EXPECT_TRUE(mentions(error_of([&] {
                             return unpack_sections(pack_sections({"x", {{"", 1, true, {}}}}));
                         }),
                         "'' is no name of a section"));
}

TEST(Origin, IsOfThisHost) {
    const SnapshotOrigin origin = origin_here();
    EXPECT_GT(origin.created_at, 1'600'000'000);
    EXPECT_FALSE(origin.kernel_release.empty());
    EXPECT_FALSE(origin.cpu_vendor.empty());
    SnapshotState state = FullState::make(1);
    state.origin = origin;
    EXPECT_EQ(decode_state(encode_state(state)).origin, origin);
}

} // namespace
} // namespace vmm
