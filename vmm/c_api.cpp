// The C interface: handles, codes and messages around the C++ interface.

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvm/host/error.hpp"
#include "kvm/host/stoppable_read.hpp"
#include "vmm/machine.hpp"
#include "vmm/version.hpp"
#include "vmm/vmm.h"

struct vmm_config {
    vmm::Config config;
};

namespace {

/// The interrupt line of one device.
struct Interrupt {
    std::string name; ///< the device's name; another device may have the same
    std::function<void()> raise;
    std::function<void()> lower;
};
/// The element with a device's number belongs to that device. Its address does not change.
using Interrupts = std::vector<Interrupt>;

thread_local std::string last_error;

/// A failure that a callback reported. It has a type of its own, to be told apart from a wrong value.
class CallbackFailed : public vmm::Error {
  public:
    using Error::Error;
};

/// Thrown if the caller has asked for a stop.
class Interrupted : public vmm::Error {
  public:
    using Error::Error;
};

int fail(int code, const char* message) noexcept {
    try {
        last_error = message;
    } catch (...) { // there is no memory for the text
        last_error.clear();
    }
    return -code;
}

/// Runs `body`, and turns what it throws into a code. `code_of_errors` is the code for an Error.
template <typename Body>
int guarded(int code_of_errors, Body body) noexcept {
    try {
        last_error.clear();
        body();
        return 0;
    } catch (const vmm::UsageError& error) {
        return fail(EBUSY, error.what());
    } catch (const vmm::PauseError& error) {
        return fail(ETIMEDOUT, error.what());
    } catch (const CallbackFailed& error) {
        return fail(EIO, error.what());
    } catch (const Interrupted& error) {
        return fail(EINTR, error.what());
    } catch (const vmm::Error& error) {
        return fail(code_of_errors, error.what());
    } catch (const std::bad_alloc&) {
        return fail(ENOMEM, "out of memory");
    } catch (const std::exception& error) {
        return fail(EIO, error.what());
    } catch (...) {
        return fail(EIO, "an exception of unknown type");
    }
}

template <typename... Pointers>
void need(const Pointers*... pointers) {
    for (const void* const pointer : {static_cast<const void*>(pointers)...}) {
        if (pointer == nullptr) {
            throw vmm::Error("an argument that must not be NULL is NULL");
        }
    }
}

std::string text_or_empty(const char* text) {
    return text == nullptr ? std::string() : std::string(text);
}

/// Returns element `number` of `values`. A variable of a C enumeration may hold any number.
template <typename Value, std::size_t count>
Value chosen(int number, const std::array<Value, count>& values, const char* what) {
    if (number < 0 || static_cast<std::size_t>(number) >= count) {
        throw vmm::Error(std::string(what) + " cannot be " + std::to_string(number) + ": 0 to " +
                         std::to_string(count - 1) + " are possible");
    }
    return values[static_cast<std::size_t>(number)];
}

class CallbackDevice final : public vmm::CustomDevice {
  public:
    CallbackDevice(std::string name, vmm_read_callback reader, vmm_write_callback writer, void* user)
        : name_(std::move(name)), read_(reader), write_(writer), user_(user) {}

    void read(std::uint64_t offset, std::span<std::byte> data) override {
        // C calls a byte uint8_t.
        check(read_(offset, reinterpret_cast<std::uint8_t*>(data.data()), data.size(), user_), "read");
    }
    void write(std::uint64_t offset, std::span<const std::byte> data) override {
        check(write_(offset, reinterpret_cast<const std::uint8_t*>(data.data()), data.size(), user_), "write");
    }

  private:
    void check(int code, const char* what) const {
        if (code != 0) {
            throw CallbackFailed("the device '" + name_ + "' failed to " + what + ": its callback returned " +
                                 std::to_string(code));
        }
    }

