#!/bin/bash
# Starts the daemon and keeps it running. For cron: @reboot $HOME/guardianberry/launch.sh
#
# Finds its own folder from anywhere, makes env/ on the first run, hands its arguments on, starts the daemon again with
# growing pauses when it dies, and not when it was asked to stop or when only an edit of the script helps. Started by
# cron, it keeps the log itself: guardianberry.log beside this file, and the one before as guardianberry.log.1.
umask 077 # first of all: nobody else may change what this makes
unset "${!PYTHON@}" # an empty entry in PYTHONPATH is the folder that this is called from
export GNUTLS_SYSTEM_PRIORITY_FILE=/dev/null # as in guardianberry/__init__.py: else env_is_whole could hang
set -u
# Where the system has no process left for so long that bash gives up, begin again, without a new process: another
# user's processes may have taken them all, and cron starts this only once.
self=${BASH_SOURCE[0]}
arguments=("$@")
asked_to_stop=
[ "${self:0:1}" = / ] || self=$PWD/$self
trap 'if [ "$?" -eq 254 ] && [ -z "$asked_to_stop" ]; then exec "$self" "${arguments[@]}"; fi' EXIT

path=$(readlink -f "$self") || exit
here=${path%/*}
cd "$here/" || exit 1

say() { printf '%(%F %T)T launch.sh: %s\n' -1 "$*" >&2; }

# ---- The log

log_limit_bytes=5000000
memory_limit_bytes=1000000

# Lines from stdin go into the log. While the card takes none (read-only, full, gone), they go into memory, where nobody
# else can read them.
keep_log() {
    local line log=$here/guardianberry.log memory='' log_bytes memory_bytes=0 LC_ALL=C
    trap '' TERM INT HUP # it ends after those that write to it
    log_bytes=$(stat -c %s "$log" 2>/dev/null || echo 0)
    while IFS= read -r line; do
        if printf '%s\n' "$line" 2>/dev/null >>"$log"; then
            if [ $((log_bytes += ${#line} + 1)) -gt "$log_limit_bytes" ]; then
                mv -f "$log" "$log.1"
                log_bytes=0
            fi
            continue
        fi
        [ -d "$memory" ] || memory=$(mktemp -d /dev/shm/guardianberry.XXXXXX) || continue
        printf '%s\n' "$line" >>"$memory/guardianberry.log"
        if [ $((memory_bytes += ${#line} + 1)) -gt "$memory_limit_bytes" ]; then
            mv -f "$memory/guardianberry.log" "$memory/guardianberry.log.1"
            memory_bytes=0
        fi
    done 2>/dev/null
}

# ---- env/

# What pip's exit code ($2) and output (file $1) say, in one line.
cause() {
    case $2:$(<"$1") in
        137:* | *MemoryError*) echo "not enough memory: stop other programs, or make the swap larger" ;;
        *"No space left"*) echo "no space left in $here" ;;
        *"Read-only file system"*) echo "$here is read-only" ;;
        *"DO NOT MATCH THE HASHES"*) echo "the package index delivers other files than those that are known here" ;;
        *onnection* | *"name resolution"* | *unreachable* | *"timed out"*)
            echo "the package index cannot be reached; is there a network?"
            ;;
        *) tail -n 1 "$1" ;;
    esac
}

# The stamp names the Python and the requirements that env/ was made from and is written last: a set-up that was
# interrupted, or an update of either, is made anew; an ordinary boot needs no network.
set_up() {
    local stamp free_mb needed_mb=400 clear='' code=0 requirements=(-r requirements.txt)
    local -x TMPDIR=$here/.setting-up # /tmp of a small Pi is in memory, and pip needs 300 MB there
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
    python3 -c 'import sys; sys.exit(sys.maxsize < 2**32)' || {
        say "python3 is a 32-bit program, though the kernel may have 64: install the 64-bit Raspberry Pi OS"
        return 1
    }
    if [ -e env ] && [ ! -w env ]; then
        say "env/ belongs to another user. Run this: sudo chown -R $(id -un) '$here'"
        return 1
    fi
    if ! compgen -G 'env/.made-from-*' >/dev/null; then
        needed_mb=2000
        clear=--clear # what an interrupted set-up has left may be damaged
    fi
    free_mb=$(df -Pm . | { read -r && read -r _ _ _ free _ && echo "$free"; })
    if [ "$free_mb" -lt "$needed_mb" ]; then
        say "$needed_mb MB must be free in $here, and $free_mb MB are"
        return 1
    fi
    python3 -c 'import ensurepip' 2>/dev/null || { say "run this: sudo apt install python3-venv"; return 1; }
    rm -rf "$TMPDIR"
    # shellcheck disable=SC2086 # no word at all if $clear is empty
    if ! mkdir "$TMPDIR" || ! python3 -m venv $clear env; then
        say "env/ could not be made: see above"
        rm -rf "$TMPDIR"
        return 1
    fi
    chmod 700 env
    rm -f env/.made-from-*
    env/bin/python -m pip install --quiet --no-cache-dir --disable-pip-version-check "${requirements[@]}" \
        2>"$TMPDIR/errors" || code=$?
    if [ "$code" -ne 0 ]; then say "the packages could not be installed: $(cause "$TMPDIR/errors" "$code")"; fi
    rm -rf "$TMPDIR"
    # The files must be on the card before the stamp is, or a power cut leaves empty ones behind it.
    [ "$code" -eq 0 ] && sync -f env && touch "$stamp" && sync -f env
}

# Whether the packages are there, none of their files is gone or empty (as a power cut leaves them), and all can be
# imported. Not torch: it takes long, and the daemon itself does not need it.
env_is_whole() {
    env/bin/python - <<'END' >/dev/null 2>&1
import importlib, re, sys
from importlib.metadata import PackageNotFoundError, files

def names(path):
    return set(re.findall("(?m)^([A-Za-z0-9._-]+)==", open(path).read())) - {"torch"}

sys.modules["openvino_telemetry"] = sys.modules["openvino.tools.ovc"] = None  # else the import calls its server
needed = names("requirements.txt")
for name in needed | names("requirements-aarch64.txt"):
    try:
        found = files(name) or sys.exit(1)
    except PackageNotFoundError:
        if name in needed:
            raise
        continue
    if any(file.size and not file.locate().stat().st_size for file in found):
        sys.exit(1)
    for module in {file.parts[0] for file in found if name in needed and file.name == "__init__.py"}:
        importlib.import_module(module)
END
}

# ---- Start, watch, start again

pause_s=2
longest_pause_s=300
child=
env_checked=

stop() {
    asked_to_stop=1
    if [ -n "$child" ]; then kill -TERM "$child" 2>/dev/null; fi
}
trap stop TERM INT HUP

# A pause that a signal ends at once, and the next one is longer.
rest() {
    sleep "$pause_s" &
    child=$!
    [ -z "$asked_to_stop" ] || kill "$child" # the signal came before the pause
    wait "$child"
    child=
    pause_s=$((pause_s * 2 < longest_pause_s ? pause_s * 2 : longest_pause_s))
    [ -z "$asked_to_stop" ] || exit 0
}

set_up_until_done() {
    while ! set_up; do
        [ -z "$asked_to_stop" ] || exit 0
        [ -n "$watched" ] || exit 1
        say "trying again in $pause_s s"
        rest
    done
    [ -z "$asked_to_stop" ] || exit 0
}

# Python names the line of a typing mistake, and not what to do.
typing_mistake="detect_and_upload.py has a typing mistake, in the line named above or before it: a quote or bracket is missing"
script_can_be_read() { env/bin/python -c 'import ast; ast.parse(open("detect_and_upload.py").read())'; }

make_env_anew() {
    say "files in env/ are damaged, by a power cut perhaps: making it anew"
    rm -f env/.made-from-*
    set_up_until_done
}

# Options that end by themselves need no watching over: somebody waits for the answer.
watched=1
checks=
for argument in "$@"; do
    case $argument in
        --demo | --demo=* | -h | --help) watched= ;;
        --check)
            watched=
            checks=1
            ;;
    esac
done

# cron collects what is written to stderr in a pipe or, since Debian 12, in a file that has no name any more: nobody would
# read it, and it would grow for ever.
goes_to_cron() {
    ! { : </dev/tty; } 2>/dev/null && { [ -p /dev/stderr ] || [ "$(stat -Lc %h /proc/self/fd/2)" = 0 ]; }
}
if [ -n "$watched" ] && goes_to_cron; then
    say "the log goes to $here/guardianberry.log"
    exec > >(keep_log) 2>&1
fi

# Byte code that others could write would be run in place of the program.
find guardianberry demo viewer -path '*/__pycache__*' \( -perm /022 -o ! -user "$EUID" \) -prune -exec rm -rf {} + 2>/dev/null

set_up_until_done
if [ -z "$watched" ]; then
    if ! env_is_whole; then
        if [ -n "$checks" ]; then
            echo "FAIL  packages     files in env/ are damaged, by a power cut perhaps"
            echo "                   -> Start the daemon or the demo with launch.sh, which makes env/ anew."
            exit 1
        fi
        make_env_anew
    fi
    script_can_be_read || { say "$typing_mistake"; exit 78; }
    cd "$OLDPWD" || exit 1 # where the path of a video begins
    exec "$here/env/bin/python" "$here/detect_and_upload.py" "$@"
fi

pause_s=2
while :; do
    started=$SECONDS
    env/bin/python detect_and_upload.py "$@" &
    child=$!
    [ -z "$asked_to_stop" ] || kill -TERM "$child" # the signal came before there was a child to hand it on to
    wait "$child"
    # A trapped signal ends wait before the daemon has ended: wait for it, and then once more for its own exit code.
    while kill -0 "$child" 2>/dev/null; do wait "$child"; done
    wait "$child"
    code=$?
    child=
    # 78: only an edit of the script helps. 2: wrong options, or Python cannot open the script (an update is under way).
    if [ -n "$asked_to_stop" ] || [ "$code" -eq 0 ] || [ "$code" -eq 78 ]; then exit "$code"; fi
    if [ "$code" -eq 2 ] && [ -t 2 ]; then exit 2; fi
    # A mistake is told, and the start tried again: an update may be under way.
    [ "$code" -ne 1 ] || script_can_be_read 2>/dev/null || say "$typing_mistake"
    if [ $((SECONDS - started)) -gt 600 ]; then pause_s=2; fi
    if [ $((SECONDS - started)) -lt 60 ] && [ -z "$env_checked" ]; then
        env_checked=1 # once: what a new env/ does not help, another one will not
        env_is_whole || make_env_anew
    fi
    say "the daemon ended with code $code; starting it again in $pause_s s"
    rest
done
