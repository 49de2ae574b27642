"""How late is an alert where addresses or a name server are dead? From its offer to the uploader to S3's confirmation.

    python -m bench.broken_network [--rounds 5] [--alerts 5]

Each round of each network is a process of its own, so that nothing is known of the server at its first alert, which is
offered at once. botocore's descriptions of AWS are read before, as a daemon has done long before its first alert: on a
busy machine that takes seconds, whatever the network. The networks take turns. Dead addresses are sockets on loopback
that answer nothing; the name has them first, and the S3 stand-in's address last. The name servers need root: they are
left out without it.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.report import ROOT, busy_share, spread, table, write_section
from guardianberry.upload.s3 import S3
from guardianberry.upload.uploader import Uploader
from tests.broken_network import NAME_SERVER, SILENT_NAME_SERVER, BlackHole, in_own_namespace, use_name_servers
from tests.s3_server import environment
from tests.upload_rig import jpeg

# By network: the dead addresses before the good one, which is 127.0.0.1.
DEAD = {
    "healthy": (),
    "1 dead IPv6 address": ("::1",),
    "2 dead IPv6 addresses": ("::1",) * 2,
    "4 dead IPv6 addresses": ("::1",) * 4,
    "4 dead addresses, all IPv4 as the good one": ("127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"),
}
NAME_SERVERS = {
    "healthy, with a name server": (NAME_SERVER,),
    "the first name server is dead": (SILENT_NAME_SERVER, NAME_SERVER),
}
HEALTHY = dict.fromkeys(DEAD, "healthy") | dict.fromkeys(NAME_SERVERS, "healthy, with a name server")
BAR_FIRST_S, BAR_LATER_BY_S = 3.0, 1.0
LIMIT_S = 60.0
PAUSE_S = 0.3  # between two alerts
JPEG_BYTES = 60_000


def resolve_localhost_to(dead: Sequence[str], port: int) -> list[BlackHole]:
    """Dead addresses with ports of their own: loopback has a single IPv6 address. They are dead until closed."""
    real, holes = socket.getaddrinfo, [BlackHole(address) for address in dead]
    families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in dead]
    entries: list[Any] = [
        (family, socket.SOCK_STREAM, 6, "", (address, hole.port))
        for family, address, hole in zip(families, dead, holes, strict=True)
    ]
    entries.append((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)))

    def look_up(host: str, *rest: Any, **more: Any) -> Any:
        return entries if host == "localhost" else real(host, *rest, **more)

    socket.getaddrinfo = look_up  # type: ignore[assignment]
    return holes


def latencies_s(folder: Path, alerts: int) -> list[float]:
    """Of alerts one after the other, the first one right after the uploader's start."""
    images, videos = folder / "images", folder / "videos"
    images.mkdir()
    videos.mkdir()
    uploader = Uploader(
        images_folder=images,
        videos_folder=videos,
        images_bucket="guardianberry.images",
        videos_bucket="guardianberry.videos",
        server_side_encryption="AES256",
        rpi_serial_no="10000000deadbeef",
        video_metadata={},
    )
    uploader.start()
    found = []
    for number in range(alerts):
        stored, begun_s = threading.Event(), time.monotonic()
        name = f"{int(time.time()) + number}-81-640-480.jpg"
        uploader.offer_alert(name, jpeg(JPEG_BYTES), frame_arrival_s=begun_s, stored=stored.set)
        if not stored.wait(LIMIT_S):
            break
        found.append(time.monotonic() - begun_s)
        time.sleep(PAUSE_S)
    uploader.stop(0)
    return found


def run_one(network: str, alerts: int) -> None:
    """In a process of its own: prints the latencies, in seconds, as JSON."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if network in NAME_SERVERS:
            use_name_servers(folder, "127.0.0.1", *NAME_SERVERS[network])
        command = [sys.executable, str(ROOT / "demo" / "s3_stand_in.py"), str(folder / "s3")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as s3:
            assert s3.stdout is not None
            port = int(s3.stdout.readline())
            holes = resolve_localhost_to(DEAD[network], port) if network in DEAD else []
            os.environ |= environment(f"http://127.0.0.1:{port}")
            S3(server_side_encryption=None).prepare()
            os.environ["AWS_ENDPOINT_URL_S3"] = f"http://localhost:{port}"
            found = latencies_s(folder, alerts)
            for hole in holes:
                hole.close()
            s3.terminate()
        stored = len(list((folder / "s3" / "guardianberry.images").glob("*.jpg")))
        if stored != len(found):
            raise SystemExit(f"{len(found)} alerts were confirmed, and {stored} are in the bucket")
        print(json.dumps(found))


def run(network: str, alerts: int) -> list[float]:
    """Raises RuntimeError with what the process said."""
    arguments = ["-m", "bench.broken_network", "--one", network, "--alerts", str(alerts)]
    command = in_own_namespace(*arguments) if network in NAME_SERVERS else [sys.executable, *arguments]
    env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if ran.returncode != 0:
        raise RuntimeError(ran.stderr.strip().splitlines()[-1] if ran.stderr.strip() else f"exit {ran.returncode}")
    return list(map(float, json.loads(ran.stdout)))


def row(name: str, rounds: list[list[float]], healthy: list[list[float]], alerts: int) -> list[str]:
    first = [each[0] for each in rounds if each]
    following = [seconds for each in rounds for seconds in each[1:]]
    missed = alerts * len(rounds) - len(first) - len(following)
    if not first or not following:
        return [name, str(missed), "", "", "", "**no**"]
    usual_s = statistics.median(seconds for each in healthy for seconds in each[1:])
    later_by_s = max(following) - usual_s
    holds = missed == 0 and max(first) <= BAR_FIRST_S and later_by_s <= BAR_LATER_BY_S
    return [name, str(missed), spread(first), spread(following), f"{later_by_s:.2f}", "yes" if holds else "**no**"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="for each network")
    parser.add_argument("--alerts", type=int, default=5, help="in each round")
    parser.add_argument("--one", choices=[*DEAD, *NAME_SERVERS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run_one(options.one, options.alerts)
        return
    busy, notes = busy_share(), []
    names = list(DEAD)
    if os.geteuid() != 0:
        notes = ["Without root there is no name server of one's own: that network is left out."]
    else:
        try:
            for name in NAME_SERVERS:
                run(name, 1)
            names += NAME_SERVERS
        except RuntimeError as error:
            notes = [f"A name server of one's own is not possible here, that network is left out: {error}"]
    found: dict[str, list[list[float]]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            found[name].append(run(name, options.alerts))
    rows = [row(name, found[name], found[HEALTHY[name]], options.alerts) for name in names]
    head = ["network", "missed", "first alert, s", "following alerts, s", "latest over the healthy median, s", "holds"]
    lines = [
        f"{options.rounds} processes a network, {options.alerts} alerts each; "
        f"{100 * busy:.0f} % of the machine was busy with other things before. Median, and extremes in brackets.",
        f"The bar: the first alert within {BAR_FIRST_S:.0f} s, every following one within {BAR_LATER_BY_S:.0f} s of "
        "the healthy median.",
        *notes,
        "",
        *table(head, rows),
    ]
    write_section("broken_network", lines)


if __name__ == "__main__":
    main()
