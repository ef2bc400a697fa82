"""Decoder norms against numpy, and what they must be for weights set by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from builders import random_clt

from vit_clt import CLTConfig, CrossLayerTranscoder, ReLUTopK
from vit_clt.analysis import decoder_norms
from vit_clt.cli import main


def test_norms_equal_numpy(tiny_vit):
    clt = random_clt(tiny_vit, n_features=240)
    found = decoder_norms(clt)
    frame = found.to_frame().set_index(["target", "source"])
    assert len(frame) == 10
    total = np.zeros((4, 4))
    for s in range(4):
        for l in range(s, 4):
            w = clt.W_dec[s][l - s].double().numpy()
            energy = np.sort((w**2).sum(1))
            total[l, s] = energy.sum()
            row = frame.loc[l, s]
            assert row["norm"] == pytest.approx(np.linalg.norm(w), rel=1e-6)
            assert row["rms"] == pytest.approx(np.sqrt(energy.mean()), rel=1e-6)
            concentration = energy.sum() ** 2 / (240 * (energy**2).sum())
            assert row["effective"] == pytest.approx(concentration, rel=1e-6)
            # 1 % of 240 features is 2.4, of which 3 are taken
            assert row["top_1_percent"] == pytest.approx(energy[-3:].sum() / energy.sum(), rel=1e-6)
    for l, s in frame.index:
        row = frame.loc[l, s]
        assert row["source_share"] == pytest.approx(total[l, s] / total[:, s].sum(), rel=1e-6)
        later = total[s + 1 :, s].sum() / total[:, s].sum()
        assert row["cross_layer_of_source"] == pytest.approx(later, rel=1e-6, abs=1e-12)
        earlier = total[l, :l].sum() / total[l].sum()
        assert row["cross_layer_of_target"] == pytest.approx(earlier, rel=1e-6, abs=1e-12)
    above = np.triu_indices(4, 1)
    for matrix in (found.norm, found.rms, found.effective, found.source_share):
        assert matrix[above].isnan().all()


def test_concentration_from_one_feature_to_all():
    clt = CrossLayerTranscoder(CLTConfig(2, 4, 50, ReLUTopK(k=3)))
    clt.W_dec[0].data.fill_(0.5)
    clt.W_dec[1].data.zero_()
    clt.W_dec[1].data[0, 7] = 3
    found = decoder_norms(clt)
    assert found.effective[:, 0].tolist() == pytest.approx([1, 1])
    assert found.top_1_percent[:, 0].tolist() == pytest.approx([1 / 50, 1 / 50])
    assert found.effective[1, 1] == pytest.approx(1 / 50)
    assert found.top_1_percent[1, 1] == 1
    assert found.norm[1].tolist() == pytest.approx([np.sqrt(50), 6])
    assert found.cross_layer_of_source.tolist() == pytest.approx([0.5, 0])
    assert found.cross_layer_of_target.tolist() == pytest.approx([0, 50 / 86])


def test_a_zero_connection_has_no_concentration(tiny_vit):
    clt = random_clt(tiny_vit)
    clt.W_dec[1].data[1].zero_()
    found = decoder_norms(clt)
    assert found.norm[2, 1] == 0
    assert found.effective[2, 1].isnan()
    assert found.top_1_percent[2, 1].isnan()
    assert found.source_share[1:, 1].sum() == pytest.approx(1)


def test_scaling_a_sources_codes_moves_norms_but_no_share_of_that_source(tiny_vit):
    clt = random_clt(tiny_vit)
    x = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(0))
    before, y_hat = decoder_norms(clt), clt(x)
    clt.W_enc[1].data *= 8
    clt.b_enc.data[1] *= 8
    clt.W_dec[1].data /= 8
    after = decoder_norms(clt)
    torch.testing.assert_close(clt(x), y_hat)
    torch.testing.assert_close(after.norm[1:, 1] * 8, before.norm[1:, 1])
    torch.testing.assert_close(after.source_share, before.source_share, equal_nan=True)
    torch.testing.assert_close(after.effective, before.effective, equal_nan=True)
    assert after.cross_layer_of_target[1] > before.cross_layer_of_target[1] + 0.01


def test_figure_shows_the_matrices_and_shares(tiny_vit):
    found = decoder_norms(random_clt(tiny_vit), "toy")
    figure = found.figure()
    *heatmaps, by_source, by_target = figure.data
    for heatmap, matrix in zip(
        heatmaps, (found.rms, found.source_share, found.effective), strict=True
    ):
        np.testing.assert_array_equal(np.array(heatmap.z, dtype=float), matrix)
    assert list(by_source.y) == found.cross_layer_of_source.tolist()
    assert list(by_target.y) == found.cross_layer_of_target.tolist()
    assert "toy, 24 features" in figure.layout.title.text
    assert "no images" in figure.layout.title.text


def test_command_needs_no_images(tmp_path: Path, tiny_vit, capsys):
    clt = random_clt(tiny_vit)
    clt.save_pretrained(tmp_path / "clt")
    out = tmp_path / "weights"
    assert main(["weights", "--clt", str(tmp_path / "clt"), "--out", str(out)]) == 0
    table = pd.read_csv(out / "weights.csv")
    expected = decoder_norms(clt).to_frame()
    pd.testing.assert_frame_equal(table, expected)
    document = json.loads((out / "metrics.json").read_text())
    values = {metric["name"]: metric["value"] for metric in document["metrics"]}
    assert values["cross_layer_of_source_0"] == expected["cross_layer_of_source"].iloc[0]
    assert document["context"]["command"] == "weights"
    assert "one size" in capsys.readouterr().out
