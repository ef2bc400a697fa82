"""Whose transcoder is best: ours beside other packages', on the same rows, at one L0.

    python benchmarks/bench_quality.py [--peers NAME=/path/to/venv/bin/python ...] [--seeds 0,1]
        [--model NAME --data FORM --images N --held-out N] [--n-features F --k K] [--epochs N]
        [--lr RATE] [--only NAME ...] [--again NAME ...] [--out FOLDER]

Every contestant trains in a process of its own environment, one thread, on the batches of our
trainer; all are measured by our code on images that nobody trained on. A contestant's result is a
file in --out: killed, the race goes on where it was. `--again ours` runs those anew and keeps the
others. Exits 1 where a figure was made under load, 2 for a peer that cannot run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from bench_peers import interpreters_of
from conversions import converted
from measure import LoadWatch, finish
from peers import PEERS
from quality_measure import HeldOut
from quality_rows import groups_of, settings_of, write_batches, write_held_out
from quality_table import print_tables
from quality_task import RUN_FILE, Task
from quality_train import CONTESTANTS
from safetensors.torch import load_file

from vit_clt import CrossLayerTranscoder, TrainConfig, load_data
from vit_clt.analysis.auditing.ridge import ridge_transcoder
from vit_clt.data.images import ImageData
from vit_clt.hooks import HookedViT
from vit_clt.readouts.choose import choose_classifier
from vit_clt.training.store import ActivationStore
from vit_clt.transcoder.train_config import used_warmup

SCRIPT = Path(__file__).with_name("quality_train.py")
RIDGE = "ridge"
"""A dense reference: y_l from x_0, ..., x_l. It has no L0 and is no contestant."""


@dataclass(frozen=True)
class Race:
    """One teacher, its images, and the shape of the transcoders."""

    options: argparse.Namespace
    folder: Path
    vit: HookedViT
    train: ImageData
    held_out: HeldOut

    @classmethod
    def prepared(cls, options: argparse.Namespace) -> Race:
        """Load the teacher, and write the held-out rows where they are missing."""
        vit = HookedViT.load(options.model)
        train = load_data(options.data, vit=vit, split="train", limit=options.images)
        data = load_data(options.data, vit=vit, limit=options.held_out)
        path = options.out / "held_out.safetensors"
        options.out.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_held_out(path, vit, data)
        rows = load_file(path)
        classifier = choose_classifier(vit, data, lambda: train)
        held_out = HeldOut(vit, data, classifier, rows["x"], rows["y"], groups_of(vit, len(data)))
        return cls(options, options.out, vit, train, held_out)

    def settings(self, seed: int) -> TrainConfig:
        """The settings of our trainer."""
        options = self.options
        settings = settings_of(
            options.preset, options.epochs, seed, len(self.train), self.vit.cfg.n_tokens
        )
        return replace(settings, lr=options.lr or settings.lr)

    def batches(self, seed: int) -> Path:
        """The file with the batches of a seed, written where it is missing."""
        path = self.folder / f"batches-{seed}.safetensors"
        if not path.exists():
            store = ActivationStore(self.folder / "store", self.vit, self.train, progress=False)
            write_batches(path, self.vit, store, len(self.train), self.settings(seed))
        return path

    def task(self, seed: int, out: Path) -> Task:
        """What a contestant is given."""
        options, settings = self.options, self.settings(seed)
        steps = settings.n_steps(len(self.train), self.vit.cfg.n_tokens)
        return Task(
            batches=str(self.batches(seed)),
            held_out=str(self.folder / "held_out.safetensors"),
            out=str(out),
            rows=settings.batch_size,
            seed=seed,
            features=options.n_features,
            k=options.k,
            lr=float(settings.lr),
            warmup=max(1, used_warmup(settings.warmup_steps, steps)),
            decay=float(settings.decay_fraction),
            ours={
                "model": options.model,
                "data": options.data,
                "images": len(self.train),
                "cache": str(self.folder / "store"),
                "settings": asdict(settings),
            },
        )

    def run(self, name: str, seed: int, interpreter: str) -> dict[str, Any]:
        """Train a contestant in its process, and measure it."""
        if name == RIDGE:
            began = time.process_time()
            fit = ridge_transcoder(self.vit, self.train)
            marks = [{"step": 1, "cpu": time.process_time() - began}]
            return {"curve": marks, **self.held_out.measured(fit.clt)}
        folder = self.folder / slug(name, seed)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        task = self.task(seed, folder)
        command = [interpreter, str(SCRIPT), name, json.dumps(asdict(task))]
        with (folder / "log.txt").open("w") as log:
            code = subprocess.run(command, stdout=log, stderr=log).returncode
        if code:
            words = (folder / "log.txt").read_text().strip().splitlines() or ["it said nothing"]
            raise RuntimeError(f"{name}: {interpreter} ended with code {code}: {words[-1]}")
        found = json.loads((folder / RUN_FILE).read_text())
        package = name.split(",")[0]
        if package == "ours":
            clt, error = CrossLayerTranscoder.from_pretrained(folder / "clt").eval(), 0.0
        else:
            clt, error = converted(folder, package, task.k)
        curve = self.held_out.curve(folder, found.pop("marks"))
        # outputs and checkpoints are large; the weights stay
        for path in [*folder.glob("outputs-*"), folder / "checkpoints", folder / "trainer"]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        rate = {"lr": task.lr, "warmup": task.warmup, "decay": task.decay}
        measured = self.held_out.measured(clt)
        return {**found, "our_rate": rate, "conversion": error, "curve": curve, **measured}


def slug(name: str, seed: int) -> str:
    """The name of the files of a contestant and seed."""
    return f"{name.replace(', ', '-').replace(' ', '_')}-{seed}"


def entries(
    options: argparse.Namespace, interpreters: dict[str, str]
) -> Iterator[tuple[str, int, str]]:
    """Contestants with a seed and the interpreter that they run in."""
    for seed in options.seeds:
        for name in CONTESTANTS:
            package = name.split(",")[0]
            interpreter = sys.executable if package == "ours" else interpreters.get(package)
            if interpreter is not None and (not options.only or name in options.only):
                yield name, seed, interpreter
    if not options.only or RIDGE in options.only:
        yield RIDGE, options.seeds[0], sys.executable


def facts(race: Race) -> dict[str, Any]:
    """What must be the same for results to stand in one table."""
    options = race.options
    names = ("model", "data", "images", "held_out", "n_features", "k")
    settings = race.settings(0)
    steps = settings.n_steps(len(race.train), race.vit.cfg.n_tokens)
    shape = {"rows_a_step": settings.batch_size, "steps": steps}
    return {name: getattr(options, name) for name in names} | shape


def results(race: Race, interpreters: dict[str, str]) -> list[dict[str, Any]]:
    """Run what has no result yet; the results of all contestants of this race."""
    about = race.folder / "race.json"
    if about.exists() and json.loads(about.read_text()) != facts(race):
        raise RuntimeError(f"{race.folder} holds another race, {about}; name another --out")
    about.write_text(json.dumps(facts(race), indent=1) + "\n")
    for name, seed, interpreter in entries(race.options, interpreters):
        path = race.folder / f"{slug(name, seed)}.json"
        if path.exists() and name not in race.options.again:
            continue
        print(f"{name}, seed {seed} ...", flush=True)
        watch = LoadWatch()
        found = race.run(name, seed, interpreter)
        record = {"name": name, "seed": seed, **found, "load": watch.report()}
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(record, indent=1) + "\n")
        unfinished.replace(path)
    order = [*CONTESTANTS, RIDGE]
    records = [json.loads(path.read_text()) for path in race.folder.glob("*-[0-9]*.json")]
    return sorted(records, key=lambda each: (order.index(each["name"]), each["seed"]))


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", nargs="*", default=[], metavar="NAME=PYTHON")
    parser.add_argument(
        "--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1]
    )
    parser.add_argument("--model", default="adding")
    parser.add_argument("--data", default="adding")
    parser.add_argument("--images", type=int, default=3_072, help="trained on")
    parser.add_argument("--held-out", type=int, default=1_000, help="test images measured on")
    parser.add_argument("--n-features", type=int, default=512)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--preset", default="demo", help="whose settings are ours")
    parser.add_argument("--lr", type=float, help="our learning rate, instead of the preset's")
    parser.add_argument("--epochs", type=int, default=3, help="instead of the preset's")
    choices = [*CONTESTANTS, RIDGE]
    parser.add_argument("--only", nargs="+", default=[], choices=choices, metavar="NAME")
    parser.add_argument("--again", nargs="+", default=[], choices=choices, metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("out/quality_race/adding"))
    options = parser.parse_args(arguments)
    try:
        interpreters = interpreters_of(options.peers)
    except ValueError as error:
        parser.error(str(error))
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    for name, peer in PEERS.items():
        if name not in interpreters:
            print(peer.skipped(name))
    watch = LoadWatch()
    try:
        race = Race.prepared(options)
        records = results(race, interpreters)
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    if not records:
        parser.error("--only: nobody of these has an interpreter or a result")
    print_tables(records)
    load = max(max(each["load"]["load_start"], each["load"]["load_end"]) for each in records)
    print(f"\nload a core, others', at most, while contestants ran: {load:.2f}")
    finish({"race": facts(race), "records": records}, watch, options.out / "results.json")


if __name__ == "__main__":
    main()
