"""Does training with interventions find the CLT that computes as the model does?

    python scripts/shortcut_training.py [--runs 100] [--steps 1000] [--out FILE]

The model is that of `vit_clt.analysis.auditing.controls.shortcut_example`, here as a ViT of images
of one pixel: MLP_0 writes h = a AND b, MLP_1 writes h AND c. CLTs are trained on it from many draws
of their weights, plainly and with `interventions` 0.5, and each is judged by what it does.
The table is that of docs/results/shortcut_training.md.

The rule, fixed before any run was judged. FVU is the mean squared error over the variance of y_l.
A CLT is `exact` if its FVU on the 8 clean inputs is below 0.01 at both layers. One that is exact is

    deep       if |C(1->1) - 1| < 0.1: y_1 is read at the depth that computes it
    shortcut   if |C(1->1)| < 0.1: y_1 is read at depth 0
    mixed      otherwise

C(1->1) is the centred score, E<c - mean c, y^ - mean y^> / E||y^ - mean y^||^2 on the clean inputs.
A CLT `follows` MLP_0 if its FVU of y_1 is below 0.01 on the 24 altered inputs, where the output of
MLP_0 is overwritten by that of an input without h, by that of one with h, or by its mean.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vit_clt import CLTConfig, CrossLayerTranscoder, JumpReLU, ReLUTopK
from vit_clt.analysis.auditing.controls import OUT, A, B, C, H
from vit_clt.data.images import TensorImages
from vit_clt.hooks import HookedViT
from vit_clt.hooks.activations import Activations, capture
from vit_clt.kernels.codes import Codes, DenseCodes, stack_codes
from vit_clt.progress import Progress
from vit_clt.training.batches import GroupActivations, Stopwatch, ViTReader
from vit_clt.training.interventions import InterventionReader, Interventions, intervened
from vit_clt.training.objective import Objective, learning_rate
from vit_clt.training.order import seeded
from vit_clt.training.start import moments, start_
from vit_clt.transcoder.sparsifier_options import JumpReLUTraining
from vit_clt.transcoder.train_config import TrainConfig

EXACT, AT_DEPTH = 0.01, 0.1
LR = 0.03
"""Of 0.003, 0.01 and 0.03 the one at which most plain runs were exact, on draws of other seeds."""
COPIES, GROUPS = 4, 100
"""Images of each input in a step, and the steps after which what was drawn comes again."""


@dataclass(frozen=True)
class Arm:
    """What is trained."""

    sparsifier: ReLUTopK | JumpReLU
    n_features: int
    start: Any
    interventions: float
    sparsity: float = 0.0
    """The weight of JumpReLU's penalty."""

    @property
    def name(self) -> str:
        """As the table shows it."""
        sparsifier = self.sparsifier
        if isinstance(sparsifier, ReLUTopK):
            return f"ReLU-TopK, k = {sparsifier.k}"
        return f"JumpReLU, λ = {self.sparsity:g}"


def arms() -> Iterator[Arm]:
    """All arms, plain training beside training with interventions."""
    sparsifiers: list[tuple[ReLUTopK | JumpReLU, float]]
    sparsifiers = [(ReLUTopK(1), 0.0), (ReLUTopK(2), 0.0), (JumpReLU(), 1e-3), (JumpReLU(), 0.1)]
    centred = product((2, 4), ("centred",), sparsifiers)
    drawn = product((4,), ("drawn",), sparsifiers[:2])
    for n_features, start, (sparsifier, sparsity) in (*centred, *drawn):
        for share in (0.0, 0.5):
            yield Arm(sparsifier, n_features, start, share, sparsity)


@torch.no_grad()
def shortcut_vit() -> HookedViT:
    """The hand-set model: the channels of one pixel are the bits; no attention, no LayerNorm."""
    model: Any = VisionTransformer(
        img_size=1,
        patch_size=1,
        num_classes=0,
        embed_dim=5,
        depth=2,
        num_heads=1,
        mlp_ratio=0.2,
        class_token=False,
        pos_embed="none",
        global_pool="avg",
        norm_layer=nn.Identity,
        act_layer=nn.ReLU,
    )
    for parameter in model.parameters():
        parameter.zero_()
    model.patch_embed.proj.weight[[A, B, C], :, 0, 0] = torch.eye(3)
    for block, reads, out in zip(model.blocks, ([A, B], [H, C]), (H, OUT), strict=True):
        block.mlp.fc1.weight[0, reads] = 1
        block.mlp.fc1.bias[0] = -1
        block.mlp.fc2.weight[out, 0] = 1
    return HookedViT(model)


def inputs() -> Float[Tensor, "image 3 height width"]:
    """The 8 inputs as images of one pixel."""
    return torch.tensor(list(product([0.0, 1.0], repeat=3)))[:, :, None, None]


