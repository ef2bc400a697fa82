"""The package as others install it: a wheel of the tracked files, run outside of the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from builders import random_clt, tiny_clip

from vit_clt.hooks import HookedViT

ROOT = Path(__file__).parents[1]
PARTS = ("vit_clt/", "hooks/", "analysis/", "pyproject.toml", "README.md", "LICENSE")
IMPORT_ALL_THEN_RUN = """
import importlib, pkgutil, sys, vit_clt
from vit_clt.cli import main
assert vit_clt.__file__.startswith({place!r}), vit_clt.__file__
for found in pkgutil.walk_packages(vit_clt.__path__, "vit_clt."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
sys.exit(main(["weights", "--clt", "clt", "--out", "out"]))
"""


def run(command: list[str | Path], folder: Path) -> str:
    """Standard output of a command that must succeed."""
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if int(version("setuptools").split(".")[0]) < 77:
        pytest.skip("setuptools is older than the build asks for, and nothing is downloaded here")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # in a copy: a build leaves folders behind, and must not find those of an earlier one
    for name in run(["git", "ls-files"], ROOT).splitlines():
        if name.startswith(PARTS):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run([*build, "--no-index", "--wheel-dir", folder, source], folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.mark.slow
def test_a_wheel_holds_the_data_of_the_package(wheel: Path):
    held = set(zipfile.ZipFile(wheel).namelist())
    data = [
        *(ROOT / "vit_clt/paper").glob("*.csv"),
        *(ROOT / "vit_clt/teachers").glob("*/*"),
        *(ROOT / "analysis/reporting/front").iterdir(),
        *(ROOT / "analysis/viewer/front").iterdir(),
        ROOT / "vit_clt/py.typed",
    ]
    names = [
        path.relative_to(ROOT).as_posix()
        for path in data
        if path.is_file() and path.suffix != ".pyc"
    ]
    expected = {name if name.startswith("vit_clt") else f"vit_clt/{name}" for name in names}
    assert len(expected) > 8
    assert expected <= held
    assert not [name for name in held if name.startswith(("tests/", "notebooks/", "benchmarks/"))]


@pytest.mark.slow
def test_an_installed_wheel_runs_outside_the_checkout(wheel: Path, tmp_path: Path):
    place = tmp_path / "venv"
    venv.create(place, symlinks=True, with_pip=False)
    python, script = place / "bin/python", place / "bin/vit-clt"
    pip = [sys.executable, "-m", "pip", "--python", python, "--quiet"]
    run([*pip, "install", "--no-deps", "--no-index", wheel], tmp_path)
    # after the venv's own packages, those of this environment; its editable install is not a path
    (packages,) = (place / "lib").glob("python*/site-packages")
    others = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "others.pth").write_text("\n".join(others))

    assert "weights" in run([script, "--help"], tmp_path)
    random_clt(HookedViT(tiny_clip())).save_pretrained(tmp_path / "clt")
    # in one process: importing torch takes each several seconds
    run([python, "-c", IMPORT_ALL_THEN_RUN.format(place=str(place))], tmp_path)
    assert (tmp_path / "out/weights.csv").exists()
