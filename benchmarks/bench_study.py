"""What studies cost together and one by one, and with their passes kept by an earlier run.

    python benchmarks/bench_study.py [--model ViT-B-32] [--images 256] [--out FILE]

The same commands on the same images of CIFAR-10 (from VIT_CLT_DATA) with a random CLT, in child
processes: each alone; all by `vit-clt study`, for which the ViT runs once; and each alone with
--cache, whose passes were kept before. All their files are compared byte by byte.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import LoadWatch, finish

from vit_clt import CLTConfig, CrossLayerTranscoder, ReLUTopK
from vit_clt.hooks import HookedViT

STUDIES = ("contributions", "ablate", "reconstruct", "features")


def cost(command: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of a `vit-clt` command."""
    wall, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "vit_clt", *command], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - wall, cpu


def _different(one: Path, other: Path) -> list[Path]:
    """Files that are in one of these folders alone, or have other contents."""
    files = [{p.relative_to(folder) for p in folder.rglob("*.*")} for folder in (one, other)]
    both = files[0] & files[1]
    unequal = {f for f in both if not filecmp.cmp(one / f, other / f, shallow=False)}
    return [other / file for file in sorted((files[0] ^ files[1]) | unequal)]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--pretrained", default="random")
    parser.add_argument("--clt", type=Path, help="default: a random one of 3,072 features a layer")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--studies", nargs="*", default=STUDIES)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    data = f"cifar10:{os.environ['VIT_CLT_DATA']}/data/cifar10"
    watch = LoadWatch()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        clt, model = options.clt, []
        if clt is None:
            vit = HookedViT.load(options.model, options.pretrained)
            config = CLTConfig(vit.cfg.n_layers, vit.cfg.d_model, 3072, ReLUTopK(32))
            clt = folder / "clt"
            CrossLayerTranscoder(config).save_pretrained(clt)
            model = ["--model", options.model, "--pretrained", options.pretrained]
            del vit
        given = ["--clt", str(clt), *model, "--data", data, "--limit", str(options.images)]
        kept = ["--cache", str(folder / "cache")]
        alone = {s: cost([s, *given, "--out", str(folder / s)]) for s in options.studies}
        together = cost(["study", *options.studies, *given, "--out", str(folder / "together")])
        first = options.studies[0]
        cost([first, *given, *kept, "--out", str(folder / "first")])
        cached = {
            s: cost([s, *given, *kept, "--out", str(folder / f"{s}-kept")]) for s in options.studies
        }
        differ = [
            str(file)
            for s in options.studies
            for other in (folder / "together" / s, folder / f"{s}-kept")
            for file in _different(folder / s, other)
        ]
    for study in options.studies:
        wall, cpu = alone[study]
        print(
            f"{study:14} alone {wall:6.1f} s, {cpu:6.1f} CPU s; passes kept before "
            f"{cached[study][0]:6.1f} s, {cached[study][1]:6.1f} CPU s "
            f"({cpu / cached[study][1]:.2f} times)"
        )
    wall, cpu = (sum(each[i] for each in alone.values()) for i in (0, 1))
    print(
        f"all: one by one {wall:.1f} s, {cpu:.1f} CPU s; together {together[0]:.1f} s, "
        f"{together[1]:.1f} CPU s: {wall / together[0]:.2f} times in wall, "
        f"{cpu / together[1]:.2f} in CPU seconds"
    )
    print("files that differ: " + (", ".join(differ) or "none"))
    result = {"images": options.images, "alone": alone, "together": together, "cached": cached}
    if differ:
        sys.exit(1)
    finish(result | {"model": options.model, "differ": differ}, watch, options.out)


if __name__ == "__main__":
    main()
