#!/usr/bin/env bash
# Kills one end of a migration, or cuts its connections, at a random moment, again and again, and counts the outcomes. The guest
# must go on at exactly one end with correct memory, and nothing may be left behind. Needs /dev/kvm and python3.
#
# migration_kill.sh [ROUNDS]     VMM is the program (build/release/vmm/vmm); a SEED repeats a run's choices.

set -uo pipefail
export LC_ALL=C
rounds=${1:-200}
vmm=$(realpath "${VMM:-build/release/vmm/vmm}")
work=$(mktemp -d)
RANDOM=${SEED:=$RANDOM}
declare -A count=()
bad=0 running=()
end_all() {
    local pid
    for pid in "${running[@]}"; do kill -9 "$pid" 2>/dev/null; done
    wait 2>/dev/null
}
trap 'end_all; rm -rf "$work"' EXIT
cd "$work" || exit 1

# The link between both ends. At a signal it closes all of its connections; then it accepts new ones.
cat >proxy.py <<'EOF'
import os, select, signal, socket, sys
listens, goes_to = sys.argv[1:]
cut = False
def on_signal(*_):
    global cut
    cut = True
signal.signal(signal.SIGUSR1, on_signal)
listener = socket.socket(socket.AF_UNIX)
listener.bind(listens)
listener.listen(64)
other = {}
open(listens + ".ready", "w").close()
while True:
    ready, _, _ = select.select([listener, *other], [], [], 0.01)
    if cut:
        cut = False
        for end in other:
            end.close()
        other.clear()
        continue
    for end in ready:
        try:
            if end is listener:
                near, _ = listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(goes_to)
                other[near], other[far] = far, near
                continue
            if end not in other:
                continue
            data = end.recv(1 << 18)
            if data:
                other[end].sendall(data)
                continue
        except OSError:
            if end is listener:
                near.close()
                continue
        peer = other.pop(end, None)
        if peer:
            other.pop(peer, None)
            peer.close()
        end.close()
EOF

# eventually COMMAND...: waits until the command succeeds. Fails after two minutes: only something that hangs takes so long.
eventually() {
    local tries
    for ((tries = 0; tries < 2400; tries++)); do
        "$@" && return
        sleep 0.05
    done
    return 1
}
lives() { kill -0 "$1" 2>/dev/null; }
is_over() { ! lives "$1"; }
lines() {
    local count
    count=$(grep -c '^pass=' "$1" 2>/dev/null)
    echo "${count:-0}"
}
has_more_lines() { (($(lines "$1") > $2)); }
# goes_on PID OUTPUT: waits until the guest of that process prints more.
goes_on() {
    local before tries
    before=$(lines "$2")
    for ((tries = 0; tries < 400; tries++)); do
        lives "$1" || return 1
        has_more_lines "$2" $((before + 3)) && return
        sleep 0.05
    done
    return 1
}
# state NAME: prints the state of the machine, by its control socket.
state() { "$vmm" ctl "$1.api" status 2>/dev/null | sed -n 's/^state: //p'; }
note() { count["$1"]=$((${count["$1"]:-0} + 1)); }

