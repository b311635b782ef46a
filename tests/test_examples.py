"""`python -m experiments examples`: what the papers draw of their tasks."""

import matplotlib.pyplot as plt
import pytest

from experiments.__main__ import main
from experiments.show import examples


@pytest.fixture
def texts(monkeypatch):
    """The words of each figure, by the name of its file, as they are saved."""
    found = {}

    def save(figure, path, dpi):
        found[path.stem] = [text.get_text() for text in figure.axes[0].texts]
        figure.savefig(path)
        plt.close(figure)

    monkeypatch.setattr(examples, "save", save)
    return found


def test_every_figure_is_drawn_and_right(tmp_path, texts, capsys):
    assert main(["examples", "--out", str(tmp_path / "figures")]) == 0
    drawn = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert drawn == set(examples.EXAMPLES) and "Graves 16" in capsys.readouterr().out
    # a list of words: the input's cells, its title, the target's cells, its title
    inputs = texts["parity"].index("input vector")
    ones = texts["parity"][:inputs].count("+1")
    assert texts["parity"][inputs + 1] == str(ones % 2)
    numbers = texts["sort"][: texts["sort"].index("inputs: numbers, and the flag of the last one")]
    values = [float(word) for word in numbers[:5]]
    places = [int(word) for word in texts["sort"][len(numbers) + 1 : -1] if word]
    assert [values[place - 1] for place in places] == sorted(values)
    assert texts["repeat"].count("1") >= 5 and texts["logic"].count("inputs: two bits, then gates")


def test_examples_refuse_a_file_for_a_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["examples", "--out", str(tmp_path / "file")]) == 2
    assert "out must be" in capsys.readouterr().err