@torch.no_grad()
def altered_inputs(vit: HookedViT) -> Activations:
    """Passes of every input with the output of MLP_0 overwritten: h = 0, h = 1, and its mean."""
    images, y = inputs(), capture(vit, inputs()).y
    fills = [y[:, :1], y[:, -1:], y.mean(1, keepdim=True)]
    layers = torch.tensor([[True], [False]]).expand(2, 24)
    fill = torch.cat([each.expand(2, 8, 1, 5) for each in fills], 1)
    return intervened(vit, Interventions(list(range(24)), layers, fill), images.repeat(3, 1, 1, 1))


class SideBySide(CrossLayerTranscoder):
    """CLTs of one configuration as one that holds all their features, so that a step trains all.

    Each has codes, a reconstruction and Adam's moments of its own, as if it were alone; the loss is
    the sum of theirs. All read the same token rows: x, y and y^ hold each row once for each CLT,
    one after the other.

    Args:
        clts: the CLTs, whose parameters are copied.
    """

    def __init__(self, clts: Sequence[CrossLayerTranscoder]):
        self.one, self.n = clts[0].config, len(clts)
        super().__init__(replace(self.one, n_features=self.n * self.one.n_features), "dense")
        self.b_dec = nn.Parameter(torch.empty(self.one.n_layers, self.n * self.one.d_model))
        for name, parameter in self.named_parameters():
            each = [dict(clt.named_parameters())[name].detach() for clt in clts]
            parameter.data = torch.cat(each, _feature_axis(name))

    def encode_batch(self, x: Float[Tensor, "layer row d_model"]) -> Codes:
        """Codes of all layers "layer token clt*feature", chosen for each CLT by itself."""
        codes, sparsifier = [], self.config.sparsifier
        for s in range(self.one.n_layers):
            a = nn.functional.linear(x[s, :: self.n], self.W_enc[s], self.b_enc[s])
            if isinstance(sparsifier, JumpReLU):
                z = sparsifier(a, self.own_tensors()["log_theta"][s]).to_dense()
            else:
                z = sparsifier(a.unflatten(-1, (self.n, -1))).to_dense().flatten(-2)
            codes.append(DenseCodes(z))
        return stack_codes(codes)

    def decode_prefixes(
        self, codes: Codes, prefixes: Sequence[int], x: Tensor | None = None
    ) -> Iterator[Float[Tensor, "layer row d_model"]]:
        """y^ of every CLT."""
        z = codes.to_dense().unflatten(-1, (self.n, -1))
        y_hat = []
        for l, bias in enumerate(self.b_dec.unflatten(-1, (self.n, -1))):
            decoders = [self.W_dec[s][l - s].unflatten(0, (self.n, -1)) for s in range(l + 1)]
            terms = [torch.einsum("tnf,nfd->tnd", z[s], W) for s, W in enumerate(decoders)]
            y_hat.append((sum(terms) + bias).flatten(0, 1))
        yield torch.stack(y_hat)

    def apart(self) -> list[CrossLayerTranscoder]:
        """The CLTs as they are now."""
        clts = [CrossLayerTranscoder(self.one) for _ in range(self.n)]
        for name, parameter in self.named_parameters():
            parts = parameter.detach().chunk(self.n, _feature_axis(name))
            for clt, part in zip(clts, parts, strict=True):
                dict(clt.named_parameters())[name].data = part.clone()
        return clts


def _feature_axis(name: str) -> int:
    return -2 if name.startswith("W") else -1


def train_arm(
    arm: Arm, vit: HookedViT, seeds: Sequence[int], steps: int
) -> list[CrossLayerTranscoder]:
    """Train a CLT from each seed's draw, all on the same steps; they are returned in raw units."""
    settings = arm.sparsifier.with_options(
        TrainConfig(lr=LR, start=arm.start, interventions=arm.interventions)
    )
    if isinstance(arm.sparsifier, JumpReLU):
        settings = replace(settings, sparsity=JumpReLUTraining(sparsity=arm.sparsity))
    config = CLTConfig(vit.cfg.n_layers, vit.cfg.d_model, arm.n_features, arm.sparsifier)
    clean = moments(groups_of(vit, 0.0, 1), vit.cfg.rows)
    clts = []
    for seed in seeds:
        torch.manual_seed(seed)
        clts.append(CrossLayerTranscoder(config))
        if arm.start == "centred":
            tensors = {name: value.detach() for name, value in clts[-1].named_parameters()}
            start_(tensors, clean, signed=False)
    together = SideBySide(clts)
    objective = Objective(together, settings)
    optimiser = torch.optim.AdamW(objective.parameters(), fused=True, weight_decay=0.0)
    rate, schedule = (
        learning_rate(settings, steps),
        config.sparsifier.schedule(settings.sparsity, steps),
    )
    n_rows, scale_x, scale_y = (
        8 * COPIES,
        clean.scale_x[:, None, None],
        clean.scale_y[:, None, None],
    )
    weights = torch.ones(n_rows * len(clts))
    groups = list(groups_of(vit, arm.interventions, GROUPS))
    for step, group in enumerate(islice(cycle(groups), steps)):
        x, y = group.x.flatten(1, 2) * scale_x, group.y.flatten(1, 2) * scale_y
        x, y = (rows.repeat_interleave(len(clts), dim=1) for rows in (x, y))
        for options in optimiser.param_groups:
            options["lr"] = rate(step)
        optimiser.zero_grad()
        penalty = schedule.weight(step) or 0.0
        out = objective(x, y, weights, float(n_rows), n_rows, penalty, None)
        out["total"].backward()
        optimiser.step()
    trained = together.apart()
    for clt in trained:
        clt.rescale_(clean.scale_x, clean.scale_y)
    return [clt.requires_grad_(False) for clt in trained]


