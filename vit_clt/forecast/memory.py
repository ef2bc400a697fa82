"""The memory of this process: what it has taken, what it has now, and what it may still take."""

from __future__ import annotations

import resource
from pathlib import Path

import psutil
import torch


def peak_memory(device: str) -> int:
    """Bytes of `device` that this process has taken at most so far."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_memory() -> int:
    """Bytes of the machine's memory that this process has now."""
    return int(psutil.Process().memory_info().rss)


def available_memory() -> int:
    """Bytes that this process may still take, within the limit of its container."""
    return min(psutil.virtual_memory().available, *cgroup_room(Path("/")))


def cgroup_room(root: Path) -> list[int]:
    """Bytes left under each memory limit of this process; /proc and /sys lie in `root`."""
    room = [2**62]
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return room
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit, used, idle = "", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, limit, used, idle = (
                "memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        else:
            continue
        top = root / "sys/fs/cgroup" / base
        # the groups above set limits too; in a container the path may be the host's, and then only
        # the top folder exists
        group = Path(path.lstrip("/"))
        for folder in (top / group, *(top / above for above in group.parents)):
            try:
                most = (folder / limit).read_text().strip()
                now = int((folder / used).read_text())
                stat = dict(
                    line.split() for line in (folder / "memory.stat").read_text().splitlines()
                )
            except OSError:
                continue
            if most != "max":
                # pages of files that nobody uses are given back when memory runs short
                room.append(max(0, int(most) - now + int(stat.get(idle, 0))))
    return room
