#include "vmm/board.hpp"

#include <utility>

#include "vmm/memory_map.hpp"

namespace vmm {

using devices::AcpiPower;

Board::Board(kvm::Vm& vm, devices::CharacterPort::Callbacks serial_callbacks, VirtioDevices& virtio, StopRequest& stop)
    : com1_line_(vm, memory_map::kCom1Gsi), serial_(com1_line_, std::move(serial_callbacks)),
      i8042_([&stop] { stop.request(ExitReason::kReboot); }),
      power_({[&stop] { stop.request(ExitReason::kPowerOff); }, [&stop] { stop.request(ExitReason::kReboot); }}) {
    ports_.attach(memory_map::kCom1Port, devices::SerialPort::kSize, serial_);
    ports_.attach(memory_map::kI8042Port, devices::I8042::kSize, i8042_);
    ports_.attach(memory_map::kAcpiPowerPort, AcpiPower::kSize, power_);
    ports_.attach(memory_map::kRtcPort, devices::Rtc::kSize, rtc_);
    ports_.freeze();
    virtio.attach_to(mmio_);
    mmio_.freeze();
}

loader::AcpiConfig Board::describe(unsigned vcpus, std::optional<loader::AcpiNuma> numa,
                                   std::vector<loader::AcpiVirtioMmio> virtio) {
    loader::AcpiConfig acpi;
    acpi.vcpus = vcpus;
    acpi.numa = std::move(numa);
    acpi.virtio_mmio = std::move(virtio);
    acpi.base = memory_map::kAcpiTables.base;
    acpi.local_apic = memory_map::kLocalApic;
    acpi.io_apic = memory_map::kIoApic;
    acpi.sleep_control_port = memory_map::kAcpiPowerPort + AcpiPower::kSleepControlOffset;
    acpi.sleep_status_port = memory_map::kAcpiPowerPort + AcpiPower::kSleepStatusOffset;
    acpi.power_off_sleep_type = AcpiPower::kS5SleepType;
    acpi.reset_port = memory_map::kAcpiPowerPort + AcpiPower::kResetOffset;
    acpi.reset_value = AcpiPower::kResetValue;
    acpi.com1 = loader::AcpiSerialPort{memory_map::kCom1Port, memory_map::kCom1Gsi};
    acpi.cmos_rtc_port = memory_map::kRtcPort;
    acpi.cmos_century_index = devices::Rtc::kCenturyIndex;
    return acpi;
}

} // namespace vmm
