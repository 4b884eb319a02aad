# shellcheck shell=bash
# lab image: makes a disk with a Debian system from the distribution's packages. lab sources this file, and sets here,
# lab_dir and the defaults.
# shellcheck disable=SC2154
#
# The system prints "GUEST STATE <answer of systemctl is-system-running>" on the serial console, runs /root/task if it exists,
# prints "GUEST EXIT <status>" and powers off.

readonly image_packages=systemd-sysv,udev,dbus,e2fsprogs,kmod,iproute2,procps,fio,iperf3,pciutils,stress-ng
readonly image_mib=1200

lab_image() {
    [ $# -eq 0 ] || refuse "lab image: unknown option '$1'"
    value_only
    local image sources
    # A different list of packages gives a different image.
    image=$lab_dir/debian-$(cksum <<<"$image_packages" | cut -d ' ' -f 1).img
    if [ -e "$image" ]; then
        echo "$image" >&"$value"
        return
    fi
    require_tools mmdebstrap mke2fs
    ((EUID == 0)) || die "lab image needs root: it makes files of all owners"
    mkdir -p "$lab_dir" || die "cannot create $lab_dir (set VMM_LAB_DIR)"
    exec 9>"$lab_dir/lock"
    flock 9
    new=$lab_dir/image # not local: for the trap
    rm -rf "$new"
    trap 'rm -rf "$new"' EXIT
    mkdir "$new"
    say "making a Debian system from packages (a few minutes)"
    sources=$(image_sources)
    [ -n "$sources" ] || die "no package source is configured"
    # shellcheck disable=SC2086
    mmdebstrap --quiet --mode=root --variant=minbase --include="$image_packages" \
        --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$new/root" $sources >"$new/log" 2>&1 ||
        { tail -n 5 "$new/log" >&2; die "mmdebstrap failed"; }
    set_up_image "$new/root"
    mke2fs -q -t ext4 -L root -d "$new/root" "$new/debian.img" "${image_mib}M" || die "mke2fs failed"
    mv "$new/debian.img" "$image"
    echo "$image" >&"$value"
}

# The files in which apt has its sources.
image_sources() {
    local list parts
    eval "$(apt-config shell list Dir::Etc::sourcelist/f parts Dir::Etc::sourceparts/d)"
    find "$parts" -maxdepth 1 \( -name '*.list' -o -name '*.sources' \)
    [ ! -e "$list" ] || echo "$list"
}

set_up_image() { # ROOT
    local root=$1
    echo lab-guest >"$root/etc/hostname"
    echo '/dev/vda / ext4 defaults 0 1' >"$root/etc/fstab"
    : >"$root/etc/machine-id"
    # The task writes to the console, so no getty may use the console. The system must not look for anything on the network.
    ln -sf /dev/null "$root/etc/systemd/system/serial-getty@.service"
    ln -sf /dev/null "$root/etc/systemd/system/getty@.service"
    ln -sf /lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"
    cat >"$root/usr/local/sbin/guest-task" <<'TASK'
#!/bin/sh
exec >/dev/ttyS0 2>&1
echo "GUEST STATE $(systemctl is-system-running --wait)"
systemctl --failed --no-legend --plain
status=0
if [ -e /root/task ]; then
    sh /root/task
    status=$?
fi
echo "GUEST EXIT $status"
systemctl poweroff
TASK
    chmod 755 "$root/usr/local/sbin/guest-task"
    cat >"$root/etc/systemd/system/guest-task.service" <<'UNIT'
[Unit]
Description=The task of this guest
After=multi-user.target

[Service]
Type=simple
ExecStart=/usr/local/sbin/guest-task

[Install]
WantedBy=multi-user.target
UNIT
    mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
    ln -s ../guest-task.service "$root/etc/systemd/system/multi-user.target.wants/guest-task.service"
}
