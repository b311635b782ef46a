"""The figures of LFACT on text: of settings that no sweep compares, and of rows without a value."""

import numpy as np

from experiments import tasks
from experiments.show import language, style

TASK = tasks.known()["wikipedia"]


def summary(*models, **changes):
    """A sweep of preset lfact, one seed a model, with other settings."""
    config = {"preset": "lfact", "mu": 0.1, "combine": "affine", "sequences": 10_240}
    evaluation = {"bits_per_character": 2.9, "bits_per_character_standard_error": 0.01}
    members = [{"model": model, "seed": 0, "evaluation": evaluation} for model in models]
    return {"config": config | changes, "members": members}


def test_settings_of_lfact_are_compared_where_there_are_any(tmp_path):
    path = tmp_path / "settings.png"
    paper = summary("rnn", "act", "lfact")
    alone = [paper, summary("rnn", "lfact", sequences=2560), summary("act", preset="demo")]
    assert not language.settings(TASK, alone, path)
    assert not path.exists()
    assert language.settings(TASK, [*alone, summary("lfact", mu=0.0)], path)
    assert path.exists()
    both = summary("lfact", mu=0.0, combine="mlp")  # two settings at once are no comparison
    assert not language.settings(TASK, [paper, both], tmp_path / "none.png")


def test_a_curve_keeps_its_last_value_through_rows_without_one():
    curves = ([1.0, 2.0, None], [3.0, 4.0, 5.0])
    members = [{"curve": {"step": [80, 160, 200], "score": values}} for values in curves]
    steps, mean = style.mean_curve(members, "score")
    np.testing.assert_array_equal(steps, [80, 160, 200])
    np.testing.assert_allclose(mean, [2.0, 3.0, 3.5])
