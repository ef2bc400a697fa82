"""The quality race's contestants of decode-clt (curt-tigges/crosslayer-coding)."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from quality_task import Batches, Recorder, Task, after_every_step, versions
from torch import Tensor


def decode_clt(task: Task, *, recipe: bool, our_rate: bool) -> None:
    """curt-tigges/crosslayer-coding: its trainer with BatchTopK, then its thresholds.

    Args:
        task: what is trained.
        recipe: inputs and outputs standardised entry by entry, AuxK and AdamW as in its tutorial.
            False: scaled to a mean norm of sqrt(d_model), without AuxK and weight decay, as ours.
        our_rate: use our learning rate instead of the tutorial's; the schedule is the same.
    """
    import clt.training.trainer as trainers
    from clt.config import CLTConfig, TrainingConfig
    from clt.training.data.base_store import BaseActivationStore

    batches = Batches(task.batches)
    layers, d = batches.layers, batches.d_model
    statistics = standardisation(batches) if recipe else normalisation(batches)
    mean_in, std_in, mean_tg, std_tg = (
        statistics[n] for n in ("mean_in", "std_in", "mean_tg", "std_tg")
    )

    class Store(BaseActivationStore):
        apply_normalization = True

        def __init__(self) -> None:
            self.step = 0
            self.mean_tg = {l: mean_tg[l][None] for l in range(layers)}
            self.std_tg = {l: std_tg[l][None] for l in range(layers)}

        def get_batch(self) -> Any:
            if self.step == batches.steps:
                raise StopIteration
            x, y = batches[self.step]
            self.step += 1
            x = (x - mean_in[:, None]) / std_in[:, None]
            y = (y - mean_tg[:, None]) / std_tg[:, None]
            return dict(enumerate(x)), dict(enumerate(y))

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...

        def close(self) -> None: ...

    own: dict[str, Any] = {"normalization_method": "none", "optimizer": "adam"}
    if recipe:
        own = {
            "normalization_method": "mean_std",
            "optimizer": "adamw",
            "optimizer_beta2": 0.98,
            "aux_loss_factor": 1 / 32,
            "dead_feature_window": max(1, batches.steps // 5),
        }
    settings = TrainingConfig(
        learning_rate=task.lr if our_rate else 1e-4,
        training_steps=batches.steps,
        seed=task.seed,
        train_batch_size_tokens=batches.rows,
        activation_path="batches",
        activation_dtype="float32",
        sparsity_lambda=0.0,
        sparsity_c=0.0,
        preactivation_coef=0,
        apply_sparsity_penalty_to_batchtopk=False,
        lr_scheduler="linear_final20",
        lr_scheduler_params={"decay_start_frac": 1 - task.decay} if our_rate else None,
        eval_interval=10**9,
        checkpoint_interval=10**9,
        **own,
    )
    config = CLTConfig(
        num_features=task.features,
        num_layers=layers,
        d_model=d,
        activation_fn="batchtopk",
        batchtopk_k=layers * task.k,
        clt_dtype="float32",
    )
    trainers.create_activation_store = lambda **_: Store()
    recorder = Recorder(task, batches.steps)
    recorder.start()
    trainer = trainers.CLTTrainer(config, settings, str(Path(task.out) / "trainer"), "cpu")
    model = trainer.model

    def outputs(x: Tensor) -> Tensor:
        as_x = {name: value.to(x.dtype)[:, None] for name, value in statistics.items()}
        inputs = (x - as_x["mean_in"]) / as_x["std_in"]
        y_hat = torch.stack(list(model(dict(enumerate(inputs))).values()))
        return y_hat * as_x["std_tg"] + as_x["mean_tg"]

    with after_every_step(partial(recorder.after_step, outputs)):
        trainer.train()
    own_l0 = active(model, Store(), layers)
    model.estimate_theta_posthoc(iter(Store()), num_batches=min(50, batches.steps))
    calibrate(model, Store(), own_l0)
    model.double()
    for module in model.modules():
        if hasattr(module, "dtype"):
            module.dtype = torch.float64
    weights = dict(model.named_parameters()) | {n: v.double() for n, v in statistics.items()}
    recorder.finish(versions("decode-clt"), weights, outputs)


def standardisation(batches: Batches) -> dict[str, Tensor]:
    """Mean and standard deviation of every entry of x and y over the rows, "layer d_model"."""
    found = {}
    for name, which in (("in", 0), ("tg", 1)):
        sums = torch.zeros(2, batches.layers, batches.d_model, dtype=torch.float64)
        for step in range(batches.steps):
            values = batches[step][which].double()
            sums += torch.stack([values.sum(1), values.square().sum(1)])
        mean, square = sums / (batches.steps * batches.rows)
        found[f"mean_{name}"] = mean.float()
        # its store adds 1e-6 too
        found[f"std_{name}"] = ((square - mean.square()).sqrt() + 1e-6).float()
    return found


def normalisation(batches: Batches) -> dict[str, Tensor]:
    """As `standardisation`, but what brings the mean norm of a row to sqrt(d_model)."""
    found = {}
    for name, which in (("in", 0), ("tg", 1)):
        norm = sum(
            batches[step][which].double().norm(dim=-1).mean(1) for step in range(batches.steps)
        )
        assert isinstance(norm, Tensor)
        std = norm / batches.steps / math.sqrt(batches.d_model)
        found[f"std_{name}"] = std[:, None].expand(-1, batches.d_model).float().contiguous()
        found[f"mean_{name}"] = torch.zeros(batches.layers, batches.d_model)
    return found


def active(model: Any, store: Any, layers: int, n_batches: int = 10) -> Tensor:
    """Active features a row of every layer, as trained."""
    counts = torch.zeros(layers, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(n_batches):
            codes = model.get_feature_activations(store.get_batch()[0])
            counts += torch.stack([(codes[l] != 0).sum(1).double().mean() for l in range(layers)])
    return counts / n_batches


@torch.no_grad()
def calibrate(model: Any, store: Any, l0: Tensor, n_batches: int = 10) -> None:
    """Scale the thresholds of each layer so that as many features are active as in training.

    The package's conversion script recommends this step; it is not part of the wheel.
    """
    inputs = [store.get_batch()[0] for _ in range(n_batches)]
    for l, target in enumerate(l0.tolist()):
        a = torch.cat([model.get_preactivations(each[l], l) for each in inputs])
        theta = model.log_threshold[l].exp()
        low, high = -7.0, 7.0
        for _ in range(40):
            middle = (low + high) / 2
            found = float((a >= theta * math.exp(middle)).sum(1).double().mean())
            low, high = (middle, high) if found > target else (low, middle)
        model.log_threshold[l] += middle
