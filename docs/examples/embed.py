#!/usr/bin/env python3
"""The built-in guest on populated memory, from Python: embed.py [libvmm.so.0]"""
import ctypes
import sys

vmm = ctypes.CDLL(sys.argv[1] if len(sys.argv) > 1 else "libvmm.so.0")
vmm.vmm_last_error.restype = ctypes.c_char_p
vmm.vmm_string_free.argtypes = [ctypes.c_void_p]
Sink = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_char), ctypes.c_size_t, ctypes.c_void_p)


class VcpuStatistics(ctypes.Structure):
    _fields_ = [("exits", ctypes.c_uint64), ("second_level_faults", ctypes.c_uint64)]


def check(code):
    if code != 0:
        raise OSError(-code, vmm.vmm_last_error().decode())


@Sink
def say(text, size, _user):
    sys.stdout.write(text[:size].decode())


config, machine = ctypes.c_void_p(), ctypes.c_void_p()
check(vmm.vmm_config_new(ctypes.byref(config)))
check(vmm.vmm_config_set_memory(config, ctypes.c_uint64(64 << 20), 1))
check(vmm.vmm_config_set_prefault(config, 2, 2))
check(vmm.vmm_config_set_serial_sink(config, say, None))
check(vmm.vmm_machine_new(config, ctypes.byref(machine)))
check(vmm.vmm_machine_prefault(machine, None))
reason = ctypes.c_int()
check(vmm.vmm_machine_run(machine, ctypes.byref(reason)))
vcpu = VcpuStatistics()
check(vmm.vmm_machine_statistics(machine, None, None, ctypes.byref(vcpu), ctypes.c_size_t(1), None))
print(f"exit {reason.value}, faults {vcpu.second_level_faults}")
vmm.vmm_machine_free(machine)
vmm.vmm_config_free(config)
sys.exit(vcpu.second_level_faults != 0)
