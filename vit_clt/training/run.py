"""A training run: its state, one step of it, and how it goes on from a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from vit_clt.data.images import ImageData
from vit_clt.errors import InputError, Stopped
from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.hooks.rows import TokenRows
from vit_clt.progress import Progress
from vit_clt.seeding import seeded_globally
from vit_clt.training.batches import (
    ActivationReader,
    GroupActivations,
    Stopwatch,
    TokenBatch,
    epoch_batches,
    joined,
)
from vit_clt.training.checkpoints import Checkpoint, Checkpoints
from vit_clt.training.engine import (
    Engine,
    is_sharded,
    model_tensors,
    optimiser_tensors,
    put_model,
    restore,
)
from vit_clt.training.interventions import InterventionReader
from vit_clt.training.objective import Activity, Objective, learning_rate
from vit_clt.training.order import ShardPlan, held_out_images, in_groups, seeded
from vit_clt.training.replaced import ReplacedReader, StandIn, image_batches
from vit_clt.training.start import Moments, moments, start_
from vit_clt.training.step import Stepper, VarianceSums
from vit_clt.transcoder.config import CLTConfig
from vit_clt.transcoder.model import CrossLayerTranscoder
from vit_clt.transcoder.train_config import TrainConfig

Log = Callable[[dict[str, Any]], None]
Result = TypeVar("Result")


class Run:
    """The state of a run and how it goes on.

    Args:
        vit: the teacher.
        data: the images, those held out included.
        reader: reads its activations.
        config: the CLT to be trained.
        settings: every "auto" and None decided.
        engine: device, processes and precision.
        stopwatch: the one that `reader` counts its time with.
        checkpoints: where checkpoints go; None writes none.
        on_log: called with each record.
        facts: JSON values that a checkpoint records besides the state of the run.
        checkpoint: the checkpoint to go on from; None starts at step 0.
    """

    def __init__(
        self,
        vit: HookedViT,
        data: ImageData,
        reader: ActivationReader,
        config: CLTConfig,
        settings: TrainConfig,
        engine: Engine,
        stopwatch: Stopwatch,
        *,
        checkpoints: Checkpoints | None,
        on_log: Log | None,
        facts: Mapping[str, Any],
        checkpoint: Checkpoint | None,
    ):
        self.vit, self.config, self.settings, self.engine = vit, config, settings, engine
        self.data, self.reader, self.stopwatch = data, reader, stopwatch
        self.checkpoints, self.on_log, self.facts = checkpoints, on_log, facts
        self.held_out, self.images = held_out_images(settings, len(data))
        self.steps_per_epoch = self._plans(0)[0].n_batches
        self.total = self.steps_per_epoch * settings.n_epochs(len(data), vit.cfg.n_tokens)
        self.first_replaced = self.total - round(settings.stream_share * self.total)
        with seeded_globally(settings.seed):
            with_teacher = replace(config, teacher=vit.identity())
            self.clt = CrossLayerTranscoder(with_teacher, backend=settings.backend).to(
                engine.device
            )
        self.objective, self.optimiser = engine.prepare(Objective(self.clt, settings))
        shape = config.n_layers, config.n_features, config.d_model
        self.stepper = Stepper(self.objective, self.optimiser, settings, engine, shape)
        self.lr = learning_rate(settings, self.total)
        self.schedule = config.sparsifier.schedule(settings.sparsity, self.total)
        rows = len(self.images) * vit.cfg.n_tokens
        self.activity = Activity(
            (config.n_layers, config.n_features), settings.dead_tokens or rows, engine.device
        )
        self.scales: tuple[Tensor, Tensor] | None = None
        self.cls_weights: Tensor | None = None
        self.step, self.seconds, self.rows = 0, 0.0, 0
        self.saved_step: int | None = None
        if checkpoint is not None:
            self._load(checkpoint)

    # ---- one step ---------------------------------------------------------------------------

    def train_on(self, batch: TokenBatch, logging: bool) -> dict[str, Any]:
        """Take one step. Returns the step's record, which is empty unless `logging`."""
        settings = self.settings
        assert self.cls_weights is not None
        self._set_sparsifier()
        rebuilds = settings.sparsity.auxiliary_weight is not None
        dead = self.activity.dead() if rebuilds else None
        lr, epoch = self.lr(self.step), self._epoch(self.step)
        sparsity = self.schedule.weight(self.step)
        place = self.step % self.steps_per_epoch
        done = self.stepper.step(
            *self._normalised(batch),
            batch.group,
            cls_weights=self.cls_weights,
            lr=lr,
            sparsity=sparsity or 0.0,
            dead=dead if dead is not None and bool(dead.any()) else None,
            measure=logging,
            where=f"at step {self.step} (batch {place} of epoch {epoch})",
        )
        self.step += 1
        if done is None:  # all images of the batch were unreadable
            self.schedule.advance(None)
            return {}
        self.rows += done.n_tokens
        self.activity.count(done.fired, done.n_tokens)
        steered = self.schedule.steered
        l0 = (done.active / done.n_tokens).tolist() if logging or steered else []
        self.schedule.advance(_mean(l0) if steered else None)
        if done.variance is None:
            return {}
        dead_by_layer = self.activity.dead().float().mean(1).tolist()
        return {
            "step": self.step,
            "epoch": epoch,
            "tokens": done.n_tokens,
            "loss": float(done.loss.sum()),
            "loss_by_layer": done.loss.tolist(),
            **_means(done.variance),
            "l0": _mean(l0),
            "l0_by_layer": l0,
            "dead": _mean(dead_by_layer),
            "dead_by_layer": dead_by_layer,
            "sparsity": sparsity,
            "lr": lr,
            "grad_norm": done.grad_norm,
            "aux": float(done.aux) if rebuilds else None,
            "backend": done.backend,
        }

    def validate(self) -> dict[str, Any]:
        """Held-out FVU and L0 by layer, as a record."""
        self._set_sparsifier()
        self.objective.eval()
        cfg = self.config
        sums = VarianceSums(cfg.n_layers, cfg.d_model, self.engine.device)
        loss, active, n_tokens, n_images = 0.0, torch.zeros(cfg.n_layers), 0, 0
        groups = in_groups(self.held_out)
        for group in self.reader.read(groups):
            batch = _rows(group, self.vit.cfg.rows)
            if not len(batch):
                continue
            n_images += int(group.readable.sum())
            normalised = self._normalised(batch)
            # at most as many rows at a time as in a step
            size = max(1, self.settings.batch_size // self.engine.n_processes)
            for rows in torch.arange(len(batch), device=self.engine.device).split(size):
                x, y = (values[:, rows] for values in normalised)
                with torch.no_grad():
                    ones = torch.ones(len(rows), device=x.device)
                    parts = self.objective(x, y, ones, 1.0, len(rows), 0.0, None)
                sums.add(y, parts["y_hat"], batch.group[rows])
                loss += float(parts["loss_by_layer"].sum())
                active += parts["active"].cpu()
                n_tokens += len(rows)
        self.objective.train()
        if not n_tokens:
            raise InputError("none of the held-out images can be read; expected at least one.")
        return {
            "event": "validation",
            "step": self.step,
            "epoch": self._epoch(self.step - 1),
            "n_images": n_images,
            "loss": loss / n_tokens,
            **{
                f"fvu{'' if kind == 'all' else f'_{kind}'}_by_layer": values
                for kind, values in sums.by_layer().items()
            },
            "l0_by_layer": (active / n_tokens).tolist(),
        }

    # ---- the whole run ----------------------------------------------------------------------

    def to_the_end(self, should_stop: Callable[[], bool], progress: bool) -> CrossLayerTranscoder:
        """Train to the last step. Returns the CLT in raw units."""
        self._log({"event": "start", "step": self.step})
        if self.scales is None:
            self._start()
        with Progress(
            total=self.total, initial=self.step, unit="step", disable=not progress, desc="train"
        ) as bar:
            self._remaining_steps(should_stop, bar)
        rate = self.rows / max(self.seconds, 1e-9)
        end = {"step": self.step, "seconds": self.seconds, "tokens_per_second": rate}
        self._log({"event": "end", **end})
        return self._result()

    def _remaining_steps(self, should_stop: Callable[[], bool], bar: Any) -> None:
        began = time.perf_counter() - self.seconds
        last, last_rows = time.perf_counter(), self.rows
        batches = self._batches()
        while self.step < self.total:
            batch = self._or_save(lambda: next(batches))
            record = self.train_on(batch, self._logs(self.step + 1))
            self.seconds = time.perf_counter() - began
            if record:
                now = time.perf_counter()
                record["tokens_per_second"] = (self.rows - last_rows) / (now - last)
                record["waits"] = self.stopwatch.shares()
                record["skipped"] = len(self._skipped())
                last, last_rows = now, self.rows
                self._log(record)
                bar.set_postfix(_short(record))
            bar.update()
            if self.held_out and self.step % self.steps_per_epoch == 0:
                self._log(self._or_save(self.validate))
                last, last_rows = time.perf_counter(), self.rows
                self.stopwatch.shares()  # the time of a validation counts for no step
            every = self.settings.checkpoint_every
            stop = bool(
                self.engine.total(torch.tensor(float(should_stop()), device=self.engine.device)) > 0
            )
            if stop or self.step == self.total or (every and self.step % every == 0):
                self.save()
            if stop and self.step < self.total:
                raise Stopped(f"stopped after step {self.step} of {self.total}")

    def save(self) -> None:
        """Write a checkpoint, if there is a folder for them that has none of this step."""
        if self.checkpoints is None or self.saved_step == self.step:
            return
        assert self.scales is not None
        assert self.cls_weights is not None
        clt = self._objective().clt
        tensors = {
            "model": model_tensors(clt),
            "optimizer": optimiser_tensors(clt, self.optimiser),
            "run": {
                "scale_x": self.scales[0],
                "scale_y": self.scales[1],
                "cls_weights": self.cls_weights,
                "silent": self.activity.silent,
            },
        }
        state = {
            "step": self.step,
            "rows": self.rows,
            "seconds": self.seconds,
            "skipped": sorted(self._skipped()),
            "sparsity": self.schedule.state(),
            "train": asdict(self.settings),
            "clt": self.clt.config.to_json() | {"sparsifier": self.config.to_json()["sparsifier"]},
            **self.facts,
        }
        if self.engine.is_main:
            self.checkpoints.save(self.step, tensors, state)
        self.engine.accelerator.wait_for_everyone()
        self.saved_step = self.step

    def _load(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        state, tensors = checkpoint.state, checkpoint.tensors
        restore(self._objective().clt, self.optimiser, tensors["model"], tensors["optimizer"])
        device = self.engine.device
        self.scales = tensors["run"]["scale_x"].to(device), tensors["run"]["scale_y"].to(device)
        # a checkpoint that is older than `cls_balance` has one weight for all layers
        one_for_all = torch.full((self.config.n_layers,), float(self.settings.cls_weight))
        self.cls_weights = tensors["run"].get("cls_weights", one_for_all).to(device)
        self.activity.silent.copy_(tensors["run"]["silent"])
        self.schedule.load(state["sparsity"])
        self.reader.skipped |= set(state["skipped"])
        self.step, self.rows, self.seconds = state["step"], state["rows"], state["seconds"]
        self.saved_step = self.step

    # ---- parts ------------------------------------------------------------------------------

    def _plans(self, epoch: int) -> list[ShardPlan]:
        settings, shards = self.settings, self.settings.shards
        assert shards is not None
        rows = settings.batch_size // shards
        return [
            ShardPlan(
                settings.seed,
                epoch,
                shard,
                shards,
                self.images,
                self.vit.cfg.n_tokens,
                rows,
                settings.buffer_batches * rows,
            )
            for shard in range(self.engine.rank, shards, self.engine.n_processes)
        ]

    def _batches(self) -> Iterator[TokenBatch]:
        settings, rows, reader = self.settings, self.vit.cfg.rows, self.reader
        if settings.interventions:
            share, seed = settings.interventions, settings.seed
            reader = InterventionReader(reader, self.vit, self.data, share, seed)
        while self.step < self.first_replaced:
            epoch, skip = divmod(self.step, self.steps_per_epoch)
            batches = epoch_batches(self._plans(epoch), reader, rows=rows, skip=skip)
            yield from islice(batches, self.first_replaced - self.step)
        yield from self._replaced_batches()

    def _replaced_batches(self) -> Iterator[TokenBatch]:
        """Batches of whole images, whose x is that of the replaced pass."""
        settings, vit = self.settings, self.vit
        assert settings.shards is not None
        part = max(1, settings.batch_size // settings.shards // vit.cfg.n_tokens)
        batches = range(self.step - self.first_replaced, self.total - self.first_replaced)
        own = range(self.engine.rank, settings.shards, self.engine.n_processes)
        steps = [
            in_groups([image for shard in own for image in batch[shard * part :][:part]])
            for batch in image_batches(settings.seed, self.images, part * settings.shards, batches)
        ]
        more = settings.workers, settings.unreadable == "skip", self.stopwatch
        reader = ReplacedReader(self._now, vit, self.data, *more)
        reader.skipped = self.reader.skipped
        activations = reader.read([group for groups in steps for group in groups])
        for groups in steps:
            read = [_rows(next(activations), vit.cfg.rows) for _ in groups]
            yield joined(read)

    def _now(self) -> StandIn:
        """What stands in for the MLPs at this step. Every process must call this."""
        assert self.scales is not None
        rising = (self.total - self.first_replaced) / 2
        part = min(1.0, (self.step + 1 - self.first_replaced) / rising)
        self._set_sparsifier()
        clt = self._objective().clt
        if is_sharded():
            tensors = model_tensors(clt)
            clt = CrossLayerTranscoder(clt.config, backend=self.settings.backend)
            clt.load_state_dict(tensors)
            clt = clt.to(self.engine.device)
        return StandIn(clt, *self.scales, part)

    def _or_save(self, work: Callable[[], Result]) -> Result:
        """The result of `work`, before whose InputError the last whole step is saved."""
        try:
            return work()
        except InputError:
            # one process of several cannot save alone
            if self.engine.n_processes == 1 and self.step:
                self.save()
            raise

    def _start(self) -> None:
        """Measure the scales, and bring the weights to their start."""
        measured = self._measured()
        if self.settings.start == "centred":
            tensors = model_tensors(self._objective().clt)
            start_(tensors, measured, signed=self.config.sparsifier.signed)
            put_model(self._objective().clt, tensors)
        self.scales = measured.scale_x, measured.scale_y
        settings = self.settings
        self.cls_weights = measured.cls_weights(settings.cls_weight, balance=settings.cls_balance)

    def _measured(self) -> Moments:
        order = torch.randperm(
            len(self.images), generator=seeded(self.settings.seed, "normalisation")
        )
        sample = [self.images[i] for i in order[: self.settings.norm_images].tolist()]
        measured = moments(self.reader.read(in_groups(sample)), self.vit.cfg.rows)
        # the mean is the same in every process, though their kernels may round differently
        return measured.map(lambda value: self.engine.total(value) / self.engine.n_processes)

    def _skipped(self) -> set[int]:
        """Unreadable images that any process came across. Every process must call this."""
        if self.engine.n_processes == 1:
            return self.reader.skipped
        counts = torch.zeros(len(self.data), device=self.engine.device)
        counts[list(self.reader.skipped)] = 1
        return set(self.engine.total(counts).nonzero()[:, 0].tolist())

    def _normalised(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        assert self.scales is not None
        x, y = self.scales
        return batch.x * x[:, None, None], batch.y * y[:, None, None]

    def _set_sparsifier(self) -> None:
        now = self.schedule.at(self.step)
        if self.clt.config.sparsifier != now:
            self.clt.config = replace(self.clt.config, sparsifier=now)

    def _epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def _logs(self, step: int) -> bool:
        return step % self.settings.log_every == 0 or step == self.total

    def _log(self, record: dict[str, Any]) -> None:
        if self.on_log is not None:
            self.on_log(record)
        prefix = "validation/" if record.get("event") == "validation" else ""
        numbers = {
            f"{prefix}{name}": _mean(value) if isinstance(value, list) else value
            for name, value in record.items()
        }
        self.engine.log(numbers, self.step)

    def _objective(self) -> Objective:
        objective: Objective = self.engine.accelerator.unwrap_model(self.objective)
        return objective

    def _result(self) -> CrossLayerTranscoder:
        assert self.scales is not None
        tensors = model_tensors(self._objective().clt)
        clt = self.clt
        clt.config = replace(clt.config, sparsifier=self.config.sparsifier)
        if self.engine.n_processes > 1:
            # a new module without the wrappers that the processes share
            config = replace(self.config, teacher=self.vit.identity())
            clt = CrossLayerTranscoder(config, backend=self.settings.backend)
            clt.load_state_dict(tensors)
            clt = clt.to(self.engine.device)
        clt.rescale_(*self.scales)
        clt.zero_grad()
        return clt.eval()


def _rows(activations: GroupActivations, rows: TokenRows) -> TokenBatch:
    images = activations.readable
    x, y = (values[:, images].flatten(1, 2) for values in (activations.x, activations.y))
    return TokenBatch(x, y, rows.groups.to(x.device).repeat(int(images.sum())))


def _means(sums: VarianceSums) -> dict[str, float | None]:
    return {
        "fvu" if kind == "all" else f"fvu_{kind}": None if values is None else _mean(values)
        for kind, values in sums.by_layer().items()
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _short(record: dict[str, Any]) -> dict[str, str]:
    def shown(name: str) -> str:
        return "-" if record[name] is None else f"{record[name]:.3f}"

    longest = max(record["waits"], key=record["waits"].get)
    return {
        "FVU cls": shown("fvu_cls"),
        "patch": shown("fvu_patch"),
        "L0": f"{record['l0']:.1f}",
        "dead": f"{record['dead']:.1%}",
        "tok/s": f"{record['tokens_per_second']:.0f}",
        "most in": f"{longest} {record['waits'][longest]:.0%}",
    }
