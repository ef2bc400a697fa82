"""The tables of the quality race: at equal steps, at equal time, and the margins."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

Record = dict[str, Any]
FVU = {"fvu_cls": "FVU CLS", "fvu_patch": "FVU patches"}


def print_tables(records: Sequence[Record]) -> None:
    """Print all of them; every cell is the mean over seeds, and the spread of them in brackets."""
    by_name: dict[str, list[Record]] = {}
    for record in records:
        by_name.setdefault(record["name"], []).append(record)
    print_steps(by_name)
    ours = by_name.get("ours")
    if ours:
        budget = mean(seconds(each) for each in ours)
        print_time(by_name, budget)
        print_margins(by_name, budget)


def print_steps(by_name: dict[str, list[Record]]) -> None:
    """All contestants after the same steps, and what the readout says of the floors."""
    print("\n| after all steps | learning rate | seeds | CPU s | FVU CLS | FVU patches ", end="")
    print("| as trained: CLS, patches | L0 | dead | all MLPs replaced: top-1 %, loss ", end="")
    print("| difference of conversion |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name, each in by_name.items():
        own = [r["curve"][-1] for r in each]
        trained = ", ".join(cell(own, kind) for kind in FVU) if "fvu_cls" in own[0] else "-"
        replaced = [r["readings"]["replaced"] for r in each]
        conversion = max(r.get("conversion", 0.0) for r in each)
        print(
            f"| {name} | {rate(each)} | {len(each)} | {spread([seconds(r) for r in each], 1)} "
            f"| {cell(each, 'fvu_cls')} | {cell(each, 'fvu_patch')} | {trained} "
            f"| {spread([r['l0'] for r in each], 1)} "
            f"| {cell(each, 'dead', 2)} | {spread([100 * r['top1'] for r in replaced], 2)}, "
            f"{cell(replaced, 'loss', 4)} | {conversion:.0e} |"
        )
    readings = next(iter(by_name.values()))[0]["readings"]
    for version in ("unaltered", "mean", "zero"):
        reading = readings[version]
        print(f"{version}: {100 * reading['top1']:.2f} / {reading['loss']:.4f}")


def print_time(by_name: dict[str, list[Record]], budget: float) -> None:
    """Every contestant where it first has had as much CPU time as ours in all."""
    print(f"\n| at {budget:.1f} CPU s | its CPU s there | steps | FVU CLS | FVU patches |")
    print("|---|---|---|---|---|")
    for name, each in by_name.items():
        points = [at(record["curve"], budget) for record in each]
        if "fvu_cls" in points[0]:
            print(
                f"| {name} | {cell(points, 'cpu', 1)} | {points[0]['step']} "
                f"| {cell(points, 'fvu_cls')} | {cell(points, 'fvu_patch')} |"
            )


def print_margins(by_name: dict[str, list[Record]], budget: float) -> None:
    """The best peer's FVU over ours, beside what two seeds differ by."""
    peers = {n: each for n, each in by_name.items() if n.split(",")[0] not in ("ours", "ridge")}
    if not peers:
        return
    print("\n| | ours | best peer | peer / ours | seeds differ by, ours and peer |")
    print("|---|---|---|---|---|")
    for when in ("equal steps", "equal time"):
        for kind, title in FVU.items():
            values = {
                name: [(r if when == "equal steps" else at(r["curve"], budget))[kind] for r in each]
                for name, each in {"ours": by_name["ours"], **peers}.items()
            }
            mine = values.pop("ours")
            best = min(values, key=lambda name: mean(values[name]))
            theirs = values[best]
            print(
                f"| {title}, {when} | {mean(mine):.4f} | {mean(theirs):.4f}, {best} "
                f"| {mean(theirs) / mean(mine):.2f} | {width(mine):.4f}, {width(theirs):.4f} |"
            )


def rate(records: Sequence[Record]) -> str:
    """The learning rate, where it is ours."""
    own = records[0]["name"].endswith("its settings")
    rates = {record["our_rate"]["lr"] for record in records if "our_rate" in record}
    return "its own" if own else ", ".join(f"{lr:g}" for lr in sorted(rates)) or "-"


def seconds(record: Record) -> float:
    """CPU seconds of the whole training."""
    return float(record["curve"][-1]["cpu"])


def at(curve: Sequence[Record], budget: float) -> Record:
    """The first point that took at least so many CPU seconds, else the last."""
    return next((point for point in curve if point["cpu"] >= budget), curve[-1])


def cell(records: Sequence[Record], name: str, digits: int = 3) -> str:
    """Mean and spread of a value over records."""
    return spread([record[name] for record in records], digits)


def spread(values: Sequence[float], digits: int) -> str:
    """The mean, and in brackets by how much the values differ."""
    text = f"{mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ({width(values):.{digits}f})"


def width(values: Sequence[float]) -> float:
    """The largest value less the smallest."""
    return max(values) - min(values)
