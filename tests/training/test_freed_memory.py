"""Freed memory stays in the process inside the context, and goes back at its end."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from contextlib import contextmanager

import pytest
from builders import noise, tiny_clip

from vit_clt import CLTConfig, ReLUTopK, TrainConfig
from vit_clt.data.images import TensorImages
from vit_clt.hooks import HookedViT
from vit_clt.training import freed_memory, trainer

SCRIPT = """
import json, resource
import numpy as np, psutil
from vit_clt.training.freed_memory import freed_memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        np.ones(2**24)  # 128 MB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

found = {"before": faults()}
with freed_memory_kept() as arranged:
    faults()
    found |= {"arranged": arranged, "inside": faults(), "kept": psutil.Process().memory_info().rss}
found |= {"after": faults(), "given_back": psutil.Process().memory_info().rss}
print(json.dumps(found))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_arrays_are_faulted_in_once_and_given_back_at_the_end():
    clean = {k: v for k, v in os.environ.items() if k not in freed_memory._OF_THE_USER}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=clean, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["arranged"]
    # pages may be of 4 KiB or larger; what counts is the ratio
    assert found["inside"] < found["before"] / 20
    assert found["after"] > found["inside"] * 10
    assert found["given_back"] < found["kept"] - 2**26


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(freed_memory, "_glibc", lambda: pytest.fail)
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "0")
    with freed_memory.freed_memory_kept() as arranged:
        assert not arranged


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with freed_memory.freed_memory_kept() as arranged:
        assert not arranged


def test_training_on_a_cpu_keeps_freed_memory(monkeypatch: pytest.MonkeyPatch):
    seen = []

    @contextmanager
    def kept():
        seen.append("in")
        yield True
        seen.append("out")

    monkeypatch.setattr(trainer, "freed_memory_kept", kept)
    vit = HookedViT(tiny_clip())
    images = TensorImages(noise(4, 3, 12, 12).float())
    trainer.train(
        vit, images, CLTConfig(4, 16, 8, ReLUTopK(k=2)), TrainConfig(epochs=1), progress=False
    )
    assert seen == ["in", "out"]
