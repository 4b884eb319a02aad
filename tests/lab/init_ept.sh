# shellcheck shell=sh
# The part of lab_init for the Intel machine only. Its ports are the four serial ports, and one of them is the console. So there
# is no port for files: they go through the port of the lines.
# shellcheck disable=SC2034,SC2154

vendor=kvm_intel

# Sets the ports' names. The ports run at the fastest rate, and change no byte that goes through them.
open_ports() {
    port1=/dev/ttyS1 port2=/dev/ttyS2 port4=/dev/ttyS3
    for port in "$port1" "$port2" "$port4"; do
        stty -F "$port" raw -echo clocal 115200 || fail "cannot set up the serial port $port"
    done
}

command_cpus() { echo "0-$((cpus - 1))"; }

# vmm names its vCPU threads when it hands over to the guest, and they end with the guest. The kernel records both events with
# the time stamp counter. Bochs' log has the same numbers.
watch_guests() {
    mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
    trace=/sys/kernel/tracing/instances/lab
    if ! { mkdir "$trace" && echo x86-tsc >"$trace/trace_clock" &&
        echo 'newcomm ~ "vcpu[0-9]*"' >"$trace/events/task/task_rename/filter" &&
        echo 'comm ~ "vcpu[0-9]*"' >"$trace/events/sched/sched_process_exit/filter" &&
        echo 1 >"$trace/events/task/task_rename/enable" &&
        echo 1 >"$trace/events/sched/sched_process_exit/enable"; }; then
        fail "cannot have the kernel note when guests begin (tracefs)"
    fi
}

tell_guests() {
    sed -nE 's/^.* ([0-9]+): task_rename: .*/vcpu \1 begins/p; s/^.* ([0-9]+): sched_process_exit: .*/vcpu \1 ends/p' \
        "$trace/trace" >"$port4"
}

send_files() { tar -C /lab/get -ch . 2>/dev/null | gzip -c | base64 -w 0 | sed 's/^/files /; s/$/\n/' >"$port4"; }
