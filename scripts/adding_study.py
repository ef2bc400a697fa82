"""Where does the adding model add? The whole study of docs/results/adding.md: `make adding`.

First the truth without a CLT (probes, ablations of MLPs and of attention), then CLTs and per-layer
transcoders at k = 4, 8, 16, 32 and what each says: scores, cascade, ablation of sources, audit,
features that compute. Every step is a `vit-clt` command, or one of scripts/adding_parts.py, into a
folder of its own below --out; two run at a time. Killed, it goes on where it was: a finished step
has its metrics.json, a training goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

K = (4, 8, 16, 32)
MAIN_K = 16
N_FEATURES = 512
N_TRAIN, N_TEST = 10_000, 2_000
PARTS, PARTS_FILE = ("truth", "features"), Path(__file__).with_name("adding_parts.py")
TRAINING = ["--train-limit", str(N_TRAIN), "--epochs", "3", "--lr", "2e-3"]


@dataclass(frozen=True)
class Step:
    """One command, its folder, and the steps it waits for."""

    name: str
    args: list[str]
    after: list[str] = field(default_factory=list)


def steps(out: Path) -> list[Step]:
    """The study in order; of steps that are free to start, the first goes first."""
    measured = ["--data", "adding", "--limit", str(N_TEST)]
    clt = str(out / f"clt_k{MAIN_K}")
    plan = [
        _training(f"{kind}_k{k}", kind, k) for k in (MAIN_K, 4, 8, 32) for kind in ("clt", "plt")
    ]
    main = [f"clt_k{MAIN_K}"]
    audit = ["audit", "--clt", clt, *measured, *TRAINING, "--resume"]
    # the two longest go first
    plan[1:1] = [Step("audit", audit, main), Step("features", ["features", "--clt", clt], main)]
    plan.append(Step("truth", ["truth"]))
    ablated = {
        "mlp_resample": ["--site", "mlp", "--fill", "resample"],
        "attn_mean": ["--site", "attn", "--fill", "mean"],
        "attn_resample": ["--site", "attn", "--fill", "resample"],
        "mlp_mean_cls": ["--ablated", "cls"],
        "mlp_mean_patch": ["--ablated", "patch"],
    }
    for name, args in ablated.items():
        plan.append(Step(name, ["causal", "--model", "adding", *measured, *args]))
    for k in K:
        of_k = [f"clt_k{k}"]
        given = ["--clt", str(out / f"clt_k{k}"), *measured]
        plan.append(Step(f"scores_k{k}", ["contributions", *given], of_k))
        # effects by mean ablation of MLPs, and whether this CLT's C ranks layers alike
        plan.append(Step(f"mlp_mean_k{k}", ["causal", *given], of_k))
        rows = ["--tokens", "all"] if k != MAIN_K else []
        plan.append(Step(f"cascade_k{k}", ["cascade", *given, *rows], of_k))
        plan.append(Step(f"ablate_k{k}", ["ablate", *given], of_k))
    trained = [f"{kind}_k{k}" for k in K for kind in ("clt", "plt")]
    others = [str(out / f"clt_k{k}") for k in K if k != MAIN_K]
    args = ["reconstruct", "--clt", clt, *measured, "--compare", *others]
    plan.append(Step("reconstruct", args, [f"clt_k{k}" for k in K]))
    args = ["fidelity", *measured, "--clts", *(str(out / name) for name in trained)]
    plan.append(Step("fidelity", args, trained))
    return plan


def _training(name: str, kind: str, k: int) -> Step:
    args = ["train", "--model", "adding", "--data", "adding", "--limit", str(N_TRAIN)]
    args += ["--n-features", str(N_FEATURES), "--k", str(k), *TRAINING[2:], "--resume"]
    return Step(name, args + ([] if kind == "clt" else ["--no-cross-layer"]))


def run(step: Step, out: Path) -> float:
    """Run a step to its end; returns its seconds. What it prints goes to NAME.log.

    Raises:
        CalledProcessError: the step failed; its output is the last line of the log.
    """
    folder = out / step.name
    fresh = [] if "--resume" in step.args else ["--overwrite"]
    program = ["-m", "vit_clt"] if step.name not in PARTS else [str(PARTS_FILE)]
    command = [sys.executable, *program, *step.args, "--out", str(folder), *fresh]
    start = time.perf_counter()
    with (out / f"{step.name}.log").open("w") as log:
        done = subprocess.run(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    if done.returncode:
        last = (out / f"{step.name}.log").read_text().strip().splitlines()[-1:]
        raise subprocess.CalledProcessError(done.returncode, command, "".join(last))
    return time.perf_counter() - start


def is_finished(step: Step, out: Path) -> bool:
    """Whether the step has written its last file."""
    return (out / step.name / "metrics.json").is_file()


def main() -> None:
    """Run what is missing, two steps at a time."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/adding"))
    parser.add_argument("--only", nargs="*", help="these steps and no others")
    options = parser.parse_args()
    names = {step.name for step in steps(options.out)}
    if unknown := sorted(set(options.only or ()) - names):
        parser.error(f"only names {unknown[0]}; expected some of {', '.join(sorted(names))}")
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"out is {options.out}, a file; expected a folder")
    options.out.mkdir(parents=True, exist_ok=True)
    plan = [s for s in steps(options.out) if options.only is None or s.name in options.only]
    finished = {s.name for s in steps(options.out) if is_finished(s, options.out)}
    waiting = [step for step in plan if step.name not in finished]
    running: dict[Future[float], str] = {}
    bar = tqdm(total=len(plan), initial=len(plan) - len(waiting), desc="steps")
    with ThreadPoolExecutor(2) as pool:
        while waiting or running:
            free = [step for step in waiting if finished.issuperset(step.after)]
            for step in free[: 2 - len(running)]:
                running[pool.submit(run, step, options.out)] = step.name
                waiting.remove(step)
            if not running:
                bar.close()
                missing = {name for step in waiting for name in step.after} - finished
                parser.error(f"only names steps that wait for {', '.join(sorted(missing))}")
            bar.set_postfix_str(", ".join(running.values()))
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                try:
                    seconds = future.result()
                except subprocess.CalledProcessError as error:
                    bar.close()
                    print(f"step {name} failed: {error.output}", file=sys.stderr)
                    sys.exit(2 if error.returncode == 2 else 1)
                finished.add(name)
                bar.update()
                bar.write(f"{name}: {seconds:.0f} s", file=sys.stderr)
    bar.close()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"CPU time of these steps: {(used.ru_utime + used.ru_stime) / 60:.1f} min")


if __name__ == "__main__":
    main()
