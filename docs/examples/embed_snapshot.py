#!/usr/bin/env python3
"""A guest is paused, saved and ended, and another machine goes on from there: embed_snapshot.py [libvmm.so.0]"""
import ctypes
import os
import sys
import tempfile
import threading

vmm = ctypes.CDLL(sys.argv[1] if len(sys.argv) > 1 else "libvmm.so.0")
vmm.vmm_last_error.restype = ctypes.c_char_p
Sink = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_char), ctypes.c_size_t, ctypes.c_void_p)
PAGE_4K, RESTORE_FULL, EXIT_POWER_OFF = 0, 0, 0
PASSES = 2000


def check(code):
    if code != 0:
        raise OSError(-code, vmm.vmm_last_error().decode())


class Guest:
    """The built-in guest, or a saved one. In each pass over its memory it compares what the pass before wrote."""

    def __init__(self, snapshot=None):
        self.text = ""
        self.heard = threading.Condition()
        self.sink = Sink(self.hear)  # The library may call it as long as the machine exists.
        config = ctypes.c_void_p()
        self.machine = ctypes.c_void_p()
        self.reason = ctypes.c_int()
        check(vmm.vmm_config_new(ctypes.byref(config)))
        check(vmm.vmm_config_set_memory(config, ctypes.c_uint64(16 << 20), PAGE_4K))
        check(vmm.vmm_config_set_serial_sink(config, self.sink, None))
        if snapshot:
            check(vmm.vmm_config_set_restore(config, snapshot.encode(), RESTORE_FULL))
        else:
            check(vmm.vmm_config_set_command_line(config, f"check=1 stride=64K passes={PASSES} report=live".encode()))
        check(vmm.vmm_machine_new(config, ctypes.byref(self.machine)))
        vmm.vmm_config_free(config)
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        check(vmm.vmm_machine_run(self.machine, ctypes.byref(self.reason)))

    def hear(self, text, size, _user):
        with self.heard:
            self.text += text[:size].decode()
            self.heard.notify_all()

    def wait_for(self, words):
        with self.heard:
            self.heard.wait_for(lambda: words in self.text)

    def end(self):
        self.thread.join()
        vmm.vmm_machine_free(self.machine)


with tempfile.TemporaryDirectory() as directory:
    saved = os.path.join(directory, "saved")
    first = Guest()
    first.wait_for("pass=10 ")
    check(vmm.vmm_machine_pause(first.machine))
    check(vmm.vmm_machine_resume(first.machine))
    check(vmm.vmm_machine_snapshot(first.machine, saved.encode(), 0))
    vmm.vmm_machine_request_stop(first.machine)
    first.end()
    second = Guest(saved)
    second.wait_for("summary ")
    second.end()

summary = second.text[second.text.index("summary ") :].strip()
print(summary)
sys.exit(not (second.reason.value == EXIT_POWER_OFF and summary.endswith("errors=0") and "pass=1 " not in second.text))
