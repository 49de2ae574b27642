#!/bin/bash
# Starts the daemon and keeps it running. For cron: @reboot /home/pi/guardianberry/launch.sh >> /home/pi/guardianberry.log 2>&1
#
# Finds its own folder from anywhere, makes env/ on the first run, hands its arguments on, starts the daemon again with
# longer and longer pauses when it dies, and not when it was asked to stop or when only an edit of the file helps.
set -u

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
cd "$here" || exit 1

say() { echo "launch.sh: $*" >&2; }

# The stamp names the Python and the requirements that env/ was made from and is written last: a set-up that was
# interrupted, or an update of either, makes it anew; an ordinary boot needs no network.
set_up() {
    local stamp requirements=(-r requirements.txt)
    # On a Pi each wheel must have the hash that is written down; elsewhere torch comes in builds that differ.
    if [ "$(uname -m)" = aarch64 ]; then
        requirements=(--no-deps --only-binary :all: --require-hashes -r requirements-aarch64.txt)
    fi
    stamp="env/.made-from-$({
        python3 -c 'import sys; print(*sys.version_info[:2])'
        cat "${requirements[-1]}"
    } | sha256sum | cut -c1-16)"
    if [ -e "$stamp" ]; then return 0; fi
    say "setting up env/ (once; several minutes on a Pi)"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { say "Python 3.11 or newer is needed"; return 1; }
    python3 -m venv env || { say "python3 -m venv failed; on Raspberry Pi OS: sudo apt install python3-venv"; return 1; }
    rm -f env/.made-from-*
    env/bin/python -m pip install --quiet --disable-pip-version-check "${requirements[@]}" || {
        say "the packages could not be installed; is there a network?"
        return 1
    }
    touch "$stamp"
}

pause_s=2
longest_pause_s=300
child=
asked_to_stop=

stop() {
    asked_to_stop=1
    if [ -n "$child" ]; then kill -TERM "$child" 2>/dev/null; fi
}
trap stop TERM INT HUP

# A pause that a signal ends at once.
rest() {
    sleep "$1" &
    child=$!
    wait "$child"
    child=
}

# Options that end by themselves need no watching over: somebody waits for the answer.
watched=1
for argument in "$@"; do
    case $argument in
        --demo | --demo=* | --check | -h | --help) watched= ;;
    esac
done

while ! set_up; do
    [ -z "$asked_to_stop" ] || exit 0
    [ -n "$watched" ] || exit 1
    say "trying again in $pause_s s"
    rest "$pause_s"
    [ -z "$asked_to_stop" ] || exit 0
    pause_s=$((pause_s * 2 < longest_pause_s ? pause_s * 2 : longest_pause_s))
done

[ -z "$asked_to_stop" ] || exit 0
if [ -z "$watched" ]; then
    cd "$OLDPWD" || exit 1 # where the path of a video begins
    exec "$here/env/bin/python" "$here/detect_and_upload.py" "$@"
fi

pause_s=2
while :; do
    started=$SECONDS
    env/bin/python detect_and_upload.py "$@" &
    child=$!
    wait "$child"
    code=$?
    # A trapped signal ends wait before the daemon has ended: wait for its own exit code.
    while kill -0 "$child" 2>/dev/null; do
        wait "$child"
        code=$?
    done
    child=
    if [ -n "$asked_to_stop" ] || [ "$code" -eq 0 ] || [ "$code" -eq 78 ]; then exit "$code"; fi
    if [ $((SECONDS - started)) -gt 600 ]; then pause_s=2; fi
    say "the daemon ended with code $code; starting it again in $pause_s s"
    rest "$pause_s"
    [ -z "$asked_to_stop" ] || exit 0
    pause_s=$((pause_s * 2 < longest_pause_s ? pause_s * 2 : longest_pause_s))
done
