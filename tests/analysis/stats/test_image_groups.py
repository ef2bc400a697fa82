"""Random groups of images: who is in them, their sums, and intervals by drawing them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vit_clt import InputError
from vit_clt.analysis.stats.image_groups import image_groups
from vit_clt.analysis.stats.intervals import bootstrap_means, intervals
from vit_clt.analysis.stats.readings import ReadingSums, gather_readings
from vit_clt.readouts.base import Outcome


@given(n=st.integers(1, 60), most=st.integers(2, 60), seed=st.integers(0, 5))
def test_images_are_dealt_to_groups_of_equal_size(n: int, most: int, seed: int) -> None:
    groups = image_groups(n, most, seed)
    assert len(groups) == min(n, most)
    assert torch.bincount(groups.of).tolist() == groups.sizes.tolist()
    assert groups.sizes.max() - groups.sizes.min() <= 1
    if n <= most:
        assert groups.single
        assert groups.of.tolist() == list(range(n))


def test_the_deal_is_random_and_repeats_with_its_seed() -> None:
    a, same, b = (image_groups(1000, 10, seed).of for seed in (3, 3, 4))
    assert torch.equal(a, same)
    assert not torch.equal(a, b)
    # an ordered data set is not cut into stretches: a group has images of all of it
    assert all((a == g).nonzero()[:, 0].double().std() > 200 for g in range(10))


@given(n=st.integers(1, 40), batch=st.integers(1, 7), most=st.integers(2, 50))
def test_sums_by_group_add_up_to_the_total(n: int, batch: int, most: int) -> None:
    groups = image_groups(n, most)
    values = torch.arange(2.0 * n, dtype=torch.float64).view(2, n)
    sums = torch.zeros(2, len(groups), dtype=torch.float64)
    for first in range(0, n, batch):
        groups.add(sums, values[:, first : first + batch], first, dim=1)
    assert torch.equal(sums.sum(1), values.sum(1))
    for g in range(len(groups)):
        assert torch.equal(sums[:, g], values[:, groups.of == g].sum(1))


def test_a_draw_is_the_mean_over_the_images_of_the_groups_drawn() -> None:
    groups = image_groups(11, 4, 1)
    values = np.random.default_rng(0).random((11, 1))
    sums = torch.zeros(4, 1, dtype=torch.float64)
    groups.add(sums, torch.from_numpy(values), 0)
    drawn = groups.bootstrap_means(sums.numpy(), 5)[0, 0]
    members = [values[(groups.of == g).numpy()] for g in range(4)]
    # the bootstrap's first draw, group by group
    picks = np.random.default_rng(5).integers(0, 4, (100, 4))[0]
    assert drawn == pytest.approx(np.concatenate([members[g] for g in picks]).mean(), rel=1e-12)


def test_draws_of_single_images_are_the_bootstrap_over_images() -> None:
    values = np.random.default_rng(0).random((30, 3))
    assert np.array_equal(image_groups(30).bootstrap_means(values, 2), bootstrap_means(values, 2))


def test_intervals_of_groups_cover_as_often_as_those_of_images() -> None:
    """Classes differ much more than images of a class, and images come class by class."""
    rng = np.random.default_rng(0)
    covered, widths = {"images": 0, "groups": 0}, {"images": [], "groups": []}
    n, n_studies = 800, 120
    for study in range(n_studies):
        classes = np.sort(rng.integers(0, 10, n))
        values = (classes + rng.normal(size=n))[:, None]
        for name, most in (("images", None), ("groups", 100)):
            groups = image_groups(n, most, study)
            sums = torch.zeros(len(groups), 1, dtype=torch.float64)
            groups.add(sums, torch.from_numpy(values), 0)
            [low], [high] = intervals(groups.bootstrap_means(sums.numpy(), study))
            covered[name] += low <= 4.5 <= high
            widths[name].append(high - low)
    assert np.mean(widths["groups"]) == pytest.approx(np.mean(widths["images"]), rel=0.03)
    for count in covered.values():
        assert count / n_studies == pytest.approx(0.95, abs=0.05)


def test_readings_of_groups_have_the_means_of_images() -> None:
    generator = torch.Generator().manual_seed(0)
    n, batch = 90, 16
    sets = [frozenset({i % 3, i % 2}) for i in range(n)]
    batches = {
        name: [
            Outcome(
                torch.rand(size, generator=generator) < 0.7,
                torch.rand(size, generator=generator),
                torch.randint(3, (size,), generator=generator),
            )
            for size in [batch] * (n // batch) + [n % batch]
        ]
        for name in ("a", "b")
    }
    single = gather_readings(batches, 1, sets)
    assert single.groups is None
    found = ReadingSums(["a", "b"], image_groups(n, 30), sets)
    for name, outcomes in batches.items():
        for i, outcome in enumerate(outcomes):
            found.add(name, outcome, i * batch)
    grouped = found.readings(1)
    assert len(grouped.groups) == 30
    assert grouped.n == n
    for measure, means in single.means.items():
        np.testing.assert_allclose(grouped.means[measure], means, rtol=1e-14)
        assert grouped.samples[measure].std(0) == pytest.approx(
            single.samples[measure].std(0), rel=0.4
        )


def test_fewer_than_two_groups_are_refused() -> None:
    with pytest.raises(InputError, match=r"^max_groups is 1; expected at least 2\.$"):
        image_groups(5, 1)
