#include "loader/acpi.hpp"

#include <algorithm>
#include <array>
#include <cassert>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "loader/acpi_table.hpp"
#include "loader/aml.hpp"
#include "loader/little_endian.hpp"

namespace vmm::loader {
namespace {

using aml::Term;

std::uint32_t low_address(GuestAddress address) {
    assert(to_integer(address) <= UINT32_MAX);
    return static_cast<std::uint32_t>(to_integer(address));
}

// ---- DSDT: the devices

/// The name of one device of many: a letter and three hex digits, e.g. C00A.
std::string numbered_name(char letter, std::size_t number) {
    constexpr std::string_view kDigits = "0123456789ABCDEF";
    assert(number < 0x1000);
    return {letter, kDigits[number >> 8U], kDigits[number >> 4U & 0xfU], kDigits[number & 0xfU]};
}

Term resources(std::initializer_list<Term> descriptors) {
    return aml::name("_CRS", aml::resource_template(std::span{descriptors.begin(), descriptors.size()}));
}

Term device(std::string_view name, std::initializer_list<Term> terms) {
    return aml::device(name, std::span{terms.begin(), terms.size()});
}

/// A processor. Its _UID links it to its entry in the MADT.
Term processor(unsigned number) {
    constexpr std::uint64_t kPresentAndWorking = 0xf;
    return device(numbered_name('C', number),
                  {aml::name("_HID", aml::string("ACPI0007")), aml::name("_UID", aml::integer(number)),
                   aml::name("_STA", aml::integer(kPresentAndWorking))});
}

Term serial_port(SerialPortHardware com1) {
    constexpr std::uint8_t kRegisters = 8;
    return device("COM1", {aml::name("_HID", aml::eisa_id("PNP0501")), aml::name("_UID", aml::integer(1)),
                           resources({aml::io_ports(com1.port, kRegisters), aml::interrupt(com1.gsi, false)})});
}

Term cmos_rtc(std::uint16_t port) {
    constexpr std::uint8_t kIndexAndData = 2;
    return device("RTC", {aml::name("_HID", aml::eisa_id("PNP0B00")), resources({aml::io_ports(port, kIndexAndData)})});
}

/// A virtio device. _CCA says that its DMA is coherent with the CPUs' caches.
Term virtio_mmio(std::size_t number, const VirtioMmioHardware& virtio) {
    assert(virtio.registers.size <= UINT32_MAX);
    const Term registers =
        aml::memory32_fixed(low_address(virtio.registers.base), static_cast<std::uint32_t>(virtio.registers.size));
    const Term line = aml::interrupt(virtio.gsi, virtio.trigger == InterruptTrigger::kLevel);
    return device(numbered_name('V', number),
                  {aml::name("_HID", aml::string("LNRO0005")), aml::name("_UID", aml::integer(number)),
                   aml::name("_CCA", aml::integer(1)), resources({registers, line})});
}

// The devices that events() notifies.
constexpr std::string_view kPowerButton = "PWRB";

Term power_button() {
    return device(kPowerButton, {aml::name("_HID", aml::eisa_id("PNP0C0C")), aml::name("_UID", aml::integer(0))});
}

constexpr std::string_view kGenerationId = "VGEN";

/// The device of Microsoft's "Virtual Machine Generation ID". Guests know it by a _CID: the one of that document, or
/// the one that Hyper-V uses as well, because the first is longer than an id may be. The _HID is free to choose.
Term generation_id(GuestAddress address) {
    const std::array<Term, 2> known_by = {aml::string("VM_Gen_Counter"), aml::string("VMGENCTR")};
    const std::array<Term, 2> halves = {aml::integer(to_integer(address) & UINT32_MAX),
                                        aml::integer(to_integer(address) >> 32U)};
    return device(kGenerationId,
                  {aml::name("_HID", aml::string("VMMG0001")), aml::name("_CID", aml::package(known_by)),
                   aml::name("_DDN", aml::string("VM_Gen_Counter")), aml::name("ADDR", aml::package(halves))});
}

/// The value of the notification. For the button: ACPI 6.3, table 5.169; for the identifier: its specification.
constexpr std::uint8_t kHappened = 0x80;

/// A generic event device (ACPI 6.3, 5.6.9): each edge on `gsi` does `what`. `name` is GEDn, and `number` is n. It is
/// needed because a hardware-reduced machine has no fixed events.
Term events(std::string_view name, std::uint8_t number, std::uint32_t gsi, const Term& what) {
    const std::array<Term, 1> body = {what};
    return device(name, {aml::name("_HID", aml::string("ACPI0013")), aml::name("_UID", aml::integer(number)),
                         resources({aml::interrupt(gsi, false)}), aml::method("_EVT", 1, body)});
}

// ---- DSDT: PCI

constexpr std::string_view kPciRoot = "PCI0";
constexpr std::string_view kPciHotplugCheck = "HPCK";
constexpr unsigned kPciSlots = 32;

/// The name of the device in a slot, as used below kPciRoot: S01.
std::string slot_name(unsigned slot) {
    constexpr std::string_view kDigits = "0123456789ABCDEF";
    return {'S', kDigits[slot >> 4U], kDigits[slot & 0xfU]};
}

/// What the operating system may do itself (PCI Firmware 3.0, 4.5): it may use the PCI Express capability. Hot-plug is
/// done by ACPI, and there are no power management events and no error reporting.
Term pci_osc() {
    constexpr std::uint64_t kCapabilityStructure = 1U << 4U;
    constexpr std::uint64_t kUnknownUuid = 1U << 2U;
    const std::array<Term, 3> granted = {
        aml::double_word_of(aml::argument(3), 8, "CTRL"),
        aml::store(aml::bits_of_both(aml::reference("CTRL"), aml::integer(kCapabilityStructure)),
                   aml::reference("CTRL")),
        aml::result(aml::argument(3))};
    const std::array<Term, 3> refused = {
        aml::double_word_of(aml::argument(3), 0, "STAT"),
        aml::store(aml::bits_of_either(aml::reference("STAT"), aml::integer(kUnknownUuid)), aml::reference("STAT")),
        aml::result(aml::argument(3))};
    const std::array<Term, 2> body = {
        aml::if_true(aml::equal(aml::argument(0), aml::uuid("33DB4D5B-1FF7-401C-9657-7441C03DD766")), granted),
        aml::otherwise(refused)};
    return aml::method("_OSC", 4, body);
}

/// The interrupt line of the pin of each slot (6.2.13).
Term pci_pins(const PciHardware& pci) {
    constexpr std::uint64_t kAnyFunction = 0xffff;
    constexpr unsigned kSlotShift = 16;
    std::vector<Term> entries;
    for (unsigned slot = 0; slot < kPciSlots; ++slot) {
        const std::array<Term, 4> entry = {aml::integer(std::uint64_t{slot} << kSlotShift | kAnyFunction),
                                           aml::integer(0), aml::integer(0),
                                           aml::integer(pci.pin_gsis.at(slot % pci.pin_gsis.size()))};
        entries.push_back(aml::package(entry));
    }
    return aml::name("_PRT", aml::package(entries));
}

/// A slot whose device may come and go while the guest runs.
Term pci_slot(unsigned slot) {
    constexpr unsigned kSlotShift = 16;
    const std::array<Term, 1> eject = {aml::store(aml::integer(std::uint64_t{1} << slot), aml::reference("EJCT"))};
    return device(slot_name(slot), {aml::name("_ADR", aml::integer(std::uint64_t{slot} << kSlotShift)),
                                    aml::name("_SUN", aml::integer(slot)), aml::method("_EJ0", 1, eject)});
}

/// Notifies the operating system of each slot whose device has come or must go, according to the registers.
Term pci_hotplug_check() {
    constexpr std::uint8_t kDeviceCheck = 1; // ACPI 6.3, table 5.168
    constexpr std::uint8_t kEjectRequest = 3;
    std::vector<Term> body;
    const auto tell = [&body](std::string_view of, std::uint8_t what) {
        body.push_back(aml::store(aml::reference(of), aml::local(0)));
        for (unsigned slot = 1; slot < kPciSlots; ++slot) {
            const std::array<Term, 1> told = {aml::notify(slot_name(slot), what)};
            body.push_back(
                aml::if_true(aml::bits_of_both(aml::local(0), aml::integer(std::uint64_t{1} << slot)), told));
        }
    };
    tell("COME", kDeviceCheck);
    tell("GONE", kEjectRequest);
    return aml::method(kPciHotplugCheck, 0, body);
}

/// The host bridge. Its resources are those that it passes on to the bus, and its own ports.
Term pci_root(const PciHardware& pci) {
    constexpr std::uint8_t kConfigPorts = 8;
    const std::uint32_t first = low_address(pci.window.base);
    const auto last = static_cast<std::uint32_t>(to_integer(pci.window.end()) - 1);
    std::vector<Term> terms = {aml::name("_HID", aml::eisa_id("PNP0A08")),
                               aml::name("_CID", aml::eisa_id("PNP0A03")),
                               aml::name("_UID", aml::integer(0)),
                               aml::name("_SEG", aml::integer(0)),
                               aml::name("_BBN", aml::integer(0)),
                               aml::name("_CCA", aml::integer(1)),
                               resources({aml::bus_numbers(0, 0), aml::io_ports(pci.config_ports, kConfigPorts),
                                          aml::bridged_memory(first, last)}),
                               pci_osc(),
                               pci_pins(pci)};
    if (pci.hotplug) {
        constexpr std::array<std::string_view, 3> kFields{"COME", "GONE", "EJCT"};
        terms.push_back(aml::port_region("HPRG", pci.hotplug->ports, kFields.size() * sizeof(std::uint32_t)));
        terms.push_back(aml::double_word_fields("HPRG", kFields));
        for (unsigned slot = 1; slot < kPciSlots; ++slot) {
            terms.push_back(pci_slot(slot));
        }
        terms.push_back(pci_hotplug_check());
    }
    return aml::device(kPciRoot, terms);
}

// ---- DSDT: the table

Term power_off_state(std::uint8_t sleep_type) {
    const std::array<Term, 4> values = {aml::integer(sleep_type), aml::integer(0), aml::integer(0), aml::integer(0)};
    return aml::name("\\_S5", aml::package(values));
}

std::vector<std::byte> build_dsdt(const Hardware& hardware) {
    std::vector<Term> devices;
    devices.reserve(hardware.vcpus + 8 + hardware.virtio_mmio.size());
    for (unsigned i = 0; i < hardware.vcpus; ++i) {
        devices.push_back(processor(i));
    }
    if (hardware.com1) {
        devices.push_back(serial_port(*hardware.com1));
    }
    if (hardware.cmos_rtc_port) {
        devices.push_back(cmos_rtc(*hardware.cmos_rtc_port));
    }
    if (hardware.power_button_gsi) {
        devices.push_back(power_button());
        devices.push_back(events("GED0", 0, *hardware.power_button_gsi, aml::notify(kPowerButton, kHappened)));
    }
    if (hardware.generation_id) {
        devices.push_back(generation_id(hardware.generation_id->address));
        devices.push_back(events("GED1", 1, hardware.generation_id->gsi, aml::notify(kGenerationId, kHappened)));
    }
    if (hardware.pci) {
        devices.push_back(pci_root(*hardware.pci));
        if (hardware.pci->hotplug) {
            const std::string check = "\\_SB." + std::string(kPciRoot) + "." + std::string(kPciHotplugCheck);
            devices.push_back(events("GED2", 2, hardware.pci->hotplug->gsi, aml::reference(check)));
        }
    }
    for (std::size_t i = 0; i < hardware.virtio_mmio.size(); ++i) {
        devices.push_back(virtio_mmio(i, hardware.virtio_mmio[i]));
    }
    constexpr std::uint8_t k64BitIntegers = 2;
    AcpiTable table{"DSDT", k64BitIntegers};
    table.put_bytes(power_off_state(hardware.power_off_sleep_type));
    table.put_bytes(aml::scope("\\_SB", devices));
    return std::move(table).finish();
}

// ---- FADT: the fixed features (ACPI 6.3, 5.2.9)

// Boot architecture flags (IAPC_BOOT_ARCH). The flag for an 8042 stays clear, because there is none to probe for.
constexpr std::uint16_t kLegacyDevices = 1U << 0U; // COM1
constexpr std::uint16_t kNoVga = 1U << 2U;
constexpr std::uint16_t kNoCmosRtc = 1U << 5U;

// Fixed feature flags.
constexpr std::uint32_t kWbinvdWorks = 1U << 0U;
constexpr std::uint32_t kNoFixedPowerButton = 1U << 4U;
constexpr std::uint32_t kNoFixedSleepButton = 1U << 5U;
constexpr std::uint32_t kNoFixedRtcWake = 1U << 6U;
constexpr std::uint32_t kResetRegisterWorks = 1U << 10U;
constexpr std::uint32_t kHardwareReduced = 1U << 20U;

std::vector<std::byte> build_fadt(const Hardware& hardware, GuestAddress dsdt) {
    constexpr std::uint8_t kRevision = 6;
    constexpr std::uint8_t kMinorRevision = 3;
    constexpr std::uint8_t kEnterpriseServer = 4; // the preferred power management profile
    constexpr std::uint16_t kUsualSciInterrupt = 9;
    constexpr std::size_t kFadtBytes = 276;
    // The zeros stand for registers that a hardware-reduced machine does not have.
    AcpiTable table{"FACP", kRevision};
    table.put(std::uint32_t{0}); // FIRMWARE_CTRL: no FACS, which is for sleeping
    table.put(low_address(dsdt));
    table.put_zeros(1);
    table.put(kEnterpriseServer);
    // A hardware-reduced system ignores this interrupt. But kernels that do not know this case configure it as a
    // level-triggered one, so it must not be GSI 0.
    table.put(kUsualSciInterrupt);
    table.put_zeros(108 - table.size()); // from SMI_CMD to MON_ALRM
    table.put(hardware.cmos_century_index);
    table.put(static_cast<std::uint16_t>((hardware.com1 ? kLegacyDevices : 0U) | kNoVga |
                                         (hardware.cmos_rtc_port ? 0U : kNoCmosRtc)));
    table.put_zeros(1);
    table.put(kWbinvdWorks | kNoFixedPowerButton | kNoFixedSleepButton | kNoFixedRtcWake | kResetRegisterWorks |
              kHardwareReduced);
    table.put_io_register(hardware.reset_port);
    table.put(hardware.reset_value);
    table.put_zeros(2); // ARM_BOOT_ARCH
    table.put(kMinorRevision);
    table.put(std::uint64_t{0}); // X_FIRMWARE_CTRL
    table.put(to_integer(dsdt));
    table.put_zeros(244 - table.size()); // from X_PM1a_EVT_BLK to X_GPE1_BLK
    table.put_io_register(hardware.sleep_control_port);
    table.put_io_register(hardware.sleep_status_port);
    table.put_zeros(8); // hypervisor vendor identity
    assert(table.size() == kFadtBytes);
    return std::move(table).finish();
}

// ---- MADT: the interrupt controllers (ACPI 6.3, 5.2.12)

std::vector<std::byte> build_madt(const Hardware& hardware) {
    constexpr std::uint8_t kRevision = 5;
    constexpr std::uint32_t kPcAtCompatible = 1; // there are two 8259s as well
    constexpr std::uint8_t kLocalApicType = 0;
    constexpr std::uint8_t kLocalApicBytes = 8;
    constexpr std::uint8_t kIoApicType = 1;
    constexpr std::uint8_t kIoApicBytes = 12;
    constexpr std::uint32_t kEnabled = 1;
    constexpr std::uint8_t kLocalApicNmiType = 4;
    constexpr std::uint8_t kLocalApicNmiBytes = 6;
    constexpr std::uint8_t kAllProcessors = 0xff;
    constexpr std::uint8_t kNmiInput = 1; // LINT1

    AcpiTable table{"APIC", kRevision};
    table.put(low_address(hardware.local_apic));
    table.put(kPcAtCompatible);
    for (unsigned i = 0; i < hardware.vcpus; ++i) {
        table.put(kLocalApicType).put(kLocalApicBytes);
        table.put(static_cast<std::uint8_t>(i)); // _UID of the processor
        table.put(static_cast<std::uint8_t>(i)); // id of its local APIC
        table.put(kEnabled);
    }
    table.put(kIoApicType).put(kIoApicBytes);
    table.put_zeros(2); // its id, which is that of KVM's after a reset, and a reserved byte
    table.put(low_address(hardware.io_apic));
    table.put(std::uint32_t{0}); // the GSI of its first input
    table.put(kLocalApicNmiType).put(kLocalApicNmiBytes);
    table.put(kAllProcessors);
    table.put(std::uint16_t{0}); // polarity and trigger as on the bus
    table.put(kNmiInput);
    return std::move(table).finish();
}

// ---- MCFG: where configuration spaces lie in memory (PCI Firmware 3.0, 4.1.2)

std::vector<std::byte> build_mcfg(const PciHardware& pci) {
    constexpr std::uint8_t kRevision = 1;
    AcpiTable table{"MCFG", kRevision};
    table.put_zeros(8);
    table.put(to_integer(pci.ecam.base));
    table.put(std::uint16_t{0}); // its segment
    table.put(std::uint8_t{0});  // the first bus
    table.put(std::uint8_t{0});  // the last bus
    table.put_zeros(4);
    return std::move(table).finish();
}

// ---- XSDT and RSDP: where the other tables are

std::vector<std::byte> build_xsdt(std::span<const GuestAddress> tables) {
    constexpr std::uint8_t kRevision = 1;
    AcpiTable xsdt{"XSDT", kRevision};
    for (const GuestAddress table : tables) {
        xsdt.put(to_integer(table));
    }
    return std::move(xsdt).finish();
}

constexpr std::size_t kRsdpBytes = 36;

/// ACPI 6.3, 5.2.5.3. There are two checksums: one over the part that ACPI 1.0 had, and one over all bytes.
std::vector<std::byte> build_rsdp(GuestAddress xsdt) {
    constexpr std::uint8_t kRevision = 2;
    constexpr std::size_t kFirstPartBytes = 20;
    constexpr std::size_t kChecksumOffset = 8;
    constexpr std::size_t kExtendedChecksumOffset = 32;

    std::vector<std::byte> bytes;
    for (const char c : std::string_view{"RSD PTR "}) {
        append_little_endian(bytes, static_cast<std::uint8_t>(c));
    }
    append_little_endian(bytes, std::uint8_t{0});
    for (const char c : kAcpiOemId) {
        append_little_endian(bytes, static_cast<std::uint8_t>(c));
    }
    append_little_endian(bytes, kRevision);
    append_little_endian(bytes, std::uint32_t{0}); // no RSDT
    append_little_endian(bytes, static_cast<std::uint32_t>(kRsdpBytes));
    append_little_endian(bytes, to_integer(xsdt));
    append_little_endian(bytes, std::uint32_t{0}); // extended checksum and reserved bytes
    assert(bytes.size() == kRsdpBytes);
    bytes[kChecksumOffset] = acpi_checksum(std::span{bytes}.first(kFirstPartBytes));
    bytes[kExtendedChecksumOffset] = acpi_checksum(bytes);
    return bytes;
}

/// Lays out tables one after the other, each at a multiple of 16.
class TableArea {
  public:
    /// The first `reserved` bytes stay free for the RSDP, which points to the tables.
    TableArea(GuestAddress base, std::size_t reserved) : base_(base), bytes_(reserved) {}

