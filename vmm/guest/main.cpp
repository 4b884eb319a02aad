// The built-in guest: every CPU writes to each page of its share of the free memory, several times over, and the guest
// prints how long that took. README.md describes options and output.
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>

#include "vmm/guest/acpi.hpp"
#include "vmm/guest/commands.hpp"
#include "vmm/guest/cpus.hpp"
#include "vmm/guest/device_tree.hpp"
#include "vmm/guest/machine.hpp"
#include "vmm/guest/memory_ranges.hpp"
#include "vmm/guest/options.hpp"
#include "vmm/guest/page_tables.hpp"
#include "vmm/guest/power.hpp"
#include "vmm/guest/serial.hpp"
#include "vmm/guest/start_info.hpp"
#include "vmm/guest/text.hpp"
#include "vmm/guest/workload.hpp"

// guest.ld
extern "C" const std::byte image_start[];
extern "C" const std::byte image_end[];

namespace vmm::guest {
namespace {

constexpr std::uint64_t kFreeMemoryStart = 0x100000;
/// The end of the low half of the address space, because ring 3 uses only that half.
constexpr std::uint64_t kHighestEnd = std::uint64_t{1} << 47;
/// The addresses to which a start-up IPI can point, without page 0 and without the memory that PCs use for video and
/// firmware.
constexpr Range kTrampolineWindow{kPageBytes, 0xa0000};
constexpr std::size_t kMaxModules = 64;

// Set up once by CPU 0, before the other CPUs start.
constinit StartInfo start_info{};
constinit std::array<MemoryMapEntry, MemoryRanges::kCapacity> memory_map{};
constinit std::size_t memory_map_count = 0;
constinit Acpi acpi{};
constinit DeviceTree device_tree{};

/// The memory in which the loader's data must be, because the static tables map it. Other addresses are refused.
constexpr PhysicalMemory kLoaderMemory(kStaticMapEnd);

[[noreturn]] void stop_with(const Line& line) noexcept {
    serial::print(line);
    power_off(acpi.power_off);
}

[[noreturn]] void stop_with_error(std::string_view what, std::string_view reason) noexcept {
    stop_with(Line("error").field("what", what).field("reason", reason));
}

void read_start_info(std::uint64_t address) noexcept {
    const auto info = detail::load<StartInfo>(kLoaderMemory.view(address, sizeof(StartInfo)), 0);
    const bool valid = info && info->magic == kStartInfoMagic;
    if (valid) {
        start_info = *info;
    }
    acpi = read_acpi(kLoaderMemory, start_info.rsdp_address);
    if (!valid) {
        stop_with_error("start_info", "bad-magic");
    }
}

/// The command line at the loader's address. Nothing is written there before the options are read.
std::string_view command_line() noexcept {
    const std::uint64_t address = start_info.command_line_address;
    if (address == 0) {
        return {};
    }
    const auto bytes = kLoaderMemory.view(address, GUEST_COMMAND_LINE_BYTES);
    if (bytes.empty()) {
        stop_with_error("command_line", "not-below-4-gib");
    }
    std::size_t size = 0;
    while (size < bytes.size() && bytes[size] != std::byte{0}) {
        ++size;
    }
    if (size == bytes.size()) {
        stop_with_error("command_line", "longer-than-2047-bytes");
    }
    return {reinterpret_cast<const char*>(bytes.data()), size};
}

Options read_options(std::uint64_t tables_in_use) noexcept {
    const ParsedOptions parsed = parse_options(command_line());
    if (parsed.error) {
        stop_with(Line("error")
                      .field("option", parsed.error->option)
                      .field("value", parsed.error->value)
                      .field("reason", parsed.error->reason));
    }
    // boot.S has looked for the option, too. It does not use tables that do not look like page tables.
    if (parsed.options.tables.value_or(0) != tables_in_use) {
        stop_with(Line("error")
                      .field("option", "tables")
                      .field_hex("value", parsed.options.tables.value_or(0))
                      .field("reason", "no-page-tables-there"));
    }
    return parsed.options;
}

/// Reads the device tree, which has precedence over ACPI.
void read_tree(std::uint64_t address) noexcept {
    read_device_tree(kLoaderMemory, address, device_tree);
    if (device_tree.power_off) {
        acpi.power_off = *device_tree.power_off;
    }
    if (!device_tree.problem.empty()) {
        stop_with_error("device_tree", device_tree.problem);
    }
    acpi.cpus = device_tree.cpus;
    acpi.cpus_missing = device_tree.cpus.count != 0 ? "" : "none-in-device-tree";
}

void read_memory_map() noexcept {
    if (device_tree.memory_count != 0) {
        memory_map = device_tree.memory;
        memory_map_count = device_tree.memory_count;
        return;
    }
    const std::size_t entries = start_info.memory_map_entries;
    if (start_info.version < 1 || entries == 0 || start_info.memory_map_address == 0) {
        stop_with_error("memory_map", "none-in-start-info");
    }
    if (entries > MemoryRanges::kCapacity) {
        stop_with_error("memory_map", "more-than-128-entries");
    }
    const auto bytes = kLoaderMemory.view(start_info.memory_map_address, entries * sizeof(MemoryMapEntry));
    if (bytes.empty()) {
        stop_with_error("memory_map", "not-below-4-gib");
    }
    std::memcpy(memory_map.data(), bytes.data(), bytes.size());
    memory_map_count = entries;
}

std::span<const MemoryMapEntry> memory_map_entries() noexcept {
    return {memory_map.data(), memory_map_count};
}

/// The RAM in `window`, without the image and the loader's data. The guest may overwrite the ACPI tables and the memory
/// map, because it has copied the parts that it needs.
MemoryRanges free_ram(Range window) noexcept {
    auto ram = ram_within(memory_map_entries(), window);
    bool fits = ram.has_value();
    const auto take_out = [&](Range range) { fits = fits && ram->remove(range); };

    // Addresses of a symbol in the linker script.
    take_out({reinterpret_cast<std::uint64_t>(image_start), reinterpret_cast<std::uint64_t>(image_end)});
    if (start_info.command_line_address != 0) {
        take_out(make_range(start_info.command_line_address, GUEST_COMMAND_LINE_BYTES));
    }
    const std::size_t modules = start_info.module_count < kMaxModules ? start_info.module_count : kMaxModules;
    const Range list = make_range(start_info.modules_address, modules * sizeof(Module));
    take_out(list);
    const auto bytes = kLoaderMemory.view(list.base, list.size());
    for (std::size_t i = 0; i < modules; ++i) {
        if (const auto module = detail::load<Module>(bytes, i * sizeof(Module))) {
            take_out(make_range(module->address, module->size));
        }
    }
    if (!fits) {
        stop_with_error("memory_map", "too-scattered");
    }
    return *ram;
}

/// Stops with an error if the guest itself would overwrite the page tables.
void check_tables_lie_outside_ram(std::uint64_t tables) noexcept {
    const auto ram = ram_within(memory_map_entries(), {tables, tables + kPageBytes});
    if (!ram || !ram->ranges().empty()) {
        stop_with(Line("error").field("option", "tables").field_hex("value", tables).field("reason", "inside-ram"));
    }
}

/// Takes `bytes` of contiguous memory from `free`, below `limit`.
std::uint64_t take(MemoryRanges& free, std::uint64_t bytes, std::uint64_t limit, std::string_view what) noexcept {
    const auto address = free.take(bytes, limit);
    if (!address) {
        stop_with_error(what, "not-enough-memory");
    }
    return *address;
}

/// The CPUs to start: all except this one, but not more than were asked for.
CpuList other_cpus(std::uint64_t wanted) noexcept {
    CpuList others;
    if (wanted == 1 || acpi.cpus.count <= 1) {
        return others; // the local APIC is not even touched in this case
    }
    const std::uint32_t self = this_apic_id();
    for (std::size_t i = 0; i < acpi.cpus.count && others.count + 1 < wanted; ++i) {
        if (acpi.cpus.apic_ids[i] != self) {
            others.add(acpi.cpus.apic_ids[i]);
        }
    }
    return others;
}

StartReport start_others(const CpuList& others, std::uint64_t tables, MemoryRanges& free) noexcept {
    if (others.count == 0) {
        return {};
    }
    MemoryRanges low = free_ram(kTrampolineWindow);
    StartPlan plan;
    plan.apic_ids = {others.apic_ids.data(), others.count};
    plan.tables = tables;
    plan.trampoline = take(low, kPageBytes, kTrampolineWindow.end, "trampoline");
    plan.stacks = take(free, others.count * GUEST_STACK_BYTES, kStaticMapEnd, "stacks");
    return start_cpus(plan);
}

std::string_view name_of(FoundDevice::Kind kind) noexcept {
    switch (kind) {
    case FoundDevice::Kind::kSerial:
        return "serial";
    case FoundDevice::Kind::kRtc:
        return "rtc";
    case FoundDevice::Kind::kVirtioMmio:
        break;
    }
    return "virtio-mmio";
}

/// Prints the content of the device tree.
void print_found() noexcept {
    serial::print(Line("fdt").field("cpus", device_tree.cpus.count));
    for (std::size_t i = 0; i < device_tree.memory_count; ++i) {
        const MemoryMapEntry& piece = device_tree.memory[i];
        serial::print(Line("fdt").field_hex("memory", piece.address).field_hex("bytes", piece.size));
    }
    for (std::size_t i = 0; i < device_tree.device_count; ++i) {
        const FoundDevice& device = device_tree.devices[i];
        Line line("fdt");
        line.field_hex(name_of(device.kind), device.address);
        if (device.irq) {
            line.field("irq", std::uint64_t{*device.irq});
        }
        serial::print(line);
    }
    if (device_tree.power_off) {
        serial::print(Line("fdt")
                          .field_hex("power-off", device_tree.power_off->registers[0].address)
                          .field_hex("value", *device_tree.power_off->plain_value));
    }
    if (device_tree.left_out != 0) {
        serial::print(Line("warning")
                          .field("what", "device_tree")
                          .field("reason", "too-much-in-it")
                          .field("left_out", device_tree.left_out));
    }
}

void print_start(const WorkloadPlan& plan, const CpuList& failed, const MemoryRanges& free) noexcept {
    const Options& options = plan.options;
    serial::print(Line()
                      .field("guest", "vmm-builtin")
                      .field("cpus", plan.cpus)
                      .field("memory_pages", free.bytes() / kPageBytes)
                      .field("stride", options.stride)
                      .field("order", options.order == Order::kRandom ? "random" : "seq")
                      .field("passes", options.passes)
                      .field("tables", options.tables ? "given" : "own")
                      .field("reader", options.reader_one ? "one" : "none")
                      .field("check", std::uint64_t{options.check})
                      .field("report", plan.report_at_end() ? "end" : "live"));
    if (options.fdt) {
        print_found();
    }
    if (!acpi.cpus_missing.empty() && options.cpus != 1) {
        serial::print(Line("warning").field("what", "cpus").field("reason", acpi.cpus_missing));
    }
    if (acpi.cpus.left_out != 0 && options.cpus > kMaxCpus) {
        serial::print(Line("warning")
                          .field("what", "cpus")
                          .field("reason", "more-than-254")
                          .field("left_out", acpi.cpus.left_out));
    }
    for (std::size_t i = 0; i < failed.count; ++i) {
        serial::print(Line("error")
                          .field("what", "cpu")
                          .field("apic_id", std::uint64_t{failed.apic_ids[i]})
                          .field("reason", "did-not-start"));
    }
}

} // namespace

/// CPU 0 comes here from boot.S. `given_tables` is the address of the page tables of the option tables= if these are in
/// use, and 0 if they are not.
extern "C" [[noreturn]] void guest_main(std::uint32_t start_info_address, std::uint32_t given_tables) noexcept {
    serial::start();
    read_start_info(start_info_address);
    const Options options = read_options(given_tables);
    if (options.fdt) {
        read_tree(*options.fdt);
    }
    read_memory_map();
    if (given_tables != 0) {
        check_tables_lie_outside_ram(given_tables);
    }

    MemoryRanges free = free_ram({kFreeMemoryStart, kHighestEnd});
    if (free.ranges().empty()) {
        stop_with_error("memory_map", "no-free-memory");
    }
    if (given_tables == 0 && !extend_identity_map(free.ranges().back().end, free)) {
        stop_with_error("page_tables", "not-enough-memory");
    }
    const std::uint64_t tables = given_tables != 0 ? given_tables : static_tables();
    const StartReport report = start_others(other_cpus(options.cpus), tables, free);
    const WorkloadPlan plan{options, report.started + 1};
    const std::uint64_t results = take(free, plan.result_bytes(), kStaticMapEnd, "results");
    print_start(plan, report.failed, free);
    plan_workload(plan, free, results);
    if (options.heartbeat_khz) {
        obey_commands(*options.heartbeat_khz);
    } else {
        run_passes();
    }
    power_off(acpi.power_off);
}

} // namespace vmm::guest
