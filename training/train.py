"""Trains the person detector.

    python -m training.train --shards ../shared/train/people-*.tar --teacher ../shared/weights/yolov5n.pt

SIGINT or SIGTERM stops it after the batch in hand; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from training import anchors
from training.batches import Loader, plan_round
from training.data import Dataset
from training.loss import LossParts
from training.plot import draw_curves
from training.team import Team, lead
from training.trainer import WHOLE_RATE, Trainer, half_weights, save
from training.validation import fitness, validate

log = logging.getLogger(__name__)

ANCHOR_CHECK_PX = 320
SAVE_EVERY_S = 300.0


class ProgressBar:
    """A bar on a terminal; in a log file a line a minute."""

    def __init__(self) -> None:
        self._last_s, self._is_terminal = 0.0, sys.stderr.isatty()

    def show(self, trainer: Trainer, parts: LossParts, images_per_s: float) -> None:
        now_s = time.monotonic()
        if now_s - self._last_s < (0.5 if self._is_terminal else 60):
            return
        self._last_s = now_s
        share = trainer.batches_in_round / trainer.round_batches
        bar = "#" * int(share * 30)
        line = (
            f"round {trainer.round + 1} [{bar:<30}] {share:4.0%} of it, {trainer.progress:4.0%} of all, "
            f"{images_per_s:.0f} images/s, box {parts.box:.3f} obj {parts.objectness:.4f} "
            f"teacher {parts.teacher_box:.3f} features {parts.features:.3f}"
        )
        sys.stderr.write(f"\r{line}\033[K" if self._is_terminal else f"{line}\n")
        sys.stderr.flush()


class Run:
    """One run's folder, data and trainer; `train` goes on until the schedule ends or `stop` is set."""

    def __init__(self, args: argparse.Namespace, team: Team) -> None:
        self.folder: Path = args.run
        self.team = team
        self.stop = threading.Event()
        self.dataset = Dataset(args.shards, args.cache)
        self.train_indexes, self.held_out = self.dataset.split()
        self.loader = Loader(self.dataset, self.train_indexes, seed=args.seed, workers=args.workers)
        sizes = anchors.box_sizes(self.dataset, self.train_indexes, ANCHOR_CHECK_PX)
        self.trainer = Trainer(
            *(args.teacher, anchors.choose(sizes)),
            seed=args.seed, device=torch.device(args.device), epochs=args.epochs, minutes=args.minutes,
            rounds_per_epoch=args.rounds, team=team, start=args.start, whole_rate=args.rate,
        )  # fmt: skip
        last = self.folder / "last.pt"
        if last.exists():
            self.trainer.load_state(torch.load(last, map_location=self.trainer.device, weights_only=True))
            log.info("going on after %d batches", self.trainer.batches_done)

    def train(self) -> None:
        self._last_s = time.monotonic()
        count, held_out = len(self.train_indexes), len(self.held_out)
        log.info("%d images to train on, %d held out, on %s", count, held_out, self.trainer.device)
        try:
            while self.trainer.progress < 1:
                losses = self._rest_of_round()
                if self.trainer.stopping:
                    self._save()
                    log.info("stopped; the same command goes on from here")
                    return
                self._finish_round(losses)
        finally:
            self.loader.close()

    def _save(self) -> None:
        if self.team.leads:
            save(self.folder / "last.pt", self.trainer.state())

    def _rest_of_round(self) -> dict[str, float]:
        """Trains until the round, the schedule or the run ends; returns the mean of each part of the loss."""
        trainer = self.trainer
        if trainer.batches_in_round == 0:
            trainer.round_start_progress = trainer.progress
        start = trainer.round_start_progress
        planned = plan_round(
            self.train_indexes,
            seed=trainer.seed,
            round_number=trainer.round,
            rounds_per_epoch=trainer.rounds_per_epoch,
            progress=start,
        )
        trainer.round_batches = len(planned)
        bar, sums, images, batches = ProgressBar(), np.zeros(len(LossParts._fields) - 1), 0, 0
        begun_s = saved_s = time.monotonic()
        ours = [batch._replace(indexes=batch.indexes[self.team.rank :: self.team.size]) for batch in planned]
        for picture in self.loader.batches(trainer.round, ours[trainer.batches_in_round :]):
            now_s = time.monotonic()
            parts = trainer.step(picture, spent_s=now_s - self._last_s, stop=self.stop.is_set())
            self._last_s = now_s
            if not math.isfinite(parts.total.item()):
                raise SystemExit("The loss is no number any more: go on from last.pt with a lower rate.")
            sums, images, batches = sums + parts[1:], images + len(picture.images) * self.team.size, batches + 1
            if self.team.leads:
                bar.show(trainer, parts, images / (time.monotonic() - begun_s))
            if now_s - saved_s > SAVE_EVERY_S:
                self._save()
                saved_s = now_s
            if trainer.stopping or trainer.progress >= 1:
                break
        return dict(zip(LossParts._fields[1:], (sums / max(batches, 1)).tolist(), strict=True))

    def _finish_round(self, losses: dict[str, float]) -> None:
        """Validate, write the line of metrics, keep the best weights, and move on to the next round."""
        trainer = self.trainer
        trainer.round, trainer.batches_in_round = trainer.round + 1, 0
        if not self.team.leads:
            return
        metrics = validate(trainer.average.model, self.dataset, self.held_out, trainer.device)
        rate = trainer.optimizer.param_groups[0]["lr"]
        epoch = trainer.round / trainer.rounds_per_epoch
        row = {"epoch": epoch, "progress": trainer.progress, "minutes": trainer.elapsed_s / 60, "rate": rate}
        row |= losses | metrics._asdict()
        trainer.history.append(row)
        log.info("%s", "  ".join(f"{name} {value:.4g}" for name, value in row.items()))
        (self.folder / "history.json").write_text(json.dumps(trainer.history, indent=1))
        draw_curves(trainer.history, self.folder / "curve.png")
        if fitness(metrics) > trainer.best_fitness:
            trainer.best_fitness = fitness(metrics)
            save(self.folder / "best.pt", half_weights(trainer.average.model))
        self._save()


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.train", description="Trains the person detector.")
    add = parser.add_argument
    add("--shards", type=Path, nargs="+", required=True, help="tars of images and labels")
    add("--run", type=Path, default=Path("training/runs/default"), help="folder to write to and to go on from")
    add("--cache", type=Path, default=Path("training/runs/cache"), help="folder for decoded images (7 GB)")
    add("--teacher", type=Path, help="an official YOLOv5 checkpoint; without it labels alone teach")
    add("--start", type=Path, help="best.pt of an earlier run, to go on from in a new schedule")
    add("--rate", type=float, default=WHOLE_RATE, help="the whole network's learning rate at its peak")
    add("--epochs", type=int, default=60, help="length of the schedule")
    add("--minutes", type=float, default=0, help="length of the schedule as time, in place of --epochs")
    add("--rounds", type=int, default=1, help="in an epoch; after each the network is measured and saved")
    add("--processes", type=int, default=0, help="that share each batch; 0: one a CPU core, or one with a GPU")
    add("--seed", type=int, default=1)
    add("--workers", type=int, default=1, help="loader processes; 1 for a CPU, about 8 keep a GPU busy")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


def member(args: argparse.Namespace, team: Team) -> None:
    """What each process of the team does. Signals are for the leader; it tells the others between two batches."""
    logging.basicConfig(level=logging.INFO if team.leads else logging.WARNING, format="%(asctime)s %(message)s")
    cv2.setNumThreads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    run = Run(args, team)
    if team.leads:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: run.stop.set())
    run.train()


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    args.run.mkdir(parents=True, exist_ok=True)
    Dataset(args.shards, args.cache)  # the cache is made here, once, and not by each process at a time
    on_gpu = args.device.startswith("cuda")
    lead(member, args, args.processes or (1 if on_gpu else len(os.sched_getaffinity(0))))


if __name__ == "__main__":
    main()