def groups_of(vit: HookedViT, share: float, n: int) -> Iterator[GroupActivations]:
    """Activations of groups of all inputs, in this share of which MLP outputs are overwritten."""
    data = TensorImages(inputs().repeat(COPIES, 1, 1, 1))
    reader = ViTReader(vit, data, 0, False, Stopwatch())
    orders = [torch.randperm(len(data), generator=seeded("group", i)).tolist() for i in range(n)]
    return InterventionReader(reader, vit, data, share, seed=0).read(orders)


@torch.no_grad()
def judge(clt: CrossLayerTranscoder, clean: Activations, altered: Activations) -> dict[str, Any]:
    """What a CLT does on clean and altered inputs, and what it is by the rule."""
    x = clean.x.flatten(1, 2)
    codes = clt.encode(x)
    terms = clt.contributions(codes, target=1)
    terms = terms - terms.mean(1, keepdim=True)
    share = float((terms[1] * terms.sum(0)).sum() / terms.sum(0).square().sum())
    error = fvu(clt.decode(codes), clean.y.flatten(1, 2))
    follows = fvu(clt(altered.x.flatten(1, 2)), altered.y.flatten(1, 2))[1]
    if max(error) >= EXACT:
        found = "not exact"
    elif abs(share - 1) < AT_DEPTH:
        found = "deep"
    else:
        found = "shortcut" if abs(share) < AT_DEPTH else "mixed"
    return {
        "found": found,
        "share": share,
        "fvu_0": error[0],
        "fvu_1": error[1],
        "fvu_altered": follows,
        "follows": follows < EXACT,
        "l0": float(codes.l0().sum(0).double().mean()),
    }


def fvu(y_hat: Tensor, y: Float[Tensor, "layer row d_model"]) -> list[float]:
    """Mean squared error over variance of each layer."""
    spread = (y - y.mean(1, keepdim=True)).square().sum((1, 2))
    return ((y_hat - y).square().sum((1, 2)) / spread).tolist()


def main() -> None:
    """Train and judge all arms, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="write what every run found here, as JSON lines")
    args = parser.parse_args()
    if args.runs < 1:
        sys.exit(f"--runs is {args.runs}; expected at least 1")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("")
    torch.set_num_threads(1)
    vit = shortcut_vit()
    clean, altered = capture(vit, inputs()), altered_inputs(vit)
    lines = [
        "| sparsifier | F | start | interventions | deep | shortcut | mixed | not exact | follows "
        "| C(1→1), median | FVU of y_1, clean | altered | L0 |",
        "|" + "---|" * 13,
    ]
    for arm in Progress(list(arms()), desc="arms"):
        clts = train_arm(arm, vit, range(args.runs), args.steps)
        rows = [judge(clt, clean, altered) for clt in clts]
        lines.append(table_line(arm, rows))
        if args.out:
            with args.out.open("a") as file:
                about = {"arm": arm.name, "n_features": arm.n_features, "start": arm.start}
                about["interventions"] = arm.interventions
                for seed, row in enumerate(rows):
                    file.write(json.dumps(about | {"seed": seed} | row) + "\n")
    print("\n".join(lines))


def table_line(arm: Arm, rows: list[dict[str, Any]]) -> str:
    """One arm as a line of the table: numbers of runs, and medians over runs."""
    counts = [
        sum(row["found"] == kind for row in rows)
        for kind in ("deep", "shortcut", "mixed", "not exact")
    ]
    counts.append(sum(row["follows"] for row in rows))
    medians = [
        torch.tensor([row[name] for row in rows]).median()
        for name in ("share", "fvu_1", "fvu_altered", "l0")
    ]
    share, *errors, l0 = (float(value) for value in medians)
    shown = [arm.name, arm.n_features, arm.start, arm.interventions or "none", *counts]
    shown += [f"{share:.2f}", *(f"{error:.1g}" for error in errors), f"{l0:.2f}"]
    return f"| {' | '.join(map(str, shown))} |"


if __name__ == "__main__":
    main()
