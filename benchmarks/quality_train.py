"""One contestant of the quality race, trained inside the interpreter of its package.

    PYTHON benchmarks/quality_train.py CONTESTANT '{"batches": "...", "seed": 0, ...}'

Peers run their own trainers, models, losses and schedules on batches from a file; a hook after
every optimiser step records y^ of held-out rows while the clock stands. Where each setting comes
from is said in docs/results/quality_race.md. Packages are imported where they are used.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from quality_decode_clt import decode_clt
from quality_lm_saes import lm_saes
from quality_task import Recorder, Task, versions


def ours(task: Task, *, cross_layer: bool = True, as_peers_start: bool = False) -> None:
    """This package's `train`, with an activation store, as the preset says.

    Args:
        task: what is trained.
        cross_layer: False trains a per-layer transcoder.
        as_peers_start: start with drawn weights and biases at zero and weigh all rows alike, as
            lm-saes and decode-clt do.
    """
    from safetensors.torch import load_file

    from vit_clt import CLTConfig, CrossLayerTranscoder, ReLUTopK, TrainConfig, load_data, train
    from vit_clt.hooks import HookedViT

    given = task.ours
    sparsifier = ReLUTopK(task.k)
    settings = TrainConfig.from_json(given["settings"], sparsifier.training)
    if as_peers_start:
        settings = replace(settings, start="drawn", cls_weight=1)
    vit = HookedViT.load(given["model"])
    data = load_data(given["data"], vit=vit, split="train", limit=given["images"])
    config = CLTConfig(
        vit.cfg.n_layers, vit.cfg.d_model, task.features, sparsifier, cross_layer=cross_layer
    )
    recorder = Recorder(task, settings.n_steps(len(data), vit.cfg.n_tokens))
    every, seconds = settings.checkpoint_every, {}
    began = time.process_time()

    def counts() -> bool:
        recorder.step += 1
        if recorder.step % every == 0 or recorder.step == recorder.steps:
            seconds[recorder.step] = time.process_time() - began
        return False

    checkpoints = Path(task.out) / "checkpoints"
    clt = train(
        vit,
        data,
        config,
        settings,
        checkpoints=checkpoints,
        cache=given["cache"],
        should_stop=counts,
        progress=False,
    )
    clt.save_pretrained(Path(task.out) / "clt")
    for step, cpu in seconds.items():
        folder = checkpoints / f"step-{step:08d}"
        then = CrossLayerTranscoder(clt.config)
        then.load_state_dict(load_file(folder / "model.safetensors"))
        scales = load_file(folder / "run.safetensors")
        then.rescale_(scales["scale_x"], scales["scale_y"])
        recorder.record(step, cpu, then)
    recorder.write(versions("vit-clt"))


CONTESTANTS: dict[str, Callable[[Task], None]] = {
    "ours": ours,
    "ours, started as peers": partial(ours, as_peers_start=True),
    "ours, per layer": partial(ours, cross_layer=False),
    "lm-saes, its settings": partial(lm_saes, recipe=True, our_rate=False),
    "lm-saes, its settings at our rate": partial(lm_saes, recipe=True, our_rate=True),
    "lm-saes, our settings": partial(lm_saes, recipe=False, our_rate=True),
    "decode-clt, its settings": partial(decode_clt, recipe=True, our_rate=False),
    "decode-clt, its settings at our rate": partial(decode_clt, recipe=True, our_rate=True),
    "decode-clt, our settings": partial(decode_clt, recipe=False, our_rate=True),
}


def main() -> None:
    """Train one contestant."""
    torch.set_num_threads(1)
    CONTESTANTS[sys.argv[1]](Task(**json.loads(sys.argv[2])))


if __name__ == "__main__":
    main()
