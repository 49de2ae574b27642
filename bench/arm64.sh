#!/bin/bash
# The Pi's userland, emulated: `sudo bench/arm64.sh FOLDER [SUITE...]`, about an hour each for bookworm and trixie.
#
# Debian for arm64 is set up in FOLDER (5 GB, on a disk), and qemu-user runs its programs on the cores of a Zero 2 W, a
# Pi 4 and a Pi 5. There an ordinary user does what the README says for a Pi, with the commit that is checked out here
# and the demo's film slowed; then come the conversion of the weights, the detector and some tests. bench/arm64.py
# compares with this machine and puts a table into docs/arm64.md. Nothing here says how fast a Pi is.
# What is done is not done again when the script is started anew with the same FOLDER. The system of a suite is removed
# when all of it is done.
#
# Needs root, x86-64, env/ with requirements-dev.txt, a kernel with binfmt_misc, and:
#   apt-get install --no-install-recommends debootstrap qemu-user-static gcc libc6-dev
# MIRROR in the environment: where Debian's packages come from; else from where this Debian has its own.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

# Tests of what computes, which depend on neither time nor servers and take some seconds on x86-64.
tests=(tests/test_{alert,camera_modes,clock,constants,filenames,finder,h264_hostile,recorder,stationary}.py)

[ $# -ge 1 ] || { sed -n '2,/^set /{s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
for program in debootstrap qemu-aarch64-static gcc unshare; do
    command -v "$program" >/dev/null || { echo "bench/arm64.sh: no $program; see the top of this script" >&2; exit 1; }
done
mkdir -p "$1"
folder=$(readlink -f "$1")
shift
suites=("$@")
[ ${#suites[@]} -gt 0 ] || suites=(bookworm trixie)
# shellcheck disable=SC2016 # apt's own variable
mirror=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Label: Debian' 'Identifier: Packages' | head -n 1)}

# ---- arm64 programs are run by qemu-user, as the core that /etc/qemu-cpu of their system names. Not by QEMU_CPU: the
# daemon's children get few variables.
gcc -O2 -static -o "$folder/start-qemu" -x c - <<'C'
#include <stdio.h>
#include <unistd.h>

/* The kernel gives: this program, the path of the arm64 program, its argv[0], its arguments. */
int main(int count, char **words) {
    char cpu[32] = "";
    char *command[count + 4];
    FILE *file = fopen("/etc/qemu-cpu", "r");
    if (count < 3 || !file || fscanf(file, "%31s", cpu) != 1)
        return 126;
    fclose(file);
    char *first[] = {"qemu-aarch64-static", "-cpu", cpu, "-0", words[2], words[1]};
    for (int i = 0; i < 6; i++)
        command[i] = first[i];
    for (int i = 3; i <= count; i++)
        command[i + 3] = words[i];
    execv("/usr/bin/qemu-aarch64-static", command);
    return 126;
}
C
formats=/proc/sys/fs/binfmt_misc mounted='' registered=''
clean_up() {
    [ -z "$registered" ] || echo -1 >"$formats/guardianberry-arm64"
    [ -z "$mounted" ] || umount "$formats"
}
trap clean_up EXIT
trap 'exit 130' INT TERM
[ -e "$formats/register" ] || { mount -t binfmt_misc binfmt_misc "$formats"; mounted=1; }
elf='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
printf '%s' ":guardianberry-arm64:M::$elf:$mask:$folder/start-qemu:PF" >"$formats/register"
registered=1

# ---- Commands in the emulated system

# How this machine reaches the package index.
handed_on=()
for name in http_proxy https_proxy no_proxy PIP_CERT PIP_INDEX_URL PIP_DEFAULT_TIMEOUT; do
    [ -z "${!name:-}" ] || handed_on+=("$name=${!name}")
done

# USER-ID CPU COMMAND: with mounts and processes of its own, all of which end with it.
in_guest() {
    local home=/root
    [ "$1" = 0 ] || home=/home/pi
    echo "$2" >"$root/etc/qemu-cpu"
    # shellcheck disable=SC2016 # for the inner shell
    unshare --mount --pid --fork --kill-child bash -c '
        mount -t proc proc "$1/proc" && mount --rbind /sys "$1/sys" && mount --rbind /dev "$1/dev" &&
            mount -t tmpfs -o mode=1777 tmpfs "$1/dev/shm" || exit
        chroot --userspec="$2:$2" --groups="$2,44" "$1" /usr/bin/env -i "${@:4}" /bin/bash -c "$3"
        exit $?' - "$root" "$1" "$3" HOME=$home PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin LANG=C.UTF-8 \
        "${handed_on[@]}" </dev/null
}
as_root() { in_guest 0 cortex-a72 "DEBIAN_FRONTEND=noninteractive; export DEBIAN_FRONTEND; $1"; }
as_pi() { in_guest 1000 "${2:-cortex-a72}" "set -e; cd ~/guardianberry; $1"; }

# NAME COMMAND...: unless it is done; what it says is kept. The command must not rely on errexit.
once() {
    local name=$1
    shift
    if [ -e "$state/done/$name" ]; then return; fi
    printf '%(%T)T %s: %s\n' -1 "$suite" "$name" >&2
    "$@" >"$state/said/$name" 2>&1 || {
        echo "bench/arm64.sh: $suite: $name failed with code $?; the end of $state/said/$name:" >&2
        tail -n 30 "$state/said/$name" >&2
        exit 1
    }
    touch "$state/done/$name"
}

# ---- The steps

make_system() {
    rm -rf --one-file-system "$root"
    debootstrap --foreign --arch=arm64 --variant=minbase --include=ca-certificates "$suite" "$root" "$mirror" &&
        cp /usr/bin/qemu-aarch64-static "$root/usr/bin/" &&
        as_root "/debootstrap/debootstrap --second-stage" &&
        cp /etc/resolv.conf /etc/hosts "$root/etc/" &&
        cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/" &&
        as_root "useradd --uid 1000 --create-home --groups video --shell /bin/bash pi"
}
clone() {
    rm -rf "$root/srv/guardianberry.git" "$root/home/pi/guardianberry" &&
        git clone --quiet --bare . "$root/srv/guardianberry.git" &&
        chown -R 1000:1000 "$root/srv/guardianberry.git" &&
        in_guest 1000 cortex-a72 "cd && git clone /srv/guardianberry.git" &&
        install -o 1000 -g 1000 -t "$root/home/pi" "$folder/film.mp4" &&
        install -o 1000 -g 1000 -t "$root/home/pi/guardianberry/models" "$folder/models/yolov5n.pt"
}
convert() { # on the core $1
    as_pi "env/bin/python -m guardianberry.convert models/yolov5n.pt ~/$1.xml models/yolov5n-night.npz" "$1" &&
        cp "$root/home/pi/$1".{xml,bin} "$state/"
}
find_people() { as_pi "env/bin/python -m bench.arm64 people ~/$1.xml" "$1"; }

prepare() { env/bin/python -m bench.arm64 prepare "$folder"; }

for suite in "${suites[@]}"; do
    root=$folder/$suite-root state=$folder/$suite
    mkdir -p "$state/done" "$state/said"
    once prepare prepare
    once system make_system
    once apt as_root "apt-get update && apt-get install --yes --no-install-recommends python3-venv git"
    once clone clone
    once demo as_pi "cd; guardianberry/launch.sh --demo=film.mp4"
    once size as_pi "echo \$(du -s --block-size=10MB env | awk '{ print \$1 / 100 }') GB, \$(env/bin/pip list 2>/dev/null | tail -n +3 | wc -l) packages"
    once versions as_pi "cat /etc/debian_version; env/bin/python --version; env/bin/pip --version | cut -d ' ' -f 2; /usr/bin/qemu-aarch64-static --version | head -n 1"
    once check as_pi "PATH=\$PWD/env/bin:\$PWD/demo:\$PATH ./launch.sh --check || true"
    for cpu in cortex-a72 cortex-a53 cortex-a76; do
        once "convert-$cpu" convert "$cpu"
        once "people-$cpu" find_people "$cpu"
    done
    once tests-set-up as_pi "grep -E '^(pytest|hypothesis)==' requirements-dev.txt >~/tests.txt; env/bin/pip install --quiet --no-cache-dir -r ~/tests.txt"
    # CI=true: without Hypothesis's time limit for each example.
    once tests as_pi "CI=true timeout 3600 env/bin/python -m pytest -q -p no:cacheprovider -m 'not slow' ${tests[*]} || true"
    env/bin/python -m bench.arm64 report "$suite" "$folder"
    rm -rf --one-file-system "$root"
done
