/* The library for C, and for whatever calls C.
 *
 * Every function that can fail returns 0, or a negative errno:
 *   -EINVAL  an argument, or what the configuration asks for, cannot be
 *   -EBUSY   the object does not allow that now (a machine runs once)
 *   -EIO     the host failed, or a callback reported a failure
 *   -ENOMEM  no memory
 * vmm_last_error() then says more. No exception leaves the library.
 *
 * Threads: a configuration is for one thread at a time. Of a machine, vmm_machine_request_stop() may be called from any
 * thread and from a signal handler, everything else but vmm_machine_free() from any thread; see vmm/machine.hpp.
 */
#ifndef VMM_H
#define VMM_H

#include <stddef.h>
#include <stdint.h>

#include "kvm/host/export.hpp" /* macros only */

#ifdef __cplusplus
extern "C" {
#endif

typedef struct vmm_config vmm_config;
typedef struct vmm_machine vmm_machine;
typedef struct vmm_incoming vmm_incoming; /* a guest that is to arrive from another process or host */

/* Where an int is one of these, a value that is none is -EINVAL. */
enum vmm_page_size { VMM_PAGE_4K, VMM_PAGE_THP, VMM_PAGE_2M, VMM_PAGE_1G };
enum vmm_scope { VMM_PREFAULT_NONE, VMM_PREFAULT_HOST, VMM_PREFAULT_ALL };
/* VMM_PIN_AUTO, the default: VMM_PIN_MLOCK if anything is populated, else VMM_PIN_NONE. */
enum vmm_pin { VMM_PIN_NONE, VMM_PIN_MLOCK, VMM_PIN_LONGTERM, VMM_PIN_AUTO };
#define VMM_WORKER_PER_CPU 0xffffffffU /* for vmm_config_set_prefault(): one for each CPU */
enum vmm_exit {
    VMM_EXIT_POWER_OFF,
    VMM_EXIT_REBOOT,
    VMM_EXIT_CRASH,
    VMM_EXIT_SIGNAL,
    VMM_EXIT_STOPPED,
    VMM_EXIT_MIGRATED,
    VMM_EXIT_SANDBOX
};
enum vmm_state { VMM_STATE_READY, VMM_STATE_RUNNING, VMM_STATE_PAUSED, VMM_STATE_ENDED };
/* How the memory of a snapshot becomes a guest's: it is read, its file is mapped and copied as it is written, or it is
 * read while the guest runs. */
enum vmm_restore { VMM_RESTORE_FULL, VMM_RESTORE_COW, VMM_RESTORE_LAZY };
/* How the guest reaches its virtio devices: registers in memory, or functions on a PCI bus, the default. */
enum vmm_transport { VMM_TRANSPORT_MMIO, VMM_TRANSPORT_PCI };
enum vmm_sandbox { VMM_SANDBOX_OFF, VMM_SANDBOX_LOG, VMM_SANDBOX_ON };
enum vmm_trigger { VMM_TRIGGER_EDGE, VMM_TRIGGER_LEVEL };
enum vmm_space { VMM_SPACE_PORT_IO, VMM_SPACE_MMIO };

/* What a prefault did. Sizes are in bytes, times in seconds. */
struct vmm_prefault_report {
    uint64_t bytes;
    uint64_t mapped_bytes; /* what KVM maps of guest memory, by its own count */
    double seconds;
    int complete; /* 1: done, and where the scope is all, proven */
};

/* One vCPU since vmm_machine_run() began, by KVM's own counters. */
struct vmm_vcpu_statistics {
    uint64_t exits;
    uint64_t second_level_faults;
};

/* Called on a thread of the library's. `text` is not terminated; it is valid during the call. */
typedef void (*vmm_output_callback)(const char* text, size_t size, void* user);
/* Return 0, or anything else to end the run, which then fails with -EIO. `data` has 1 to 8 bytes, little endian. From
 * any vCPU's thread, several at once. */
typedef int (*vmm_read_callback)(uint64_t offset, uint8_t* data, size_t size, void* user);
typedef int (*vmm_write_callback)(uint64_t offset, const uint8_t* data, size_t size, void* user);

/* "0.1.0" */
VMM_API const char* vmm_version(void);
/* Why the last call of this thread that failed did so: one line, valid until the thread's next call. */
VMM_API const char* vmm_last_error(void);

/* A configuration with the defaults of the command line. */
VMM_API int vmm_config_new(vmm_config** config);
/* NULL is allowed. Machines made from it do not need it any more. */
VMM_API void vmm_config_free(vmm_config* config);
/* NULL or "": the built-in guest; no initrd; nothing added to the command line. */
VMM_API int vmm_config_set_kernel(vmm_config* config, const char* path);
VMM_API int vmm_config_set_initrd(vmm_config* config, const char* path);
VMM_API int vmm_config_set_command_line(vmm_config* config, const char* text);
/* The same, from memory instead of a file, which there must not be, too. The bytes are copied. NULL: none. */
VMM_API int vmm_config_set_kernel_image(vmm_config* config, const void* data, size_t size);
VMM_API int vmm_config_set_initrd_image(vmm_config* config, const void* data, size_t size);
/* The machine goes on from the snapshot in this directory instead of booting. The rest of the configuration is that of
 * the machine that was saved. NULL or "": it boots. */
VMM_API int vmm_config_set_restore(vmm_config* config, const char* directory, int mode); /* enum vmm_restore */
/* With VMM_RESTORE_LAZY, after vmm_config_set_restore(): so long only memory that is touched is read, and which that
 * was is kept with the snapshot for later restores. 0, the default: nothing is recorded; at most 3,600,000. */
VMM_API int vmm_config_set_record_working_set(vmm_config* config, unsigned milliseconds);
VMM_API int vmm_config_set_memory(vmm_config* config, uint64_t bytes, int page_size); /* enum vmm_page_size */
/* Up to how much memory the guest can be given while it runs, by vmm_machine_set_memory(); 0, the default: no more. */
VMM_API int vmm_config_set_memory_max(vmm_config* config, uint64_t bytes);
/* 1: memory is a file in memory, which another process of this host can take over without a copy; 0, the default. */
VMM_API int vmm_config_set_memory_shared(vmm_config* config, int shared);
/* Memory comes from the pool of warm memory at this unix socket (docs/pool.md), which has pages of the same size. With
 * `fallback` 1, ordinary memory takes the place of what the pool has not; with 0 the machine is refused then. NULL or
 * "": memory is made, the default. */
VMM_API int vmm_config_set_memory_from(vmm_config* config, const char* path, int fallback);
/* What threads of vCPUs and of virtio devices may do. A call that is refused raises SIGSYS, which ends the process
 * unless the program has a handler. VMM_SANDBOX_OFF is the default. */
VMM_API int vmm_config_set_sandbox(vmm_config* config, int mode);        /* enum vmm_sandbox */
VMM_API int vmm_config_set_transport(vmm_config* config, int transport); /* enum vmm_transport */
VMM_API int vmm_config_set_vcpus(vmm_config* config, unsigned vcpus);
/* "host", "host,-x2apic", "x86-64-v2,+aes": see docs/cpu.md. NULL or "": "host". */
VMM_API int vmm_config_set_cpu(vmm_config* config, const char* cpu);
/* 1: the guest may have guests of its own (VMX, SVM); 0, the default: it may not. */
VMM_API int vmm_config_set_nested(vmm_config* config, int nested);
VMM_API int vmm_config_set_pin(vmm_config* config, int pin);                          /* enum vmm_pin */
VMM_API int vmm_config_set_prefault(vmm_config* config, int scope, unsigned workers); /* enum vmm_scope */
VMM_API int vmm_config_add_disk(vmm_config* config, const char* path, int read_only);
/* Descriptors are loans; -1: not connected. */
VMM_API int vmm_config_set_serial_fds(vmm_config* config, int input_fd, int output_fd);
/* What the guest says on its serial port. NULL: nobody hears it. */
VMM_API int vmm_config_set_serial_sink(vmm_config* config, vmm_output_callback sink, void* user);
/* A device of the caller's: vmm/device.hpp. `space` is enum vmm_space, `interrupt` is -1 for none; see
 * vmm_machine_raise_interrupt(). The first one added is device 0, the next one 1, and so on. */
VMM_API int vmm_config_add_device(vmm_config* config, const char* name, int space, uint64_t base, uint64_t size,
                                  int interrupt, vmm_read_callback read, vmm_write_callback write, void* user);
/* How device number `device` uses its interrupt: enum vmm_trigger, which is VMM_TRIGGER_EDGE unless this is called. */
VMM_API int vmm_config_set_device_trigger(vmm_config* config, size_t device, int trigger);

VMM_API int vmm_machine_new(const vmm_config* config, vmm_machine** machine);
/* Not while a call for the machine is under way. NULL is allowed. */
VMM_API void vmm_machine_free(vmm_machine* machine);
/* `report` may be NULL. */
VMM_API int vmm_machine_prefault(vmm_machine* machine, struct vmm_prefault_report* report);
/* Once. `reason` may be NULL. */
VMM_API int vmm_machine_run(vmm_machine* machine, enum vmm_exit* reason);
VMM_API void vmm_machine_request_stop(vmm_machine* machine);
/* Asks the guest to have `bytes` of memory in all, up to vmm_config_set_memory_max(), in blocks of 2 MiB at least. It
 * follows as it can. Any thread may call it. */
VMM_API int vmm_machine_set_memory(vmm_machine* machine, uint64_t bytes);
/* When it returns 0 no vCPU runs and no device works, until vmm_machine_resume(). Devices have 20 s, or as long as is
 * said, to finish what they have with the host. -ETIMEDOUT: one has not finished, and the guest goes on. */
VMM_API int vmm_machine_pause(vmm_machine* machine);
VMM_API int vmm_machine_pause_within(vmm_machine* machine, unsigned milliseconds);
VMM_API int vmm_machine_resume(vmm_machine* machine);
/* Saves the machine, which runs, in a directory that is made for it, from which vmm_config_set_restore() goes on. Then
 * the guest stays paused, or goes on if `resume` is not 0. If it fails the guest does what it did before.
 * -ETIMEDOUT as vmm_machine_pause(). -EBUSY: the machine does not run. */
VMM_API int vmm_machine_snapshot(vmm_machine* machine, const char* directory, int resume);
/* Moves the guest of the machine, which runs, to where a vmm_incoming waits for it, while it runs (docs/migration.md).
 * If it returns 0 the guest runs there, and vmm_machine_run() is about to return with VMM_EXIT_MIGRATED. Otherwise it
 * goes on here. -ETIMEDOUT as vmm_machine_pause(). -EBUSY: the machine does not run. */
struct vmm_migration {
    const char* address;       /* "unix:PATH" or "tcp:HOST:PORT" */
    const char* tls_directory; /* NULL or "": no TLS */
    int insecure;              /* 1: TCP to another host may do without TLS */
    unsigned streams;          /* 0: one */
    unsigned downtime_ms;      /* how long the guest may stand still; 0: the library's default */
};
VMM_API int vmm_machine_migrate(vmm_machine* machine, const struct vmm_migration* migration);
/* Listens there for a guest; vmm_incoming_wait() returns when one has announced itself, or vmm_incoming_stop() was
 * called (-EINTR). Then vmm_config_set_incoming() has a machine made that goes on with it: its configuration is that of
 * the machine where the guest runs. The machine is made when the guest is its own. */
VMM_API int vmm_incoming_new(const char* address, const char* tls_directory, int insecure, vmm_incoming** incoming);
VMM_API int vmm_incoming_wait(vmm_incoming* incoming);
VMM_API void vmm_incoming_stop(vmm_incoming* incoming);                                /* from any thread */
VMM_API int vmm_config_set_incoming(vmm_config* config, const vmm_incoming* incoming); /* NULL: none */
/* Machines that were made of it go on. NULL is allowed. */
VMM_API void vmm_incoming_free(vmm_incoming* incoming);
/* VMM_TRIGGER_EDGE: one interrupt. VMM_TRIGGER_LEVEL: the line goes up, and stays there until it is lowered, which only
 * such a device can do. -EINVAL where no device with an interrupt has the name, or several have it: then the next two
 * serve, which take the device's number. */
VMM_API int vmm_machine_raise_interrupt(vmm_machine* machine, const char* device);
VMM_API int vmm_machine_lower_interrupt(vmm_machine* machine, const char* device);
VMM_API int vmm_machine_raise_interrupt_of(vmm_machine* machine, size_t device);
VMM_API int vmm_machine_lower_interrupt_of(vmm_machine* machine, size_t device);
/* Fills at most `room` elements of `vcpus`, and says in `count` how many vCPUs there are. Any pointer may be NULL. */
VMM_API int vmm_machine_statistics(const vmm_machine* machine, enum vmm_state* state, uint64_t* mapped_bytes,
                                   struct vmm_vcpu_statistics* vcpus, size_t room, size_t* count);
/* -EINVAL, with nothing copied, where not all of it is RAM. */
VMM_API int vmm_machine_read_memory(const vmm_machine* machine, uint64_t address, void* data, size_t size);
VMM_API int vmm_machine_write_memory(vmm_machine* machine, uint64_t address, const void* data, size_t size);
/* The report as JSON (docs/report.md), after the run; to be given to vmm_string_free(). */
VMM_API int vmm_machine_report(const vmm_machine* machine, char** json);
VMM_API void vmm_string_free(char* text);

#ifdef __cplusplus
}
#endif

#endif
