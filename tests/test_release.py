"""What is published agrees with itself: one version everywhere, and a tag that must be it."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

import vit_clt

ROOT = Path(__file__).parents[1]


def test_version_changelog_and_citation_agree():
    released = re.findall(
        r"^## (\S+) - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.M
    )
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert released[0][0] == vit_clt.__version__ == citation["version"]
    assert [date for _, date in released] == sorted((date for _, date in released), reverse=True)
    assert citation["date-released"].isoformat() == released[0][1]


def test_the_release_checks_what_it_publishes():
    workflow = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
    jobs = workflow["jobs"]
    runs = "\n".join(step.get("run", "") for step in jobs["build"]["steps"])
    for part in ("python -m build", "twine check --strict", "vit-clt demo", "GITHUB_REF_NAME"):
        assert part in runs
    assert jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    used = [step["uses"] for job in jobs.values() for step in job["steps"] if "uses" in step]
    assert all(re.fullmatch(r"[\w./-]+@(release/)?v\d+", action) for action in used)
    (tag,) = workflow[True]["push"]["tags"]  # YAML reads the key `on` as true
    assert tag == "v*"