    GuestAddress add(std::span<const std::byte> table) {
        constexpr std::uint64_t kAlignment = 16;
        bytes_.resize(align_down(bytes_.size() + kAlignment - 1, kAlignment));
        const GuestAddress address{to_integer(base_) + bytes_.size()};
        bytes_.insert(bytes_.end(), table.begin(), table.end());
        return address;
    }

    /// All bytes, with `head` in the reserved place.
    [[nodiscard]] std::vector<std::byte> finish(std::span<const std::byte> head) && {
        std::ranges::copy(head, bytes_.begin());
        return std::move(bytes_);
    }

  private:
    GuestAddress base_;
    std::vector<std::byte> bytes_;
};

} // namespace

std::vector<std::byte> build_acpi_tables(const Hardware& hardware, GuestAddress base) {
    assert(hardware.vcpus >= 1 && hardware.vcpus <= kMaxVcpus);
    assert(hardware.virtio_mmio.size() <= kMaxVirtioMmio);
    assert(hardware.power_off_sleep_type <= 7);
    assert(!hardware.numa || hardware.numa->vcpu_nodes.size() == hardware.vcpus);
    assert(is_aligned(to_integer(base), 16)); // a scan for the RSDP looks only at such addresses

    TableArea area{base, kRsdpBytes};
    const GuestAddress dsdt = area.add(build_dsdt(hardware));
    std::vector<GuestAddress> tables = {area.add(build_fadt(hardware, dsdt)), area.add(build_madt(hardware))};
    if (hardware.pci) {
        tables.push_back(area.add(build_mcfg(*hardware.pci)));
    }
    if (hardware.numa) {
        tables.push_back(area.add(build_srat(*hardware.numa)));
        if (!hardware.numa->distances.empty()) {
            tables.push_back(area.add(build_slit(*hardware.numa)));
        }
    }
    const GuestAddress xsdt = area.add(build_xsdt(tables));
    return std::move(area).finish(build_rsdp(xsdt));
}

} // namespace vmm::loader
