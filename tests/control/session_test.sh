#!/usr/bin/env bash
# A session like a user's, at two terminals of tmux. In one a guest runs; in the other `vmm ctl` pauses it, saves it, resumes it
# and stops it. Then the guest is restored from the snapshot, and is stopped by its escape keys. The test checks the screens.
# It does the same by curl, and both ways must leave snapshots of the same kind. Needs /dev/kvm, tmux and curl.
#
# session_test.sh VMM

set -uo pipefail
export LC_ALL=C
umask 022
vmm=$(realpath "${1:?usage: session_test.sh VMM}")
work=$(mktemp -d)
passed=0 failed=0 typed=0
# Our own tmux server, which ignores the user's configuration. Its sockets are in TMUX_TMPDIR.
export TMUX_TMPDIR=$work
unset TMUX
terminal() { tmux -f /dev/null "$@"; }
trap 'terminal kill-server 2>/dev/null; rm -rf "$work"' EXIT

pass() {
    echo "PASS $1"
    passed=$((passed + 1))
}
fail() {
    echo "FAIL $1"
    for pane in guest control; do
        echo "--- the terminal '$pane'"
        screen $pane | grep -v '^$' | tail -n 30
    done
    failed=$((failed + 1))
}

# screen NAME: all text that the terminal has shown, including what has scrolled away. Wrapped lines are joined.
screen() { terminal capture-pane -p -J -S - -t "$1"; }

# eventually COMMAND...: waits until the command succeeds. Fails after ten minutes: only something that hangs takes so long.
eventually() {
    local tries
    for ((tries = 0; tries < 6000; tries++)); do
        "$@" && return
        sleep 0.1
    done
    return 1
}
shows() { grep -qE -- "$2" <<<"$(screen "$1")"; } # NAME PATTERN

# type_in NAME LINE: types the line and the Enter key.
type_in() {
    terminal send-keys -t "$1" -l -- "$2"
    terminal send-keys -t "$1" Enter
}
# asks LINE: types the command at the control terminal and waits for its end. Leaves its output and its status.
asks() {
    typed=$((typed + 1))
    terminal clear-history -t control
    type_in control "clear; $1; echo \"[\$?] is the status of $typed\""
    eventually shows control "^\[[0-9]+\] is the status of $typed" || return
    answer=$(screen control | sed -n "/^\[[0-9]*\] is the status of $typed/q; p")
    status=$(screen control | sed -n "s/^\[\([0-9]*\)\] is the status of $typed.*/\1/p")
}
# answers NAME LINE STATUS PATTERN
answers() {
    if asks "$2" && [[ $status == "$3" ]] && grep -qE -- "$4" <<<"$answer"; then pass "$1"; else fail "$1: '$2'"; fi
}

# passes: the number of passes over its memory that the guest has reported on its terminal.
last_pass() { screen guest | sed -n 's/^pass=\([0-9]*\) .*/\1/p' | tail -n 1; }
has_passed() { [[ $(last_pass) -gt $1 ]]; }
goes_on() { # NAME
    if eventually has_passed "$(last_pass)"; then pass "$1"; else fail "$1"; fi
}

