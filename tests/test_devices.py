"""The natural paths on a GPU that is not there: CUDA's rules are kept, results equal the CPU's."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from builders import random_clt, tiny_clip, tiny_timm
from oracles.pretend_gpu import PretendTensor, pretend_gpu
from torch import Tensor
from torchvision.transforms import Compose, Normalize

from vit_clt import (
    AbsTopK,
    BatchTopK,
    CLTConfig,
    CrossLayerTranscoder,
    InputError,
    JumpReLU,
    ReLUTopK,
    TrainConfig,
    ZeroShot,
    analysis,
    train,
)
from vit_clt.analysis.auditing.controls import ShuffledSources
from vit_clt.analysis.auditing.ridge import ridge_transcoder
from vit_clt.analysis.retrieval.index import RetrievalIndex
from vit_clt.cli import main
from vit_clt.data.images import TensorImages
from vit_clt.hooks import Edit, HookedViT, replace_mlps, replacement_hooks, steer
from vit_clt.interchange.circuit_tracer import export_circuit_tracer, import_circuit_tracer
from vit_clt.kernels import bags
from vit_clt.training.objective import Objective
from vit_clt.transcoder.sparsifiers import JumpReLUTraining, TopKTraining

SPARSIFIERS = [ReLUTopK(k=5), AbsTopK(k=5), JumpReLU(theta=0.3)]
CLASSES = ["red thing", "green thing", "blue thing"]
N = 12


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    # kernels need a real GPU; what stands around them is the same with torch's own products
    monkeypatch.setattr(bags, "has_kernels", lambda table: False)
    with pretend_gpu() as device:
        yield device


def tiny() -> HookedViT:
    """With what pictures and prompts need."""
    steps = Compose([Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))])

    def tokens(texts: list[str]) -> Tensor:
        return torch.tensor([[(7 * i + len(t)) % 63 for i in range(8)] for t in texts])

    return HookedViT(tiny_clip(), preprocess=steps, tokenizer=tokens)


def noise(n: int = N, seed: int = 3) -> TensorImages:
    generator = torch.Generator().manual_seed(seed)
    left = torch.arange(n) % 2
    right = torch.arange(n) // 2 % 2
    found = TensorImages(
        torch.randn(n, 3, 12, 12, generator=generator), left + right, CLASSES, name="noise"
    )
    found.factors = {"left": left, "right": right}
    found.batch_size = 8
    return found


# ---- the pretend GPU itself -----------------------------------------------------------------


def test_devices_do_not_mix(gpu: torch.device) -> None:
    x, here = torch.randn(3, 4, device="cuda"), torch.ones(3, 4)
    assert (x.device, x.is_cuda, here.is_cuda) == (gpu, True, False)
    refused: list[Callable[[], object]] = [
        lambda: x + here,
        lambda: here.add_(x),
        lambda: here.sum().add_(x.sum()),
        lambda: x @ here.T,
        lambda: torch.cat([x, here]),
        lambda: torch.stack([x.sum(), here.sum()]),
        lambda: x.index_select(0, torch.tensor([0])),
        lambda: x.gather(1, torch.tensor([[0]])),
        lambda: here[torch.tensor([0], device=gpu)],
        lambda: x.index_put_((torch.tensor([0]),), here[:1]),
        lambda: x.__setitem__(torch.tensor([True, False, True]), here[:2]),
        lambda: x.index_fill_(0, torch.tensor([0]), 1),
        lambda: torch.randn(3, device=gpu, generator=torch.Generator()),
    ]
    for call in refused:
        with pytest.raises(RuntimeError, match="device"):
            call()
    with pytest.raises(RuntimeError, match="not implemented"):
        x.long() @ x.long().T
    for call in (x.numpy, lambda: np.asarray(x), lambda: np.array([x.sum()])):
        with pytest.raises(TypeError, match="numpy"):
            call()


def test_what_cuda_allows(gpu: torch.device) -> None:
    here = torch.arange(12.0).view(3, 4)
    x = here.to(gpu)
    index, mask = torch.tensor([0, 2]), torch.tensor([True, False, True])
    allowed = {
        "0-dim": (x * torch.tensor(2.0), here * 2),
        "where": (torch.where(x > 3, x, 0.0), here.where(here > 3, torch.tensor(0.0))),
        "indices": (x[index], here[index]),
        "list": (x[[0, 2]], here[index]),
        "mask": (x[mask], here[mask]),
        "composite": (torch.nn.functional.one_hot(x.long()), here.long()),
        "like": (torch.zeros_like(x) + x.new_tensor([1.0]), torch.ones(3, 4)),
        "copied": (torch.zeros(3, 4, device=gpu).copy_(here), here),
        "cosine": (torch.cosine_similarity(x, x + 1), torch.cosine_similarity(here, here + 1)),
    }
    allowed["composite"] = (allowed["composite"][0].argmax(-1), here.long())
    for found, expected in allowed.values():
        assert found.device == gpu
        assert found.cpu().equal(expected)
    x[index], x[mask], x[0], x[[1]] = 0, 1, here[1], 7
    assert x[1].tolist() == [7] * 4
    assert x[0].cpu().equal(here[1])
    assert x[2].tolist() == [1] * 4
    assert x.to(gpu) is x
    assert type(x.cpu()) is type(torch.ones(3)) is type(torch.full((3,), x.sum())) is Tensor
    assert float(x.sum()) == x.sum().item() == x.cpu().sum()


def test_a_planted_bug_is_found(gpu: torch.device) -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, a: Tensor, device: object) -> Tensor:
            ctx.device = device
            return 2 * a

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
            return 2 * grads[0] + torch.zeros(3, device=ctx.device), None

    x = torch.ones(3, device=gpu, requires_grad=True)
    Doubled.apply(x, x.device).sum().backward()
    assert isinstance(x.grad, PretendTensor)
    assert x.grad.tolist() == [2, 2, 2]
    with pytest.raises(RuntimeError, match="same device"):
        Doubled.apply(x, None).sum().backward()


def test_training_a_layer_gives_the_cpus_numbers_and_nothing_is_left_behind() -> None:
    def losses(device: str) -> list[float]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layer = torch.nn.Linear(4, 5)
        layer = layer.to(device)
        optimiser = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
        found = []
        for _ in range(3):
            loss = layer(torch.ones(2, 4, device=device)).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            found.append(loss.item())
        assert str(layer.weight.device).startswith(device)
        return found

    expected = losses("cpu")
    before = torch.cuda.is_available, torch.cuda.synchronize, Tensor.to, torch.tensor
    with pretend_gpu():
        assert torch.cuda.is_available()
        assert losses("cuda") == expected
    assert (torch.cuda.is_available, torch.cuda.synchronize, Tensor.to, torch.tensor) == before
    assert not torch.__future__.get_overwrite_module_params_on_conversion()


# ---- the CLT --------------------------------------------------------------------------------


@pytest.mark.parametrize("cross_layer", [True, False], ids=["cross", "per layer"])
@pytest.mark.parametrize("sparsifier", [*SPARSIFIERS, BatchTopK(k=5)], ids=lambda s: s.name)
def test_a_step(gpu: torch.device, sparsifier: Any, cross_layer: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clt = CrossLayerTranscoder(CLTConfig(4, 16, 24, sparsifier, cross_layer=cross_layer))
        x, y = torch.randn(2, 4, 12, 16)
        dead = torch.rand(4, 24) < 0.5
    start = {name: value.clone() for name, value in clt.state_dict().items()}
    top_k = not isinstance(sparsifier, JumpReLU)

    def step(device: Any, backend: Any) -> dict[str, Tensor]:
        clt = CrossLayerTranscoder(CLTConfig(4, 16, 24, sparsifier, cross_layer=cross_layer))
        clt.load_state_dict(start)
        clt.to(device).backend = backend
        options = TopKTraining(aux_k=4) if top_k else JumpReLUTraining()
        objective = Objective(clt, TrainConfig(sparsity=options))
        at = [value.to(device) for value in (x, y, torch.ones(12))]
        found = objective(*at, 12.0, 12, 1e-3, dead.to(device) if top_k else None)
        optimiser = torch.optim.AdamW(clt.parameters(), fused=True)
        found["total"].backward()
        optimiser.step()
        with torch.no_grad():
            codes = clt.encode(at[0])
            found |= dict(clt.named_parameters()) | {
                "codes": codes.to_dense(),
                "terms": clt.contributions(codes, target=-1),
                "l0": codes.l0(),
                "row": codes.at_rows(slice(0, 1)).to_dense() if codes.tokens else codes.l0(),
                "norms": clt.decoder_norms(),
            }
        return {name: value.detach().cpu() for name, value in found.items() if name != "backend"}

    expected = step("cpu", "dense")
    for backend in ("dense", "auto", "sparse"):
        found = step(gpu, backend)
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("sparsifier", "cached"), list(zip(SPARSIFIERS, (False, True, False), strict=True)), ids=str
)
def test_training(gpu: torch.device, sparsifier: Any, cached: bool, tmp_path: Path) -> None:
    settings = TrainConfig(epochs=1, batch_size=40, log_every=1, val_images=1, accumulate=2)
    if cached:  # no trial of back ends
        settings = replace(settings, backend="sparse")

    def trained(device: str, images: str) -> tuple[CrossLayerTranscoder, list[Any]]:
        folder = tmp_path / device
        data, log = TensorImages(noise().images.to(images)), []
        options: dict[str, Any] = {"checkpoints": folder / "checkpoints", "progress": False}
        if cached:
            options["cache"] = folder / "cache"
        vit, config = tiny().to(device), CLTConfig(4, 16, 24, sparsifier)
        count = iter(range(100))
        with pytest.raises(Exception, match="stopped"):
            train(vit, data, config, settings, should_stop=lambda: next(count) == 1, **options)
        clt = train(vit, data, config, settings, resume=True, on_log=log.append, **options)
        clt.save_pretrained(folder / "clt")
        return clt, [record["loss"] for record in log if "loss" in record]

    expected, losses = trained("cpu", "cpu")
    clt, found = trained("cuda", "cuda")
    assert clt.b_enc.device == gpu
    assert found == pytest.approx(losses, rel=1e-4)
    again = CrossLayerTranscoder.from_pretrained(tmp_path / "cuda" / "clt")
    for name, value in again.state_dict().items():
        assert value.equal(clt.state_dict()[name].cpu())
        torch.testing.assert_close(value, expected.state_dict()[name], rtol=1e-3, atol=1e-5)


# ---- hooks ----------------------------------------------------------------------------------


def test_hooks(gpu: torch.device) -> None:
    def passes(device: str) -> dict[str, Tensor]:
        vit, images = tiny().to(device), noise(4).images.to(device)
        clt = random_clt(vit).to(device)
        out, cache = vit.run_with_cache(images)
        found = {"out": out, "x": cache["blocks.2.ln2.hook_out"]}
        for name, options in (
            ("stream", {}),
            ("teacher", {"inputs": "teacher"}),
            ("error", {"error_node": True, "tokens": "patch"}),
        ):
            with replace_mlps(vit, clt, layers=[1, 3], **options):
                found[name] = vit(images)
            hooks = replacement_hooks(clt, layers=[1, 3], clean=cache, **options)
            found[f"{name} hooks"] = vit.run_with_hooks(images, fwd_hooks=hooks)
            assert found[name].equal(found[f"{name} hooks"])
        with steer(vit, clt, Edit(1, (2, 5), "clamp", 3.0, (0, 2))):
            found["steered"] = vit(images)
        return {name: value.detach().cpu() for name, value in found.items()}

    expected = passes("cpu")
    for name, value in passes("cuda").items():
        torch.testing.assert_close(value, expected[name])


def test_a_model_with_registers_and_rotary_positions(gpu: torch.device) -> None:
    def numbers(device: str) -> list[pd.DataFrame]:
        vit = HookedViT(tiny_timm("vit_small_patch16_dinov3")).to(device)
        clt, images = random_clt(vit).to(device), torch.linspace(-2, 2, 2304).view(3, 3, 16, 16)
        found: list[Any] = [vit(images.to(device))]
        with replace_mlps(vit, clt, layers=[1], tokens="register"):
            found.append(vit(images.to(device)))
        with steer(vit, clt, Edit(1, 2, "clamp", 3.0, "register")):
            found.append(vit(images.to(device)))
        found.append(analysis.reconstruction(vit, clt, images).frame)
        moments = analysis.contribution_moments(vit, clt, images)
        found.append(analysis.score(moments, tokens="register").to_frame())
        found.append(analysis.feature_statistics(vit, clt, images).to_frame())
        vit.set_use_attn_pattern(True)
        return _numbers([*found, vit(images.to(device))])

    for found, expected in zip(numbers("cuda"), numbers("cpu"), strict=True):
        pd.testing.assert_frame_equal(found, expected, rtol=1e-3, atol=1e-5)


# ---- studies --------------------------------------------------------------------------------

Study = Callable[[HookedViT, CrossLayerTranscoder, TensorImages, ZeroShot], Any]
GROUP, OTHER = {3: torch.arange(8)}, {3: torch.arange(8, 16)}


def _ablations(vit: HookedViT, clt: CrossLayerTranscoder, data: Any, zs: Any) -> list[float]:
    return [
        analysis.keep_sources(vit, clt, data, zs, sources=[1, 2], target=3, fill=fill).loss
        for fill in ("zero", "mean", "resample")
    ]


def _graph(vit: HookedViT, clt: CrossLayerTranscoder, data: Any, zs: Any) -> list[pd.DataFrame]:
    study = analysis.graph_study(
        vit, clt, data, zs, [5], interventions=2, max_nodes=8, norms="held"
    )
    tables = [study.summary(), study.nodes(), study.edges(), study.carried()]
    return [*tables, study.to_frame(), study.interventions()]


def _heads(vit: HookedViT, clt: CrossLayerTranscoder, data: Any, zs: Any) -> list[pd.DataFrame]:
    study = analysis.head_study(vit, clt, data, zs, sample=5, fill="resample", strongest=2, drawn=1)
    return [study.to_frame(), study.by_layer(), study.ablations.to_frame()]


def _scores(vit: HookedViT, clt: CrossLayerTranscoder, data: Any, zs: Any) -> list[pd.DataFrame]:
    moments = analysis.contribution_moments(vit, clt, data)
    # which terms it permutes goes by their last bits
    assert analysis.contribution_moments(vit, ShuffledSources.of(clt), data).n_images == len(data)
    kinds = ("centred", "loo")
    return [analysis.score(moments, kind=kind, tokens="patch").to_frame() for kind in kinds]


def _retrieval(vit: HookedViT, clt: CrossLayerTranscoder, data: Any, zs: Any) -> pd.DataFrame:
    index = RetrievalIndex.build(vit, clt, data, tokens=("cls", "patch"))
    queries = index.describe(noise(6, seed=9))
    return analysis.class_consistency(index, queries, k=3).to_frame()


def _exported(vit: HookedViT, clt: CrossLayerTranscoder, data: Any, zs: Any) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        after = export_circuit_tracer(clt, folder, vit=vit, data=data)
        again = import_circuit_tracer(folder, vit=vit)
    thresholds = after.state_dict()["log_theta"]
    assert again.state_dict()["log_theta"].equal(thresholds.cpu())
    return [thresholds]


STUDIES: Mapping[str, Study] = {
    "ablations": _ablations,
    "cascade": lambda *a: analysis.cascade(*a, first_layers=[0, 2]).to_frame(),
    "causal": lambda vit, clt, data, zs: analysis.causal_effects(
        vit, data, zs, fill="resample"
    ).to_frame(),
    "decoder norms": lambda vit, clt, data, zs: analysis.decoder_norms(clt).to_frame(),
    "export": _exported,
    "faithfulness": lambda *a: analysis.surrogate_faithfulness(*a).to_frame(),
    "features": lambda vit, clt, data, zs: analysis.feature_statistics(
        vit, clt, data, zs=zs, effect_images=9, top=4
    ).to_frame(),
    "graph": _graph,
    "heads": _heads,
    "high-norm rows": lambda vit, clt, data, zs: analysis.high_norm_rows(vit, clt, data).frame,
    "keep sets": lambda *a: analysis.keep_sets(*a, k=1).to_frame(),
    "probes": lambda vit, clt, data, zs: analysis.probes(
        vit, noise(30, seed=8), data, factors=["left"], layers=[3]
    ).to_frame(),
    "reconstruction": lambda vit, clt, data, zs: analysis.reconstruction(vit, clt, data).frame,
    "retrieval": _retrieval,
    "ridge": lambda vit, clt, data, zs: ridge_transcoder(vit, data).clt.b_dec,
    "scores": _scores,
    "selectivity": lambda vit, clt, data, zs: (
        analysis.selectivity(vit, clt, data, region="patch", draws=20).frame
    ),
    "steering search": lambda *a: analysis.steering_search(*a, 1, top=1, n_random=1).to_frame(),
    "suppression": lambda *a: analysis.suppress(*a, GROUP, randoms=[OTHER]).to_frame(),
    "clamping": lambda *a: analysis.clamp(
        *a, GROUP, mean_data=noise(8, seed=5), randoms=[OTHER], region="cls"
    ).to_frame(),
    "zero shot": lambda vit, clt, data, zs: (
        zs.read(vit(data.images.to(zs.weights.device)), data.labels).loss
    ),
}


def _numbers(found: Any) -> list[Any]:
    """What a study found, as tables on the CPU."""
    if isinstance(found, list):
        return [each for part in found for each in _numbers(part)]
    if isinstance(found, Tensor):
        return [pd.DataFrame(found.detach().cpu().reshape(len(found), -1).numpy())]
    if isinstance(found, pd.DataFrame):
        return [found.reset_index(drop=True)]
    return [pd.DataFrame([found] if isinstance(found, dict) else {"value": [found]})]


def test_a_clt_on_another_device_than_its_vit_is_refused(gpu: torch.device) -> None:
    vit = tiny()
    clt = random_clt(vit)
    vit.to(gpu)
    with pytest.raises(InputError) as refused:
        analysis.contribution_scores(vit, clt, noise())
    assert str(refused.value) == (
        f'the CLT is on cpu; expected cuda:0, where model {vit.cfg.model} is: clt.to("cuda:0").'
    )


@pytest.mark.parametrize("name", STUDIES)
def test_studies(gpu: torch.device, name: str) -> None:
    def study(device: str) -> list[pd.DataFrame]:
        vit = tiny().to(device)
        clt = random_clt(vit).to(device)
        with torch.no_grad():
            return _numbers(STUDIES[name](vit, clt, noise(), ZeroShot(vit, CLASSES, "single")))

    for found, expected in zip(study("cuda"), study("cpu"), strict=True):
        pd.testing.assert_frame_equal(found, expected, rtol=1e-3, atol=1e-5)


def test_a_command(gpu: torch.device, digits_clt: Path, tmp_path: Path) -> None:
    args = ["cascade", "--clt", str(digits_clt), "--limit", "6", "--layers", "0,7"]
    tables = []
    for device in ("cuda", "cpu"):
        out = tmp_path / device
        assert main([*args, "--tokens", "cls", "--device", device, "--out", str(out)]) == 0
        tables.append(pd.read_csv(out / "cascade.csv"))
    pd.testing.assert_frame_equal(*tables, rtol=1e-3, atol=1e-5)