    std::string name_;
    vmm_read_callback read_;
    vmm_write_callback write_;
    void* user_;
};

constexpr std::array kTriggers{vmm::InterruptTrigger::kEdge, vmm::InterruptTrigger::kLevel};
constexpr std::array kSpaces{vmm::DeviceSpace::kPortIo, vmm::DeviceSpace::kMmio};

static_assert(static_cast<int>(vmm::ExitReason::kStopped) == VMM_EXIT_STOPPED);
static_assert(static_cast<int>(vmm::ExitReason::kMigrated) == VMM_EXIT_MIGRATED);
static_assert(static_cast<int>(vmm::ExitReason::kSandbox) == VMM_EXIT_SANDBOX);
static_assert(static_cast<int>(vmm::VirtioTransport::kPci) == VMM_TRANSPORT_PCI);
static_assert(static_cast<int>(vmm::SandboxMode::kLog) == VMM_SANDBOX_LOG);
static_assert(static_cast<int>(vmm::SandboxMode::kOn) == VMM_SANDBOX_ON);
static_assert(static_cast<int>(vmm::ExitReason::kCrash) == VMM_EXIT_CRASH);
static_assert(static_cast<int>(vmm::RunState::kEnded) == VMM_STATE_ENDED);
static_assert(static_cast<int>(vmm::RunState::kPaused) == VMM_STATE_PAUSED);

/// Makes each device store its interrupt in `interrupts`, in addition to its own `make` function.
vmm::Config with_interrupts(vmm::Config config, Interrupts& interrupts) {
    for (std::size_t i = 0; i < config.devices.size(); ++i) {
        vmm::DeviceConfig& device = config.devices[i];
        interrupts.push_back({device.name, {}, {}});
        device.make = [make = device.make, i, &interrupts](const vmm::DeviceHost& host) {
            interrupts[i].raise = host.raise_interrupt;
            interrupts[i].lower = host.lower_interrupt;
            return make(host);
        };
    }
    return config;
}

/// Finds the only device of that name that has an interrupt.
const Interrupt& find_interrupt(const Interrupts& interrupts, std::string_view name) {
    const Interrupt* found = nullptr;
    for (const Interrupt& interrupt : interrupts) {
        if (interrupt.name != name || !interrupt.raise) {
            continue;
        }
        if (found != nullptr) {
            throw vmm::Error("there are several devices '" + std::string(name) +
                             "' with an interrupt (name the one that is meant by its number: "
                             "vmm_machine_raise_interrupt_of, vmm_machine_lower_interrupt_of)");
        }
        found = &interrupt;
    }
    if (found == nullptr) {
        throw vmm::Error("there is no device '" + std::string(name) + "' with an interrupt");
    }
    return *found;
}

const Interrupt& find_interrupt(const Interrupts& interrupts, std::size_t device) {
    if (device >= interrupts.size() || !interrupts[device].raise) {
        throw vmm::Error("there is no device number " + std::to_string(device) + " with an interrupt");
    }
    return interrupts[device];
}

void lower(const Interrupt& interrupt) {
    if (!interrupt.lower) {
        throw vmm::Error("the interrupt of the device '" + interrupt.name +
                         "' cannot be lowered: it is edge-triggered (vmm_config_set_device_trigger)");
    }
    interrupt.lower();
}

std::shared_ptr<const std::vector<std::byte>> copy_of(const void* data, std::size_t size) {
    if (data == nullptr) {
        return nullptr;
    }
    if (size > PTRDIFF_MAX) {
        throw vmm::Error("an image cannot have " + std::to_string(size) + " bytes");
    }
    const auto* const begin = static_cast<const std::byte*>(data);
    return std::make_shared<const std::vector<std::byte>>(begin, begin + size);
}

} // namespace

struct vmm_machine {
    explicit vmm_machine(const vmm::Config& config) : machine(with_interrupts(config, interrupts)) {}

    Interrupts interrupts;
    vmm::Machine machine;
};

struct vmm_incoming {
    std::shared_ptr<vmm::IncomingGuest> guest;
    std::stop_source stop;
};

