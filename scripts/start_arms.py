"""What a CLT's start and settings do, one change at a time: the table of docs/results/starts.md.

    python scripts/start_arms.py [--teacher adding|cifar10] [--steps 400] [--seeds 0 1] [--out FILE]

Every arm trains on the same images, for the same steps, at the same L0, from the same draw. The
teacher `adding` comes with the package; `cifar10` is read from $VIT_CLT_DATA. An arm that is in the
file is not run again. What `vit_clt.train` offers no option for lives here alone.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit_clt import AbsTopK, CLTConfig, CrossLayerTranscoder, JumpReLU, ReLUTopK, load_data
from vit_clt.hooks import HookedViT
from vit_clt.hooks.activations import Activations, capture
from vit_clt.progress import Progress
from vit_clt.training.batches import GroupActivations
from vit_clt.training.objective import Activity, Objective, learning_rate
from vit_clt.training.start import Moments, centre_, cls_feature_, moments, unit_encoders_
from vit_clt.transcoder.sparsifier_options import JumpReLUTraining, TopKTraining
from vit_clt.transcoder.train_config import TrainConfig

Start = Callable[[dict[str, Tensor], Moments], None]
SIZES = {"adding": (512, 16, 4000, 500), "cifar10": (2048, 32, 4000, 400)}
"""Features, k, training images and test images of each teacher."""
BATCH = 1024


def unit(tensors: dict[str, Tensor], measured: Moments) -> None:
    """Encoder rows of norm 1."""
    unit_encoders_(tensors)


def cls(tensors: dict[str, Tensor], measured: Moments) -> None:
    """A feature for CLS rows."""
    cls_feature_(tensors, measured, signed=False)


def cls_signed(tensors: dict[str, Tensor], measured: Moments) -> None:
    """A feature for CLS rows whose codes are signed."""
    cls_feature_(tensors, measured, signed=True)


def tied(tensors: dict[str, Tensor], measured: Moments) -> None:
    """Encoder rows along the decoder of their own layer, of the norm they had."""
    for s in range(len(tensors["b_enc"])):
        encoder, decoder = tensors[f"W_enc.{s}"], tensors[f"W_dec.{s}"][0]
        norms = encoder.norm(dim=1, keepdim=True)
        encoder.copy_(decoder / decoder.norm(dim=1, keepdim=True) * norms)


def b_dec(tensors: dict[str, Tensor], measured: Moments) -> None:
    """b_dec at the mean of y, b_enc at 0."""
    tensors["b_dec"].copy_(measured.mean_y * measured.scale_y[:, None])


def at_l0(times: int) -> Start:
    """Thresholds at which `times` k features of a row are active.

    Rows of W_enc of norm 1, drawn at random, give centred pre-activations a variance of about
    (d_model - ||mean(x')||^2) / d_model; theta is where a normal distribution has that share above.
    """

    def start(tensors: dict[str, Tensor], measured: Moments) -> None:
        log_theta, d_model = tensors["log_theta"], measured.mean_x.shape[1]
        k = {n_features: k for n_features, k, _, _ in SIZES.values()}[log_theta.shape[1]]
        share = torch.tensor(1 - times * k / log_theta.shape[1])
        mean = measured.mean_x * measured.scale_x[:, None]
        spread = (1 - mean.square().sum(1) / d_model).clamp(min=0).sqrt()
        theta = torch.special.ndtri(share) * spread
        log_theta.copy_(theta.clamp(min=1e-3).log()[:, None].expand_as(log_theta))

    return start


@dataclass(frozen=True)
class Arm:
    """What differs from the paper's start at the rate 1e-3."""

    start: tuple[Start, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    sparsifier: str = "relu_topk"
    resample: int = 0
    """Steps between re-drawings of dead features from the rows of the largest error; 0 is never."""
    unit_decoders: bool = False
    """Bring what each feature writes, to all targets together, to norm 1 after every step."""


FAST = {"lr": 3e-3}
WEIGHED = {"lr": 3e-3, "cls_weight": 4}
NEW = WEIGHED | {"cls_balance": True}
FULL = (unit, centre_, cls)
SIGNED = (unit, centre_, cls_signed)
ARMS = {
    "drawn": Arm(),
    "b_dec at mean y": Arm((b_dec,)),
    "centred biases": Arm((centre_,)),
    "centred biases, CLS feature": Arm((centre_, cls)),
    "centred biases, tied encoders": Arm((tied, centre_)),
    "centred biases, unit encoders": Arm((unit, centre_)),
    "start centred: both, and the CLS feature": Arm(FULL),
    "drawn, lr 3e-3": Arm((), FAST),
    "start centred, lr 3e-3": Arm(FULL, FAST),
    "the same, CLS weight 4": Arm(FULL, WEIGHED),
    "CLS weight 4, k from 64": Arm(FULL, WEIGHED | {"sparsity": TopKTraining(k_start=64)}),
    "CLS weight 4, resampling": Arm(FULL, WEIGHED | {"dead_tokens": 20_000}, resample=50),
    "presets: CLS weight 4, balanced": Arm(FULL, NEW),
    "presets, AuxK": Arm(FULL, NEW | {"sparsity": TopKTraining(aux_k=32), "dead_tokens": 20_000}),
    "presets, tied encoders": Arm((tied, *FULL), NEW),
    "presets, lr 6e-3": Arm(FULL, NEW | {"lr": 6e-3}),
    "presets, unit-norm decoders": Arm(FULL, NEW, unit_decoders=True),
    "JumpReLU, drawn": Arm((), {}, "jumprelu"),
    "JumpReLU, CLS weight 4": Arm(FULL, WEIGHED, "jumprelu"),
    "JumpReLU, presets": Arm(FULL, NEW, "jumprelu"),
    "JumpReLU, thresholds at k": Arm((*FULL, at_l0(1)), NEW, "jumprelu"),
    "JumpReLU, thresholds at 4 k": Arm((*FULL, at_l0(4)), NEW, "jumprelu"),
    "Abs-TopK, drawn": Arm((), {}, "abs_topk"),
    "Abs-TopK, CLS weight 4": Arm(SIGNED, WEIGHED, "abs_topk"),
    "Abs-TopK, CLS weight 4, balanced, lr 3e-3": Arm(SIGNED, NEW, "abs_topk"),
    "Abs-TopK, presets": Arm(SIGNED, NEW | {"lr": 1e-3}, "abs_topk"),
    "Abs-TopK, lr 5e-4": Arm(SIGNED, NEW | {"lr": 5e-4}, "abs_topk"),
    "Abs-TopK, lr 1e-3, encoder rows as drawn": Arm(SIGNED[1:], NEW | {"lr": 1e-3}, "abs_topk"),
}


def main() -> None:
    """Run the arms that the file does not hold yet, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teacher", choices=SIZES, default="adding")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path("out/starts/adding.jsonl"))
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    done = (
        [json.loads(line) for line in args.out.read_text().splitlines()]
        if args.out.exists()
        else []
    )
    vit, train_rows, test_rows = activations(args.teacher)
    known = {(row["arm"], row["seed"]) for row in done}
    missing = [(a, s) for a in args.arms for s in args.seeds if (a, s) not in known]
    for name, seed in Progress(missing, desc="arms"):
        row = {"arm": name, "seed": seed, "teacher": args.teacher, "steps": args.steps}
        row |= run(ARMS[name], args, seed, vit, train_rows, test_rows)
        done.append(row)
        with args.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
    print(table(done, args.arms))


def activations(teacher: str) -> tuple[HookedViT, Activations, Activations]:
    """The teacher, and x and y of its training and test images, in bfloat16 and float32."""
    _, _, n_train, n_test = SIZES[teacher]
    if teacher == "adding":
        vit = HookedViT.load("adding")
        data = {split: "adding" for split in ("train", "test")}
    else:
        root = Path(os.environ["VIT_CLT_DATA"]).resolve()
        vit = HookedViT.load(f"local-dir:{root}/teachers/{teacher}")
        data = {s: f"parquet:{root}/data/{teacher}/{s}.parquet" for s in ("train", "test")}
    found = []
    for split, n in (("train", n_train), ("test", n_test)):
        images = load_data(data[split], split=split, limit=n, vit=vit)
        parts = []
        for at in Progress(range(0, n, 100), desc=split):
            part = capture(vit, images.batch(range(at, min(n, at + 100)))[0])
            dtype = torch.bfloat16 if split == "train" else torch.float32
            parts.append(Activations(part.x.to(dtype), part.y.to(dtype)))
        x, y = (torch.cat([getattr(part, name) for part in parts], 1) for name in ("x", "y"))
        found.append(Activations(x, y))
    return vit, found[0], found[1]


def run(
    arm: Arm,
    args: argparse.Namespace,
    seed: int,
    vit: HookedViT,
    known: Activations,
    unseen: Activations,
) -> dict[str, Any]:
    """Train one arm and measure it on test images."""
    n_features, k, _, _ = SIZES[args.teacher]
    steps, cfg = args.steps, vit.cfg
    sparsifiers = {"relu_topk": ReLUTopK(k), "abs_topk": AbsTopK(k), "jumprelu": JumpReLU()}
    sparsifier = sparsifiers[arm.sparsifier]
    settings = TrainConfig(lr=1e-3, epochs=1, batch_size=BATCH, seed=seed, warmup_steps=steps)
    if arm.sparsifier == "jumprelu":
        settings = replace(settings, sparsity=JumpReLUTraining(l0=k))
    settings = sparsifier.with_options(replace(settings, **arm.settings))
    torch.manual_seed(seed)
    clt = CrossLayerTranscoder(CLTConfig(cfg.n_layers, cfg.d_model, n_features, sparsifier))
    tensors = {name: value.detach() for name, value in clt.named_parameters()}
    some = torch.randperm(known.x.shape[1])[:500]
    everything = torch.ones(len(some), dtype=torch.bool)
    sample = GroupActivations(known.x[:, some].float(), known.y[:, some].float(), everything)
    measured = moments([sample], cfg.rows)
    with torch.no_grad():
        for start in arm.start:
            start(tensors, measured)
    cls_weights = measured.cls_weights(settings.cls_weight, balance=settings.cls_balance)[:, None]
    objective = Objective(clt, settings)
    optimiser = torch.optim.AdamW(objective.parameters(), fused=True, weight_decay=0.0)
    rate, schedule = learning_rate(settings, steps), sparsifier.schedule(settings.sparsity, steps)
    window = settings.dead_tokens or 10**9
    activity = Activity((cfg.n_layers, n_features), window, torch.device("cpu"))
    x_rows, y_rows = known.x.flatten(1, 2), known.y.flatten(1, 2)
    n_rows, is_cls = x_rows.shape[1], cfg.rows.groups.repeat(known.x.shape[1]) == 0
    passes = ceil(steps * BATCH / n_rows)
    order = torch.cat([torch.randperm(n_rows) for _ in range(passes)])[: steps * BATCH]
    began = time.process_time()
    for step, rows in enumerate(order.view(steps, BATCH)):
        x = x_rows[:, rows].float() * measured.scale_x[:, None, None]
        y = y_rows[:, rows].float() * measured.scale_y[:, None, None]
        weights = torch.where(is_cls[rows], cls_weights, 1.0)
        clt.config = replace(clt.config, sparsifier=schedule.at(step))
        for group in optimiser.param_groups:
            group["lr"] = rate(step)
        optimiser.zero_grad()
        dead = activity.dead()
        rebuilds = settings.sparsity.auxiliary_weight is not None and bool(dead.any())
        penalty = schedule.weight(step) or 0.0
        total = float(torch.where(is_cls[rows], float(settings.cls_weight), 1.0).sum())
        out = objective(x, y, weights, total, BATCH, penalty, dead if rebuilds else None)
        out["total"].backward()
        optimiser.step()
        if arm.unit_decoders:
            unit_decoders_(clt)
        activity.count(out["fired"] > 0, BATCH)
        if schedule.steered:
            schedule.advance(float(out["active"].float().mean()) / BATCH)
        if arm.resample and (step + 1) % arm.resample == 0 and step < 0.7 * steps:
            redraw_(clt, optimiser, dead, x, y - out["y_hat"].detach())
            activity.silent[dead] = 0
    seconds = time.process_time() - began
    clt.config = replace(clt.config, sparsifier=sparsifier)
    clt.rescale_(measured.scale_x, measured.scale_y)
    return measure(clt.eval(), cfg.rows.groups == 0, unseen) | {"cpu_seconds": seconds}


@torch.no_grad()
def unit_decoders_(clt: CrossLayerTranscoder) -> None:
    """Bring ||W_dec,i|| of every feature, over all targets together, to 1."""
    for weights, norms in zip(clt.W_dec, clt.decoder_norms(), strict=True):
        weights.div_(norms[:, None])


@torch.no_grad()
def redraw_(
    clt: CrossLayerTranscoder,
    optimiser: torch.optim.Optimizer,
    dead: Tensor,
    x: Tensor,
    error: Tensor,
) -> None:
    """Point dead features at rows with the largest error: they read x there, write the error."""
    for s in range(len(dead)):
        features = dead[s].nonzero()[:, 0]
        if not len(features):
            continue
        rows = torch.multinomial(error[s].square().sum(-1), len(features), replacement=True)
        living, mean = ~dead[s], x[s].mean(0)
        reads, writes = x[s, rows] - mean, error[s, rows]
        reads *= 0.5 * clt.W_enc[s][living].norm(dim=1).mean() / reads.norm(dim=1, keepdim=True)
        writes *= (
            0.5 * clt.W_dec[s][0, living].norm(dim=1).mean() / writes.norm(dim=1, keepdim=True)
        )
        clt.W_enc[s][features] = reads
        clt.b_enc[s, features] = -(reads @ mean)
        clt.W_dec[s][:, features] = 0
        clt.W_dec[s][0, features] = writes
        for name in ("exp_avg", "exp_avg_sq"):
            optimiser.state[clt.W_enc[s]][name][features] = 0
            optimiser.state[clt.W_dec[s]][name][:, features] = 0
            optimiser.state[clt.b_enc][name][s, features] = 0


@torch.no_grad()
def measure(clt: CrossLayerTranscoder, is_cls: Tensor, unseen: Activations) -> dict[str, Any]:
    """R2 by kind of row, dead share and L0 on test images, in raw units."""
    y_hat, fired, active = [], [], 0.0
    for x in unseen.x.split(50, 1):
        codes = clt.encode(x)
        y_hat.append(clt.decode(codes))
        dense = torch.stack([codes[s].to_dense().flatten(0, 1) for s in range(len(codes))]) != 0
        fired.append(dense.any(1))
        active += float(dense.sum())
    error = (torch.cat(y_hat, 1) - unseen.y).double().square().sum(-1)
    found: dict[str, Any] = {}
    for kind, tokens in (("cls", is_cls), ("patch", ~is_cls)):
        y = unseen.y[:, :, tokens].double()
        spread = (y - y.mean((1, 2), keepdim=True)).square().sum((1, 2, 3))
        r2 = 1 - error[:, :, tokens].sum((1, 2)) / spread
        found |= {f"r2_{kind}": float(r2.mean()), f"r2_{kind}_least": float(r2.min())}
    dead = ~torch.stack(fired).any(0)
    n_rows = unseen.x.shape[0] * unseen.x.shape[1] * unseen.x.shape[2]
    return found | {"dead": float(dead.float().mean()), "l0": active / n_rows}


def table(done: list[dict[str, Any]], arms: list[str]) -> str:
    """The arms as Markdown, each value of every seed."""
    lines = [
        "| arm | R² CLS, mean | least layer | R² patches, mean | dead | L0 | CPU s |",
        "|" + "---|" * 7,
    ]
    for arm in arms:
        rows = sorted((row for row in done if row["arm"] == arm), key=lambda row: row["seed"])
        shown = [
            " / ".join(format(row[name], style) for row in rows)
            for name, style in (
                ("r2_cls", ".3f"),
                ("r2_cls_least", ".3f"),
                ("r2_patch", ".3f"),
                ("dead", ".1%"),
                ("l0", ".1f"),
                ("cpu_seconds", ".0f"),
            )
        ]
        lines.append(f"| {arm} | {' | '.join(shown)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
