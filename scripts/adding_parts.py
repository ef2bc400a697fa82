"""Two steps of the adding study that are no commands of their own; see scripts/adding.mk.

    python scripts/adding_parts.py truth --out out/adding/truth
    python scripts/adding_parts.py features --clt out/adding/clt_k16 --out out/adding/features

"truth" draws probes above what ablations cost, without a CLT. "features" finds which features tell
of the left or the right digit and which need both, on training images; on test images it switches
them off, and sets those of one digit to another's values, beside random features that fire as
often.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vit_clt import CrossLayerTranscoder, ZeroShot, load_data
from vit_clt.analysis import causal_effects, clamp, probes, selectivity, suppress
from vit_clt.analysis.factors.clamping import Clamp
from vit_clt.analysis.factors.computing_features import ComputingFeatures
from vit_clt.analysis.factors.selectivity import Selectivity
from vit_clt.analysis.factors.sets import FeatureSet
from vit_clt.analysis.factors.suppression import Suppression
from vit_clt.analysis.factors.truth import Truth
from vit_clt.analysis.reporting.study import check_png, study_files, write_study
from vit_clt.analysis.stats.names import layer_sets
from vit_clt.choices import Region
from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT
from vit_clt.outputs import OutputFolder

N_TEST, N_TRAIN = 2_000, 4_000
RANDOM_SETS = 2
EARLY, LATE = range(3), range(3, 8)
REGIONS: tuple[Region, ...] = ("cls", "left_half", "right_half")
NAMES = {"label": "last digit of the sum"}


def load() -> tuple[HookedViT, ZeroShot, ImageData, ImageData]:
    """The model, its classes, training and test images."""
    vit = HookedViT.from_open_clip("adding")
    train = load_data("adding", split="train", limit=N_TRAIN, vit=vit)
    test = load_data("adding", split="test", limit=N_TEST, vit=vit)
    return vit, ZeroShot(vit, test.class_names, "ensemble"), train, test


def truth(folder: OutputFolder, png: bool) -> None:
    """Where each digit and the sum can be read, and which layers the answer needs."""
    vit, zs, train, test = load()
    probed = probes(vit, train, test, progress=True)
    sets = layer_sets(vit.cfg.n_layers, pairs=True)
    effects = [
        causal_effects(
            vit, test, zs, ablated="all", fill="mean", site=site, sets=sets, progress=True
        )
        for site in ("mlp", "attn")
    ]
    write_study(folder.open(), Truth(probed, effects, NAMES), "adding truth", png=png)


def features(folder: OutputFolder, png: bool, place: str) -> None:
    """Which features tell of a digit, which need both, and what follows when they are changed."""
    vit, zs, train, test = load()
    clt = CrossLayerTranscoder.from_pretrained(place).eval().requires_grad_(False)
    found = {
        region: selectivity(vit, clt, train, region=region, progress=True) for region in REGIONS
    }
    switched: dict[str, Suppression] = {}
    moved: dict[str, Clamp] = {}
    for side, region in (("left", "left_half"), ("right", "right_half")):
        for most in (60, 120, None):
            group = found[region].features(side, layers=EARLY, most=most)
            # of all of them, nearly every feature that fires, random ones share most
            randoms = random_sets(found[region], group, apart=most is not None)
            name = f"{side} digit, {most or 'all'} a layer, layers 0-2"
            # without any of them nothing is left to break; a few of them set nothing
            if most is not None:
                switched[name] = suppress(
                    vit, clt, test, zs, group, randoms=randoms, region=region, progress=True
                )
            if most == 60:
                continue
            moved[name] = clamp(
                vit,
                clt,
                test,
                zs,
                group,
                mean_data=train,
                randoms=randoms,
                factor=side,
                other="right" if side == "left" else "left",
                region=region,
                progress=True,
            )
    for layers, text in (([3], "layer 3"), (LATE, "layers 3-7")):
        group = found["cls"].features("pair", "label", layers=layers, most=60)
        name = f"need both, 60 a layer, {text}, CLS"
        switched[name] = suppress(
            vit, clt, test, zs, group, randoms=random_sets(found["cls"], group), progress=True
        )
    study = ComputingFeatures(found, switched, moved, place)
    write_study(folder.open(), study, "adding features", png=png)


def random_sets(found: Selectivity, group: FeatureSet, apart: bool = True) -> list[FeatureSet]:
    """Several sets of as many features that fire equally often."""
    return [found.matched(group, seed, apart=apart) for seed in range(RANDOM_SETS)]


def main(args: Sequence[str] | None = None) -> int:
    """One of the two; returns 0 done, 2 bad input (one sentence on stderr), as `vit-clt` does."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=("truth", "features"))
    parser.add_argument("--clt", default="out/adding/clt_k16")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--png", action="store_true", help="also a PNG; needs a browser")
    options = parser.parse_args(args)
    try:
        if options.png:
            check_png()
        result = {"truth": Truth, "features": ComputingFeatures}[options.part]
        files, command = study_files(result), f"adding {options.part}"
        folder = OutputFolder(options.out, files, options.overwrite, command=command)
        if options.part == "truth":
            truth(folder, options.png)
        else:
            features(folder, options.png, options.clt)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