extern "C" {

const char* vmm_version(void) {
    return vmm::kVersion;
}

const char* vmm_last_error(void) {
    return last_error.c_str();
}

int vmm_config_new(vmm_config** config) {
    return guarded(EINVAL, [&] {
        need(config);
        *config = new vmm_config;
    });
}

void vmm_config_free(vmm_config* config) {
    delete config;
}

int vmm_config_set_kernel(vmm_config* config, const char* path) {
    return guarded(EINVAL, [&] {
        need(config);
        config->config.kernel_path = text_or_empty(path);
    });
}

int vmm_config_set_initrd(vmm_config* config, const char* path) {
    return guarded(EINVAL, [&] {
        need(config);
        config->config.initrd_path = text_or_empty(path);
    });
}

int vmm_config_set_command_line(vmm_config* config, const char* text) {
    return guarded(EINVAL, [&] {
        need(config);
        config->config.command_line = text_or_empty(text);
    });
}

int vmm_config_set_kernel_image(vmm_config* config, const void* data, size_t size) {
    return guarded(EINVAL, [&] {
        need(config);
        config->config.kernel_image = copy_of(data, size);
    });
}

int vmm_config_set_initrd_image(vmm_config* config, const void* data, size_t size) {
    return guarded(EINVAL, [&] {
        need(config);
        config->config.initrd_image = copy_of(data, size);
    });
}

int vmm_config_set_memory(vmm_config* config, uint64_t bytes, int page_size) {
    return guarded(EINVAL, [&] {
        need(config);
        config->config.page_size = chosen(page_size, vmm::kPageSizes, "the page size");
        config->config.memory_bytes = bytes;
    });
}

int vmm_config_set_memory_max(vmm_config* config, uint64_t bytes) {
    return guarded(EINVAL, [&] {
        need(config);
        config->config.memory_max_bytes = bytes;
    });
}

int vmm_config_set_vcpus(vmm_config* config, unsigned vcpus) {
    return guarded(EINVAL, [&] {
        need(config);
        config->config.vcpus = vcpus;
    });
}

int vmm_config_set_cpu(vmm_config* config, const char* cpu) {
    return guarded(EINVAL, [&] {
        need(config);
        const std::string text = text_or_empty(cpu);
        config->config.cpu = text.empty() ? vmm::Config().cpu : text;
    });
}

int vmm_config_set_memory_shared(vmm_config* config, int shared) {
    return guarded(EINVAL, [&] {
        need(config);
        config->config.memory_shared = shared != 0;
    });
}

int vmm_config_set_sandbox(vmm_config* config, int mode) {
    return guarded(EINVAL, [&] {
        need(config);
        if (mode < VMM_SANDBOX_OFF || mode > VMM_SANDBOX_ON) {
            throw vmm::UsageError("the sandbox is none of enum vmm_sandbox");
        }
        config->config.sandbox = static_cast<vmm::SandboxMode>(mode);
    });
}

int vmm_config_set_memory_from(vmm_config* config, const char* path, int fallback) {
    return guarded(EINVAL, [&] {
        need(config);
        std::optional<vmm::MemoryFrom> from;
        if (path != nullptr && *path != '\0') {
            from = vmm::MemoryFrom{path, fallback != 0};
            from->check();
        }
        config->config.memory_from = std::move(from);
    });
}

int vmm_config_set_transport(vmm_config* config, int transport) {
    return guarded(EINVAL, [&] {
        need(config);
        if (transport < VMM_TRANSPORT_MMIO || transport > VMM_TRANSPORT_PCI) {
            throw vmm::UsageError("the transport is none of enum vmm_transport");
        }
        config->config.transport = static_cast<vmm::VirtioTransport>(transport);
    });
}

int vmm_config_set_nested(vmm_config* config, int nested) {
    return guarded(EINVAL, [&] {
        need(config);
        config->config.nested = nested != 0;
    });
}

int vmm_config_set_restore(vmm_config* config, const char* directory, int mode) {
    return guarded(EINVAL, [&] {
        need(config);
        const vmm::RestoreMode chosen_mode = chosen(mode, vmm::kRestoreModes, "the mode of a restore");
        const std::string path = text_or_empty(directory);
        config->config.restore.reset();
        if (!path.empty()) {
            config->config.restore = vmm::RestoreFrom{.path = path, .mode = chosen_mode};
        }
    });
}

int vmm_config_set_record_working_set(vmm_config* config, unsigned milliseconds) {
    return guarded(EINVAL, [&] {
        need(config);
        if (!config->config.restore) {
            throw vmm::Error("cannot record the working set of a snapshot: the machine goes on from none "
                             "(vmm_config_set_restore())");
        }
        config->config.restore->record_working_set = std::chrono::milliseconds(milliseconds);
        config->config.restore->check();
    });
}

int vmm_config_set_pin(vmm_config* config, int pin) {
    return guarded(EINVAL, [&] {
        need(config);
        config->config.pin = chosen(pin, vmm::prefault::kPins, "the pin");
    });
}

int vmm_config_set_prefault(vmm_config* config, int scope, unsigned workers) {
    return guarded(EINVAL, [&] {
        need(config);
        config->config.prefault.scope = chosen(scope, vmm::prefault::kScopes, "the prefault's scope");
        config->config.prefault.workers = workers;
    });
}

int vmm_config_add_disk(vmm_config* config, const char* path, int read_only) {
    return guarded(EINVAL, [&] {
        need(config, path);
        vmm::DiskConfig disk;
        disk.path = path;
        disk.read_only = read_only != 0;
        config->config.disks.push_back(std::move(disk));
    });
}

int vmm_config_set_serial_fds(vmm_config* config, int input_fd, int output_fd) {
    return guarded(EINVAL, [&] {
        need(config);
        config->config.serial.input_fd = input_fd;
        config->config.serial.output_fd = output_fd;
    });
}

int vmm_config_set_serial_sink(vmm_config* config, vmm_output_callback sink, void* user) {
    return guarded(EINVAL, [&] {
        need(config);
        config->config.serial.sink = nullptr;
        if (sink != nullptr) {
            config->config.serial.sink = [sink, user](std::span<const std::byte> bytes) {
                // C calls a byte char.
                sink(reinterpret_cast<const char*>(bytes.data()), bytes.size(), user);
            };
        }
    });
}

int vmm_config_add_device(vmm_config* config, const char* name, int space, uint64_t base, uint64_t size, int interrupt,
                          vmm_read_callback read, vmm_write_callback write, void* user) {
    return guarded(EINVAL, [&] {
        need(config, name);
        if (read == nullptr || write == nullptr) {
            throw vmm::Error("a device needs a callback to read and one to write");
        }
        vmm::DeviceConfig device;
        device.name = name;
        device.space = chosen(space, kSpaces, "a device's space");
        device.base = base;
        device.size = size;
        if (interrupt >= 0) {
            device.interrupt = static_cast<std::uint32_t>(interrupt);
        }
        device.make = [text = device.name, read, write, user](const vmm::DeviceHost&) {
            return std::make_shared<CallbackDevice>(text, read, write, user);
        };
        config->config.devices.push_back(std::move(device));
    });
}

int vmm_config_set_device_trigger(vmm_config* config, size_t device, int trigger) {
    return guarded(EINVAL, [&] {
        need(config);
        if (device >= config->config.devices.size()) {
            throw vmm::Error("there is no device number " + std::to_string(device));
        }
        config->config.devices[device].trigger = chosen(trigger, kTriggers, "a device's trigger");
    });
}

int vmm_machine_new(const vmm_config* config, vmm_machine** machine) {
    const int code = guarded(EINVAL, [&] {
        need(config, machine);
        vmm::validate(config->config);
    });
    return code != 0 ? code : guarded(EIO, [&] { *machine = new vmm_machine(config->config); });
}

void vmm_machine_free(vmm_machine* machine) {
    delete machine;
}

int vmm_machine_prefault(vmm_machine* machine, struct vmm_prefault_report* report) {
    return guarded(EIO, [&] {
        need(machine);
        const vmm::prefault::Report done = machine->machine.prefault();
        if (report != nullptr) {
            *report = {done.bytes, done.mapped.bytes(), done.total_seconds, done.complete ? 1 : 0};
        }
    });
}

int vmm_machine_set_memory(vmm_machine* machine, uint64_t bytes) {
    return guarded(EIO, [&] {
        need(machine);
        machine->machine.set_memory(bytes);
    });
}

int vmm_machine_run(vmm_machine* machine, enum vmm_exit* reason) {
    return guarded(EIO, [&] {
        need(machine);
        const vmm::ExitReason ended = machine->machine.run();
        if (reason != nullptr) {
            *reason = static_cast<vmm_exit>(ended);
        }
    });
}

void vmm_machine_request_stop(vmm_machine* machine) {
    if (machine != nullptr) {
        machine->machine.request_stop();
    }
}

int vmm_machine_pause(vmm_machine* machine) {
    return guarded(EIO, [&] {
        need(machine);
        machine->machine.pause();
    });
}

int vmm_machine_pause_within(vmm_machine* machine, unsigned milliseconds) {
    return guarded(EIO, [&] {
        need(machine);
        machine->machine.pause(std::chrono::milliseconds(milliseconds));
    });
}

int vmm_machine_resume(vmm_machine* machine) {
    return guarded(EIO, [&] {
        need(machine);
        machine->machine.resume();
    });
}

int vmm_machine_snapshot(vmm_machine* machine, const char* directory, int resume) {
    return guarded(EIO, [&] {
        need(machine);
        vmm::SnapshotOptions options;
        options.directory = text_or_empty(directory);
        options.resume = resume != 0;
        if (!machine->machine.snapshot(options).complete) {
            throw vmm::Error("cannot take a snapshot: a stop was requested");
        }
    });
}

int vmm_machine_migrate(vmm_machine* machine, const vmm_migration* migration) {
    return guarded(EIO, [&] {
        need(machine, migration);
        vmm::MigrationOptions options;
        options.address = vmm::MigrationAddress::parse(text_or_empty(migration->address));
        options.security = {.tls_directory = text_or_empty(migration->tls_directory),
                            .insecure = migration->insecure != 0};
        options.streams = migration->streams != 0 ? migration->streams : options.streams;
        if (migration->downtime_ms != 0) {
            options.downtime = std::chrono::milliseconds(migration->downtime_ms);
        }
        if (!machine->machine.migrate(options).complete) {
            throw vmm::Error("cannot migrate the machine: a stop was requested");
        }
    });
}

int vmm_incoming_new(const char* address, const char* tls_directory, int insecure, vmm_incoming** incoming) {
    return guarded(EIO, [&] {
        need(address, incoming);
        vmm::IncomingGuest::Options options;
        options.address = vmm::MigrationAddress::parse(text_or_empty(address));
        options.security = {.tls_directory = text_or_empty(tls_directory), .insecure = insecure != 0};
        *incoming = new vmm_incoming{std::make_shared<vmm::IncomingGuest>(options, vmm::LogSink{}), {}};
    });
}

int vmm_incoming_wait(vmm_incoming* incoming) {
    return guarded(EIO, [&] {
        need(incoming);
        try {
            incoming->guest->wait(incoming->stop.get_token());
        } catch (const vmm::StoppedError& error) {
            throw Interrupted(error.what());
        }
    });
}

void vmm_incoming_stop(vmm_incoming* incoming) {
    if (incoming != nullptr) {
        incoming->stop.request_stop();
    }
}

int vmm_config_set_incoming(vmm_config* config, const vmm_incoming* incoming) {
    return guarded(EINVAL, [&] {
        need(config);
        config->config.incoming = incoming != nullptr ? incoming->guest : nullptr;
    });
}

void vmm_incoming_free(vmm_incoming* incoming) {
    delete incoming;
}

int vmm_machine_raise_interrupt(vmm_machine* machine, const char* device) {
    return guarded(EINVAL, [&] {
        need(machine, device);
        find_interrupt(machine->interrupts, std::string_view(device)).raise();
    });
}

int vmm_machine_lower_interrupt(vmm_machine* machine, const char* device) {
    return guarded(EINVAL, [&] {
        need(machine, device);
        lower(find_interrupt(machine->interrupts, std::string_view(device)));
    });
}

int vmm_machine_raise_interrupt_of(vmm_machine* machine, size_t device) {
    return guarded(EINVAL, [&] {
        need(machine);
        find_interrupt(machine->interrupts, device).raise();
    });
}

int vmm_machine_lower_interrupt_of(vmm_machine* machine, size_t device) {
    return guarded(EINVAL, [&] {
        need(machine);
        lower(find_interrupt(machine->interrupts, device));
    });
}

int vmm_machine_statistics(const vmm_machine* machine, enum vmm_state* state, uint64_t* mapped_bytes,
                           struct vmm_vcpu_statistics* vcpus, size_t room, size_t* count) {
    return guarded(EIO, [&] {
        need(machine);
        const vmm::Statistics now = machine->machine.statistics();
        if (state != nullptr) {
            *state = static_cast<vmm_state>(now.state);
        }
        if (mapped_bytes != nullptr) {
            *mapped_bytes = now.mapped.bytes();
        }
        for (std::size_t i = 0; vcpus != nullptr && i < room && i < now.vcpus.size(); ++i) {
            vcpus[i] = {now.vcpus[i].exits, now.vcpus[i].second_level_faults};
        }
        if (count != nullptr) {
            *count = now.vcpus.size();
        }
    });
}

int vmm_machine_read_memory(const vmm_machine* machine, uint64_t address, void* data, size_t size) {
    return guarded(EINVAL, [&] {
        need(machine, data);
        if (!machine->machine.memory().copy_out(vmm::GuestAddress{address}, {static_cast<std::byte*>(data), size})) {
            throw vmm::Error("cannot read guest memory: not all of it is RAM");
        }
    });
}

int vmm_machine_write_memory(vmm_machine* machine, uint64_t address, const void* data, size_t size) {
    return guarded(EINVAL, [&] {
        need(machine, data);
        if (!machine->machine.memory().copy_in(vmm::GuestAddress{address},
                                               {static_cast<const std::byte*>(data), size})) {
            throw vmm::Error("cannot write guest memory: not all of it is RAM");
        }
    });
}

int vmm_machine_report(const vmm_machine* machine, char** json) {
    return guarded(EIO, [&] {
        need(machine, json);
        const std::string text = vmm::to_json(machine->machine.report());
        char* const copy = new char[text.size() + 1];
        std::memcpy(copy, text.c_str(), text.size() + 1);
        *json = copy;
    });
}

void vmm_string_free(char* text) { // NOLINT(readability-non-const-parameter): it is deleted
    delete[] text;
}

} // extern "C"
