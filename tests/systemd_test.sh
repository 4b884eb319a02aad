#!/usr/bin/env bash
# Checks the units of the package: systemd-analyze finds nothing in them, and metrics-http answers only what it should.
#
# systemd_test.sh BUILD-FOLDER VMM     status 77: systemd-analyze is not installed
set -uo pipefail
export LC_ALL=C
units=$1/vmm/package/systemd vmm=$(realpath "$2")
source=$(realpath "$(dirname "${BASH_SOURCE[0]}")/..")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

# answers NAME STATUS REQUEST: checks that metrics-http answers the request with that status. \r\n in REQUEST stands for a line
# end.
answers() {
    local name=$1 status=$2 answer
    answer=$(printf '%b' "$3" | "$source/vmm/package/systemd/metrics-http" "$work" | head -n 1)
    if [[ $answer == "HTTP/1.1 $status"* ]]; then
        echo "PASS $name"
    else
        echo "FAIL $name: it answers '$answer', not $status"
        failed=1
    fi
}
mkdir "$work/bin"
ln -s "$vmm" "$work/bin/vmm"
PATH=$work/bin:$PATH
answers "a guest that is not there" 404 'GET /metrics?guest=nobody HTTP/1.1\r\nHost: x\r\n\r\n'
answers "a name that leads elsewhere" 404 'GET /metrics?guest=../x HTTP/1.1\r\n\r\n'
answers "a name that begins with a dot" 404 'GET /metrics?guest=.x HTTP/1.1\r\n\r\n'
answers "no name" 404 'GET /metrics?guest= HTTP/1.1\r\n\r\n'
answers "another path" 404 'GET /status HTTP/1.1\r\n\r\n'
answers "a method that changes something" 405 'POST /metrics?guest=x HTTP/1.1\r\n\r\n'
answers "what is no HTTP" 400 'hello\r\n\r\n'
answers "too many headers" 431 "GET /metrics?guest=x HTTP/1.1\\r\\n$(printf 'a: b\\r\\n%.0s' {1..200})\\r\\n"
python3 -c 'import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()' "$work/dead.sock"
answers "a guest that does not answer" 503 'GET /metrics?guest=dead HTTP/1.1\r\n\r\n'

if ! command -v systemd-analyze >/dev/null; then
    echo "SKIPPED: systemd-analyze is not here (the package systemd has it): the units are not verified"
    ((failed)) && exit 1
    exit 77
fi
# The units are changed to start the programs in the build folder.
mkdir "$work/units"
for unit in "$units"/*.service "$units"/*.socket; do
    sed -E "s|[^ =-]*/bin/vmm |$vmm |; s|[^ =]*/metrics-http|$source/vmm/package/systemd/metrics-http|" "$unit" \
        >"$work/units/${unit##*/}"
done
for unit in vmm@test.service vmm-api@test.socket vmm-pool@test.service vmm-metrics.socket vmm-metrics@1.service; do
    if said=$(SYSTEMD_UNIT_PATH="$work/units:" systemd-analyze verify --man=no "$unit" 2>&1) && [[ -z $said ]]; then
        echo "PASS systemd-analyze verify finds nothing in $unit"
    else
        echo "FAIL systemd-analyze verify $unit:"
        printf '%s\n' "$said" | sed 's/^/  | /'
        failed=1
    fi
done
# Checks that systemd-analyze does find an error in a unit that has one.
{ cat "$work/units/vmm@.service"; printf '[Service]\nNoSuchKey=yes\n'; } >"$work/units/broken@.service"
if [[ -n $(SYSTEMD_UNIT_PATH="$work/units:" systemd-analyze verify --man=no broken@test.service 2>&1) ]]; then
    echo "PASS systemd-analyze verify finds a key that there is not"
else
    echo "FAIL systemd-analyze verify does not find a key that there is not"
    failed=1
fi
exit "$failed"
