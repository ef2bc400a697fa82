"""What this process may still take."""

from __future__ import annotations

from pathlib import Path

from vit_clt.forecast.memory import cgroup_room


def cgroup(root: Path, listed: str, folder: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/cgroup").write_text(listed)
    (root / "sys/fs/cgroup" / folder).mkdir(parents=True)
    for name, text in files.items():
        (root / "sys/fs/cgroup" / folder / name).write_text(text)
    return root


def test_a_containers_limit_counts_in_both_versions_of_cgroups(tmp_path):
    # version 2: unlimited itself, in a group that is limited
    files = {"memory.max": "max\n", "memory.current": "50\n", "memory.stat": "inactive_file 5\n"}
    v2 = cgroup(tmp_path / "v2", "0::/job/step\n", "job/step", files)
    for name, text in {"memory.max": "1000\n", "memory.current": "400\n"}.items():
        (v2 / "sys/fs/cgroup/job" / name).write_text(text)
    (v2 / "sys/fs/cgroup/job/memory.stat").write_text("anon 1\ninactive_file 30\n")
    assert min(cgroup_room(v2)) == 1000 - 400 + 30
    # version 1: the path is the host's, the limit lies at the top of what the container sees
    files = {
        "memory.limit_in_bytes": "700\n",
        "memory.usage_in_bytes": "900\n",
        "memory.stat": "inactive_file 1\ntotal_inactive_file 250\n",
    }
    v1 = cgroup(tmp_path / "v1", "4:cpu,memory:/host/job\n1:cpu:/\n", "memory", files)
    assert min(cgroup_room(v1)) == 50
    assert min(cgroup_room(tmp_path)) == 2**62