# session HOW PAUSE STATUS SNAPSHOT RESUME STOP: runs one session; each argument is the command to type for that verb.
session() {
    local how=$1
    type_in guest "vmm run --api vm.sock --prefault=all -m 64M --cmdline passes=1000000; echo \"[\$?] ended\""
    if eventually shows guest '^pass=[0-9]+ '; then pass "$how: a guest runs at a terminal"; else fail "$how: no guest runs"; fi
    answers "$how: it is paused" "$2" 0 'paused'
    answers "$how: its state is paused" "$3" 0 'state"?: ?"?paused'
    answers "$how: it is saved" "$4" 0 'snapshot'
    if eventually test -e "$work/$how"; then pass "$how: the snapshot is there"; else fail "$how: there is no snapshot"; fi
    answers "$how: it is as it was saved" "vmm snapshot verify $how" 0 '.'
    answers "$how: it is held after that" "$3" 0 'state"?: ?"?paused'
    answers "$how: it is let go on" "$5" 0 'running'
    goes_on "$how: its passes go on on the screen"
    answers "$how: it is stopped" "$6" 0 'stop'
    if eventually shows guest '^\[0\] ended'; then pass "$how: the run has ended with status 0"; else fail "$how: the run has not ended"; fi
    if [[ -e $work/vm.sock ]]; then fail "$how: the control socket is still there"; else pass "$how: the control socket is gone"; fi

    terminal clear-history -t guest
    type_in guest "clear; vmm run --restore $how --prefault=all; echo \"[\$?] ended again\""
    if eventually shows guest '^pass=[0-9]+ '; then pass "$how: it goes on from the snapshot"; else fail "$how: it does not go on"; fi
    goes_on "$how: its passes go on after that"
    terminal send-keys -t guest C-a x
    if eventually shows guest '^\[0\] ended again'; then pass "$how: Ctrl-A x ends it"; else fail "$how: Ctrl-A x does not end it"; fi
    if shows guest '^second-level faults: 0 since hand-over'; then pass "$how: no second-level fault"; else fail "$how: faults"; fi
    if shows guest 'broken|lost|error'; then fail "$how: an error is on the screen"; else pass "$how: no error is on the screen"; fi
    terminal clear-history -t guest
    type_in guest clear
}

for program in tmux curl; do
    if ! command -v $program >/dev/null; then
        echo "FAIL $program is not installed (scripts/setup)"
        exit 1
    fi
done
for name in guest control; do
    terminal new-session -d -s $name -x 150 -y 50 -c "$work" "env PATH='$(dirname "$vmm"):$PATH' PS1='$ ' HOME='$work' sh"
done
terminal set-option -g history-limit 20000

session ctl "vmm ctl vm.sock pause" "vmm ctl vm.sock status" "vmm ctl vm.sock snapshot ctl" "vmm ctl vm.sock resume" "vmm ctl vm.sock stop --force"
curl="curl --silent --show-error --fail --unix-socket vm.sock"
session curl "$curl -X POST http://localhost/pause" "$curl http://localhost/status" \
    "$curl -X POST http://localhost/snapshot -d '{\"directory\":\"$work/curl\"}'" \
    "until $curl http://localhost/jobs | grep -q '\"done\"'; do sleep 0.1; done; $curl -X POST http://localhost/resume" \
    "$curl -X POST http://localhost/stop -d '{\"force\":true}'"

name="what curl and vmm ctl save is the same kind of snapshot"
kind_of() { "$vmm" snapshot info "$work/$1" | grep -vE '^(made|clock|generation|memory)' | sed "s/$1//"; }
if [[ $(kind_of ctl | wc -l) -gt 3 && $(kind_of ctl) == "$(kind_of curl)" ]]; then
    pass "$name"
else
    diff <(kind_of ctl) <(kind_of curl)
    fail "$name"
fi

name="a guest that ends while it migrates has not migrated, and both ends say so"
"$vmm" run -q -m 64M --api "$work/source.sock" --serial "$work/serial" --cmdline passes=1000000 </dev/null &
source=$!
"$vmm" run --incoming "unix:$work/in" </dev/null >"$work/destination" 2>&1 &
destination=$!
eventually grep -q '^pass=1 ' "$work/serial"
eventually grep -q 'a guest can come' "$work/destination"
"$vmm" ctl "$work/source.sock" migrate "unix:$work/in" --bandwidth 64K >"$work/migrated" 2>&1 &
migrating=$!
is_migrating() { "$vmm" ctl "$work/source.sock" jobs | grep -q 'round: 1'; }
eventually is_migrating
kill -TERM $source
wait $source
wait $migrating
status_of_ctl=$?
wait $destination
status_of_destination=$?
if ((status_of_ctl != 0 && status_of_destination != 0)); then
    pass "$name"
else
    cat "$work/migrated" "$work/destination"
    fail "$name: $status_of_ctl, $status_of_destination"
fi
echo "$passed passed, $failed failed"
((failed == 0))
