#!/bin/bash
# The daemon's uploads against a Ceph RADOS Gateway of Debian's packages: `sudo bench/ceph.sh [FOLDER]`, two minutes.
#
# One monitor, one OSD that keeps its objects in memory, one gateway, all on the loopback interface. What they write
# goes into a temporary folder; they are stopped and it is removed at the end. With FOLDER, the programs are those of
# another Debian in that folder (made by debootstrap, say), whose /tmp is used.
# Then bench/ceph.py plays the faults and keeps its table in docs/ceph.md.
# Needs root, and: apt-get install --no-install-recommends ceph-mon ceph-osd ceph-common radosgw openssl
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

root=${1:-}
in_root=(env)
if [ -n "$root" ]; then in_root=(chroot "$root"); fi
for program in ceph-mon ceph-osd radosgw radosgw-admin openssl; do
    "${in_root[@]}" /bin/sh -c "command -v $program" >/dev/null || {
        echo "bench/ceph.sh: no $program; apt-get install --no-install-recommends ceph-mon ceph-osd ceph-common radosgw openssl" >&2
        exit 1
    }
done

outside=$(mktemp -d "$root/tmp/guardianberry-ceph.XXXXXX")
folder=${outside#"$root"} # as the programs see it
pids=()
clean_up() {
    kill "${pids[@]}" 2>/dev/null || true
    for pid in "${pids[@]}"; do
        for _ in {1..50}; do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
        kill -KILL "$pid" 2>/dev/null || true
    done
    rm -rf "$outside"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

free_ports() {
    python3 -c 'import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(each.getsockname()[1] for each in sockets))'
}
read -r monitor_port http_port https_port < <(free_ports)
monitor=[v2:127.0.0.1:$monitor_port]

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost \
    -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout "$outside/key.pem" -out "$outside/ca.pem" 2>/dev/null
cat "$outside/key.pem" "$outside/ca.pem" >"$outside/gateway.pem"

cat >"$outside/ceph.conf" <<CONF
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon_host = $monitor
public_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
run_dir = $folder
admin_socket = $folder/\$name.asok
log_file = $folder/\$name.log
# One of each, and small.
mon_data = $folder/mon
osd_data = $folder/osd
osd_objectstore = memstore
memstore_device_bytes = 2147483648
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_data_avail_warn = 1
mon_data_avail_crit = 1
rgw_bucket_quota_ttl = 0
[client.rgw]
rgw_data = $folder
# With no authentication inside the cluster, a "secure" connection to the monitor (the gateway's default) is refused.
ms_mon_client_mode = crc secure
rgw_frontends = beast endpoint=127.0.0.1:$http_port ssl_endpoint=127.0.0.1:$https_port ssl_certificate=$folder/gateway.pem ssl_private_key=$folder/gateway.pem
CONF

start() { # a program that stays in the foreground
    "${in_root[@]}" "$@" --conf "$folder/ceph.conf" --foreground >>"$outside/output" 2>&1 &
    pids+=($!)
}
wait_for() { # WHAT COMMAND...: until the command succeeds
    local what=$1; shift
    for _ in {1..240}; do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.5
    done
    echo "bench/ceph.sh: $what does not come up; the end of its log:" >&2
    tail -n 20 "$outside"/output "$outside"/*.log >&2
    exit 1
}
ceph() { "${in_root[@]}" ceph --conf "$folder/ceph.conf" --connect-timeout 5 "$@"; }

mkdir "$outside/mon" "$outside/osd"
"${in_root[@]}" monmaptool --create --addv a "$monitor" --fsid "$(sed -n 's/^fsid = //p' "$outside/ceph.conf")" "$folder/monmap" >/dev/null
"${in_root[@]}" ceph-mon --conf "$folder/ceph.conf" --mkfs --id a --monmap "$folder/monmap" >>"$outside/output" 2>&1
start ceph-mon --id a
wait_for "the monitor" ceph status
ceph osd create >/dev/null
"${in_root[@]}" ceph-osd --conf "$folder/ceph.conf" --id 0 --mkfs >>"$outside/output" 2>&1
start ceph-osd --id 0
osd_is_up() { ceph osd stat | grep -q '1 up'; }
wait_for "the OSD" osd_is_up
start radosgw --name client.rgw
wait_for "the gateway" bash -c ": </dev/tcp/127.0.0.1/$http_port"

export no_proxy=127.0.0.1 NO_PROXY=127.0.0.1
env/bin/python -m bench.ceph --http "http://127.0.0.1:$http_port" --https "https://127.0.0.1:$https_port" \
    --ca "$outside/ca.pem" --admin "${in_root[@]}" radosgw-admin --conf "$folder/ceph.conf" &
pids+=($!)
wait $!
