"""The text task: windows, the split, and files of every kind, good and bad."""

import bz2
import gzip
import importlib.util
import lzma
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from actjax.tasks import text

WORDS = b"the quick brown fox jumps over the lazy dog. " * 50


@pytest.fixture
def corpus():
    return np.frombuffer(WORDS, np.uint8)


def test_windows_are_pieces_of_the_text_and_targets_the_next_bytes(corpus):
    batch = text.sample(jax.random.key(0), 64, text=jnp.asarray(corpus), window=20)
    indices = text.sample(
        jax.random.key(0), 64, text=jnp.asarray(corpus), window=20, encoding="index"
    )
    np.testing.assert_array_equal(batch.inputs.argmax(-1), indices.inputs)
    np.testing.assert_array_equal(batch.inputs.sum(-1), 1)
    for inputs, targets in zip(
        np.asarray(indices.inputs), np.asarray(indices.targets), strict=True
    ):
        piece = bytes([*inputs.tolist(), targets[-1]])
        assert piece in WORDS and bytes(targets.tolist()) == piece[1:]


def test_every_start_is_drawn_the_last_included():
    symbols = jnp.arange(6, dtype=jnp.uint8)
    batch = text.sample(jax.random.key(0), 500, text=symbols, window=3, encoding="index")
    assert set(np.asarray(batch.inputs[:, 0]).tolist()) == {0, 1, 2}
    assert int(batch.targets.max()) == 5


def test_the_held_out_split_is_never_drawn(corpus):
    # the training split is marked by bytes below 128 and the held-out split by those above
    marked = np.arange(4000, dtype=np.uint32)
    training, held_out = text.split((marked % 128).astype(np.uint8), 0.25)
    held_out = held_out + 128
    assert training.size == 3000 and held_out.size == 1000
    draw = jax.jit(
        lambda key: text.sample(key, 256, text=jnp.asarray(training), window=10, encoding="index")
    )
    for seed in range(20):
        batch = draw(jax.random.key(seed))
        assert int(batch.inputs.max()) < 128 and int(batch.targets.max()) < 128
    whole = np.concatenate([training, held_out])
    assert (whole[:3000] < 128).all() and (whole[3000:] >= 128).all()


def test_windows_for_evaluation_predict_each_byte_once(corpus):
    batch = text.windows(corpus, 7, encoding="index")
    predicted = np.asarray(batch.targets).ravel()
    np.testing.assert_array_equal(predicted, corpus[1 : 1 + predicted.size])
    assert corpus.size - 1 - predicted.size < 7


def test_plain_and_packed_files_give_the_same_bytes(tmp_path):
    files = {"a.xml": WORDS, "a.bz2": bz2.compress(WORDS), "no_suffix": gzip.compress(WORDS)}
    files |= {"a.txt": lzma.compress(WORDS)}
    for name, packed in files.items():
        (tmp_path / name).write_bytes(packed)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("folder/enwik8", WORDS)
    for name in [*files, "a.zip"]:
        assert text.read(tmp_path / name).tobytes() == WORDS


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "got .*corpus': No such file"),
        (b"", "got .*corpus', .*empty"),
        (bz2.compress(b""), "got .*corpus', .*empty"),
        (bz2.compress(WORDS)[:-20], "whole.*, got .*corpus', .*truncated or damaged"),
        (gzip.compress(WORDS)[:-20], "whole.*, got .*corpus', .*truncated or damaged"),
        (lzma.compress(WORDS)[:-20], "whole.*, got .*corpus', .*truncated or damaged"),
        (b"PK\x03\x04 and no more", "whole.*, got .*corpus', .*truncated or damaged"),
        (b"7z\xbc\xaf\x27\x1c\0\4", "bzip2, gzip, xz or zip, got .*corpus'"),
    ],
    ids=["missing", "empty", "empty-bz2", "cut-bz2", "cut-gzip", "cut-xz", "cut-zip", "7z"],
)
def test_a_file_that_cannot_serve_is_refused_in_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "corpus"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^(data file|path) must .*{sentence}"):
        text.read(path)


def test_a_text_packed_by_zstd_is_read_where_python_can_and_refused_elsewhere(tmp_path):
    path = tmp_path / "text.zst"
    empty_frame = bytes.fromhex("28b52ffd2000010000")
    if importlib.util.find_spec("compression"):
        path.write_bytes(importlib.import_module("compression.zstd").compress(WORDS))
        assert text.read(path).tobytes() == WORDS
    else:
        path.write_bytes(empty_frame)
        with pytest.raises(ValueError, match=r"bzip2, gzip, xz or zip, got .*text\.zst'"):
            text.read(path)


def test_a_zip_of_several_files_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a", WORDS)
        archive.writestr("b", WORDS)
    with pytest.raises(ValueError, match="it holds 2 files where one is expected"):
        text.read(tmp_path / "two.zip")


def test_a_text_shorter_than_a_window_is_refused(corpus):
    with pytest.raises(ValueError, match=r"text .*11"):
        text.sample(jax.random.key(0), 2, text=jnp.asarray(corpus[:10]), window=10)
    with pytest.raises(ValueError, match=r"held_out .*1"):
        text.split(corpus, 1.0)
