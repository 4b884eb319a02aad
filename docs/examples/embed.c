/* The built-in guest on populated memory, from C. */
#include <stdio.h>

#include <vmm/vmm.h>

static void say(const char* text, size_t size, void* user) {
    fwrite(text, 1, size, user);
}

static int check(int code) {
    if (code != 0) {
        fprintf(stderr, "%s (%d)\n", vmm_last_error(), code);
    }
    return code;
}

int main(void) {
    vmm_config* config = NULL;
    vmm_machine* machine = NULL;
    struct vmm_prefault_report filled;
    struct vmm_vcpu_statistics vcpu = {0, 1};
    enum vmm_exit reason = VMM_EXIT_CRASH;
    int failed = check(vmm_config_new(&config)) || check(vmm_config_set_memory(config, 64 << 20, VMM_PAGE_THP)) ||
                 check(vmm_config_set_prefault(config, VMM_PREFAULT_ALL, 2)) ||
                 check(vmm_config_set_serial_sink(config, say, stdout)) || check(vmm_machine_new(config, &machine)) ||
                 check(vmm_machine_prefault(machine, &filled)) || check(vmm_machine_run(machine, &reason)) ||
                 check(vmm_machine_statistics(machine, NULL, NULL, &vcpu, 1, NULL));
    if (!failed) {
        printf("exit %d, complete %d, faults %llu\n", (int)reason, filled.complete,
               (unsigned long long)vcpu.second_level_faults);
    }
    vmm_machine_free(machine);
    vmm_config_free(config);
    return failed || vcpu.second_level_faults != 0;
}
