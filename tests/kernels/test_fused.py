"""JumpReLU's pointwise arithmetic: gradients, and the same numbers compiled."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import torch

from vit_clt import CLTConfig, CrossLayerTranscoder, InputError, JumpReLU, ReLUTopK
from vit_clt.kernels import jump as fused
from vit_clt.training.trainer import check_run
from vit_clt.transcoder.sparsifier_options import JumpReLUTraining
from vit_clt.transcoder.sparsifiers.jumprelu import tanh_penalty
from vit_clt.transcoder.train_config import TrainConfig


def test_the_penalty_has_the_gradients_of_its_equation():
    torch.manual_seed(0)
    clt = CrossLayerTranscoder(CLTConfig(2, 4, 6, JumpReLU(theta=0.3)), backend="dense").double()
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    parameters = [*clt.W_enc, clt.b_enc, *clt.W_dec]
    found = torch.autograd.grad(tanh_penalty(clt, clt.encode(x), 4.0), parameters)
    expected = x.new_zeros(())
    for s in range(2):
        a = x[s] @ clt.W_enc[s].T + clt.b_enc[s]
        z = torch.where(a > clt.log_theta[s].exp(), a, 0)
        norm = clt.W_dec[s].square().sum((0, 2)).sqrt()
        expected = expected + torch.tanh(4.0 * norm * z).sum()
    assert expected > 0
    for mine, oracle in zip(found, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(mine, oracle, rtol=1e-10, atol=1e-12)
    z = torch.rand(5, 6, dtype=torch.float64, requires_grad=True)
    norm = torch.rand(6, dtype=torch.float64, requires_grad=True)
    one = torch.ones((), dtype=torch.float64)
    sums = torch.autograd.grad(fused.tanh_sum(z, norm, 4.0), (z, norm))
    for mine, oracle in zip(fused.tanh_sum_gradients(one, z, norm, 4.0), sums, strict=True):
        torch.testing.assert_close(mine, oracle, rtol=1e-10, atol=1e-12)


COMPILED = """
import torch
from vit_clt.kernels import jump as fused
from vit_clt.transcoder.sparsifiers import JumpReLUTraining
torch.manual_seed(0)
a, grad, theta = torch.randn(9, 7), torch.randn(9, 7), torch.rand(7)
def run(rows):
    return fused.jump_gradients(grad[:rows].clone(), a[:rows].clone(), theta, 0.5)
for rows in (9, 5):
    plain = run(rows)
    with fused.fusion(True):
        compiled = run(rows)
    for mine, oracle in zip(compiled, plain, strict=True):
        torch.testing.assert_close(mine, oracle)
from torch._dynamo.utils import counters
assert counters["stats"]["unique_graphs"] == 1, counters["stats"]  # for both sizes
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler for torch.compile")
def test_a_compiled_function_gives_the_same_numbers_whatever_the_rows():
    # in a process of its own: run-time type checks cannot be compiled
    run = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_a_compiler_that_fails_is_told_in_one_sentence(monkeypatch):
    def broken(*args: object, **options: object) -> None:
        raise torch._dynamo.exc.TorchDynamoException("no compiler\nand a long trace")

    monkeypatch.setattr(torch, "compile", lambda function, **options: broken)
    with pytest.raises(InputError) as error, fused.fusion(True):
        fused._fused(lambda: None)()
    assert str(error.value).startswith("compile is on, but torch.compile failed (no compiler);")


def test_top_k_refuses_to_be_compiled(tiny_vit):
    cfg = tiny_vit.cfg
    config = CLTConfig(cfg.n_layers, cfg.d_model, 32, ReLUTopK(4))
    with pytest.raises(InputError) as error:
        check_run(
            tiny_vit,
            config,
            TrainConfig(sparsity=JumpReLUTraining(compile=True)),
            100,
            torch.device("cpu"),
        )
    assert str(error.value).startswith("sparsity is a JumpReLUTraining; expected TopKTraining")
