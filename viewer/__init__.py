"""A page to look at: the events of both buckets, fetched to the owner's own computer and shown in a browser.

    python3 -m viewer [--profile NAME] [--days N] [--folder FOLDER]

`objects` judges what strangers may have written, `stores` reads buckets, `archive` is the local folder, `fetching`
fills it, `parts` joins what a camera could not finish, `events` pairs, `page` writes. Nothing here imports
guardianberry: boto3 and a progress bar are all that it needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from viewer.archive import Archive
from viewer.events import Event, events_and_gaps
from viewer.fetching import Progress, Report, fetch
from viewer.page import write_page
from viewer.stores import FolderStore, Store

PRE_ROLL_S = 3.0  # the script's default


def show(
    store: Store,
    folder: Path,
    *,
    days: float,
    pre_roll_s: float = PRE_ROLL_S,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.time,
) -> tuple[Path, list[Event], Report]:
    """Fetch what is new in `store` into `folder` and write the page there: its path, its events, and what was fetched.

    Raises StoreError and ArchiveError, whose texts say what to do. What was fetched before an error is kept.
    """
    archive = Archive(folder)
    now_s = int(clock())
    try:
        report = fetch(store, archive, days=days, now_s=now_s, progress=progress)
        events, gaps = events_and_gaps(archive, now_s=now_s)
    finally:
        archive.save_index()
    return write_page(folder, events, gaps, now_s=now_s, pre_roll_s=pre_roll_s), events, report


def show_folder(
    objects: Path, folder: Path, *, images_bucket: str, videos_bucket: str, pre_roll_s: float = PRE_ROLL_S
) -> Path:
    """The page of objects that demo/s3_stand_in.py keeps as files in `objects`; its path."""
    store = FolderStore(objects, images_bucket=images_bucket, videos_bucket=videos_bucket)
    return show(store, folder, days=36500, pre_roll_s=pre_roll_s)[0]