# round NUMBER
round() {
    local what way address listens ctl source there proxy='' moment outcome here=0 far=0
    rm -rf round && mkdir round && cd round || exit 1
    case $((RANDOM % 5)) in
    0 | 1) what='source' ;;
    2 | 3) what='destination' ;;
    *) what='link' ;;
    esac
    way=$((RANDOM % 2 ? 1 : 0))
    listens=unix:there.sock address=unix:there.sock
    if [[ $what == link ]]; then
        address=unix:link.sock
    fi
    "$vmm" run -m 64M -c $((1 + way)) --page-size=4K --cmdline "passes=1000000 check=1" --api source.api \
        --serial source.out --quiet >source.log 2>&1 &
    source=$!
    "$vmm" run --incoming $listens --api there.api --serial there.out --quiet >there.log 2>&1 &
    there=$!
    running=("$source" "$there")
    if [[ $what == link ]]; then
        eventually test -S there.sock
        python3 ../proxy.py link.sock there.sock &
        proxy=$!
        running+=("$proxy")
        eventually test -e link.sock.ready
    fi
    if ! eventually has_more_lines source.out 2 || ! eventually test -S there.sock; then
        echo "round $1: no guest runs: $(cat source.log there.log)"
        bad=$((bad + 1))
        end_all
        cd ..
        return
    fi
    # A guest that changes memory faster than it is sent is forced to move.
    local options=(--streams $((1 + RANDOM % 3)) --timeout 3 --on-timeout force)
    if ((RANDOM % 2)); then options+=(--bandwidth 64M); fi
    "$vmm" ctl source.api migrate $address "${options[@]}" >ctl.log 2>&1 &
    ctl=$!
    running+=("$ctl")
    # Half of the moments are in the first third of a second.
    moment=$((RANDOM % 2 ? RANDOM % 300 : RANDOM % 1500))
    sleep "$(printf '0.%03d' $((moment % 1000)))"
    case $what in
    source) kill -9 "$source" 2>/dev/null ;; # The process may have ended already, because its guest has moved.
    destination) kill -9 "$there" ;;
    link) kill -USR1 "$proxy" ;;
    esac
    eventually is_over "$ctl" # The migration may end in any way.
    # The destination may still wait for a source that has ended. Until it notices that, the outcome is not known.
    if [[ $what == source ]]; then
        goes_on "$there" there.out && far=1
    else
        if lives "$source" && [[ $(state source) == running ]] && goes_on "$source" source.out; then here=1; fi
        if [[ $what != destination ]] && lives "$there" && goes_on "$there" there.out; then far=1; fi
    fi
    case $here$far in
    10) outcome='goes on at the source' ;;
    01) outcome='goes on at the destination' ;;
    11) outcome='runs twice' bad=$((bad + 1)) ;;
    *)
        if [[ $what == source ]]; then
            outcome='was lost with its source'
            # This may happen only before the destination had the whole guest.
            if [[ $(state there) == running || $(state there) == paused ]]; then
                outcome='hangs' bad=$((bad + 1))
            fi
        elif [[ $what == destination ]] && grep -q '^takeover seconds' ctl.log && eventually is_over "$source"; then
            outcome='was lost with the destination, where it ran'
        else
            outcome='is nowhere' bad=$((bad + 1))
        fi
        ;;
    esac
    if grep -h '^pass=' source.out there.out 2>/dev/null | tr -d '\r' | grep 'errors=' | grep -vq 'errors=0$'; then
        # The last line of each end may be incomplete.
        if grep -hE 'errors=[1-9]' source.out there.out; then
            outcome+=', damaged' bad=$((bad + 1))
        fi
    fi
    for api in source there; do "$vmm" ctl $api.api stop --force >/dev/null 2>&1; done
    if [[ -n $proxy ]]; then kill -9 "$proxy" 2>/dev/null; fi
    # A destination that no source has reached still waits.
    if lives "$there"; then kill -TERM "$there" 2>/dev/null; fi
    if ! eventually is_over "$source" || ! eventually is_over "$there"; then
        echo "round $1: a process is left"
        bad=$((bad + 1))
    fi
    end_all
    rm -f link.sock link.sock.ready
    local left=()
    for file in *; do
        case $file in
        *.out | *.log) ;;
        source.*) [[ $what == source ]] || left+=("$file") ;; # A killed process leaves its sockets.
        there.*) [[ $what == destination ]] || left+=("$file") ;;
        *) left+=("$file") ;;
        esac
    done
    if ((${#left[@]})); then
        echo "round $1: left behind: ${left[*]}"
        bad=$((bad + 1))
    fi
    case $outcome in
    goes*) ;;
    was*) ;;
    *)
        echo "round $1 ($what, ${moment} ms, ${options[*]}): $outcome"
        tail -n 3 source.log there.log ctl.log
        ;;
    esac
    note "$(printf '%-12s %s' "$what" "the guest $outcome")"
    running=()
    cd ..
}

for ((number = 1; number <= rounds; number++)); do round "$number"; done
echo "$rounds rounds, seed $SEED"
printf '%6s  %-12s %s\n' rounds ended 'and then'
for key in "${!count[@]}"; do printf '%6d  %s\n' "${count[$key]}" "$key"; done | sort -k2
if ((bad)); then
    echo "FAILED: $bad times"
    exit 1
fi
