"""The quality race's contestants of lm-saes (OpenMOSS Language-Model-SAEs, now llamascopium)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from quality_task import Batches, Recorder, Task, after_every_step, versions
from torch import Tensor


def lm_saes(task: Task, *, recipe: bool, our_rate: bool) -> None:
    """OpenMOSS Language-Model-SAEs: its initialiser and its trainer.

    Args:
        task: what is trained.
        recipe: train as its example of a CLT does: L k features of all layers together, ranked by
            activation times decoder norm, from half of all features down to that; converted to
            JumpReLU by its own function. False: k features a layer, as ours.
        our_rate: use our learning rate and schedule instead of the example's.
    """
    from llamascopium import CLTConfig
    from llamascopium.initializer import Initializer, InitializerConfig
    from llamascopium.trainer import Trainer, TrainerConfig
    from llamascopium.utils.topk_to_jumprelu_conversion import topk_to_jumprelu_conversion

    batches = Batches(task.batches)
    layers, d = batches.layers, batches.d_model
    names_in, names_out = ([f"{end}.{l}" for l in range(layers)] for end in ("in", "out"))
    config = CLTConfig(
        d_model=d,
        expansion_factor=task.features / d,
        hook_points_in=names_in,
        hook_points_out=names_out,
        act_fn="layertopk" if recipe else "topk",
        top_k=layers * task.k if recipe else task.k,
        sparsity_include_decoder_norm=recipe,
        device="cpu",
        dtype=torch.float32,
    )

    class Stream:
        def __iter__(self) -> Iterator[dict[str, Tensor]]:
            for step in range(batches.steps):
                x, y = batches[step]
                ones = torch.ones(batches.rows, dtype=torch.long)
                yield (
                    {name: x[l] for l, name in enumerate(names_in)}
                    | {name: y[l] for l, name in enumerate(names_out)}
                    | {"tokens": ones, "mask": ones}
                )

    # its example warms up for 1,000 of 195,312 steps
    warmup = max(1, round(batches.steps * 1000 / 195_312))
    rate: dict[str, Any] = {"lr": 5e-5, "lr_warm_up_steps": warmup}
    if our_rate:
        rate = {
            "lr": task.lr,
            "lr_warm_up_steps": task.warmup,
            "lr_cool_down_steps": task.decay,
            "lr_end_ratio": 0.0,
        }
    annealing: dict[str, Any] = {"k_warmup_steps": 0}
    if recipe:
        annealing = {
            "initial_k": layers * task.features // 2,
            "k_warmup_steps": 1.0,
            "k_schedule_type": "exponential",
            "k_exponential_factor": 30,
        }
    trainer = Trainer(
        TrainerConfig(
            amp_dtype=torch.float32,
            optimizer_class="adam",
            total_training_tokens=batches.steps * batches.rows,
            skip_metrics_calculation=True,
            n_checkpoints=0,
            exp_result_path=str(Path(task.out) / "trainer"),
            **rate,
            **annealing,
        )
    )
    recorder = Recorder(task, batches.steps)
    recorder.start()
    torch.manual_seed(task.seed)
    initializer = Initializer(
        InitializerConfig(grid_search_init_norm=False, init_encoder_with_decoder_transpose=False)
    )
    clt = initializer.initialize_sae_from_config(config, activation_stream=Stream())
    norms = clt.dataset_average_activation_norm
    scale_x, scale_y = (
        torch.tensor([math.sqrt(d) / norms[name] for name in names], dtype=torch.float64)
        for names in (names_in, names_out)
    )

    def outputs(x: Tensor) -> Tensor:
        batch = clt.normalize_activations({name: x[l] for l, name in enumerate(names_in)})
        y_hat: Tensor = clt.decode(clt.encode(clt.prepare_input(batch)[0]))
        return y_hat / scale_y.to(x.dtype)[:, None, None]

    def at_its_k(x: Tensor) -> Tensor:
        annealed, clt.current_k = clt.current_k, config.top_k
        y_hat = outputs(x)
        clt.current_k = annealed
        return y_hat

    with after_every_step(partial(recorder.after_step, at_its_k)):
        trainer.fit(clt, Stream())
    clt.set_current_k(config.top_k)
    if recipe:
        clt = topk_to_jumprelu_conversion(clt, Stream())
    clt.double()
    clt.cfg.dtype = torch.float64
    weights = dict(clt.named_parameters()) | {"scale_x": scale_x, "scale_y": scale_y}
    recorder.finish(versions("llamascopium"), weights, outputs)
