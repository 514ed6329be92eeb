"""What is made of activations, against values worked out another way; no model is run here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vsteer.datasets.readers import read_contrast
from vsteer.errors import DataError, SteeringFault, UsageError
from vsteer.vectors.activations import Activations
from vsteer.vectors.diagnostics import tables as diagnose
from vsteer.vectors.diagnostics.rounding import warning
from vsteer.vectors.extract import Extraction, Label
from vsteer.vectors.members import members, parse_token
from vsteer.vectors.vector import Origin, SteeringVector

LAYERS, HIDDEN = 2, 6


def made(streams: NDArray[np.float64], letters: Sequence[str] = (), paired: bool = True) -> Extraction:
    """An extraction of these [layer, member, hidden]; the even members are positive."""
    activations = Activations(*streams.shape)
    # in no particular order, as an engine's results come
    for member in np.random.default_rng(0).permutation(streams.shape[1]):
        activations.put(int(member), streams[:, member].astype(np.float32))
    labels = [
        Label(f"item {m // 2}", m % 2 == 0, letters[m] if letters else "") for m in range(streams.shape[1])
    ]
    return Extraction(activations, labels, paired)


def random_streams(members: int, seed: int = 0, hidden: int = HIDDEN) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((LAYERS, members, hidden)).astype(np.float32).astype(np.float64)


def test_mean_difference_is_the_mean_of_the_pairs_differences() -> None:
    streams = random_streams(40)
    with made(streams) as extraction:
        vector = extraction.vector("v", "mean_diff")
        for layer in range(LAYERS):
            expected = np.mean([streams[layer, i] - streams[layer, i + 1] for i in range(0, 40, 2)], axis=0)
            np.testing.assert_allclose(vector.directions[layer], expected, rtol=1e-6, atol=1e-7)
            lengths = [np.sqrt((row**2).sum()) for row in streams[layer]]
            assert vector.stream_norms[layer] == pytest.approx(sum(lengths) / 40)
            along = [row @ expected / np.sqrt(expected @ expected) for row in streams[layer]]
            spread = np.sqrt(sum((one - sum(along) / 40) ** 2 for one in along) / 40)
            assert vector.deviations[layer] == pytest.approx(spread)


def test_difference_in_means_of_sets_of_different_size() -> None:
    streams = random_streams(5)
    activations = Activations(*streams.shape)
    for member in range(5):
        activations.put(member, streams[:, member].astype(np.float32))
    labels = [Label(str(m), m < 2, "") for m in range(5)]
    with Extraction(activations, labels, paired=False) as extraction:
        assert extraction.pairs == 2
        vector = extraction.vector("v", "dim")
        for layer in range(LAYERS):
            expected = streams[layer, :2].sum(axis=0) / 2 - streams[layer, 2:].sum(axis=0) / 3
            np.testing.assert_allclose(vector.directions[layer], expected, rtol=1e-6, atol=1e-7)


def test_pca_is_the_first_right_singular_vector_of_the_differences() -> None:
    streams = random_streams(60, hidden=30)
    streams[:, 0::2, 3] -= 2.5
    with made(streams) as extraction:
        vector = extraction.vector("v", "pca")
        for layer in range(LAYERS):
            differences = (streams[layer, 0::2] - streams[layer, 1::2]).astype(np.float64)
            first = np.linalg.svd(differences)[2][0]
            mean = differences.mean(axis=0)
            np.testing.assert_allclose(vector.directions[layer], first * (first @ mean), atol=1e-5)
            # the sign is the mean's
            assert vector.directions[layer] @ mean > 0


def test_shuffled_labels_keep_pairs_together_and_differ_by_seed() -> None:
    streams = random_streams(24)
    with made(streams) as extraction:
        found = extraction.shuffled(19, seed=1)
        again = extraction.shuffled(19, seed=1)
        other = extraction.shuffled(19, seed=2)
    assert len(found) == 19
    differences = streams[0, 0::2] - streams[0, 1::2]
    for index in range(19):
        # the one combination of signs that gives it: twelve unknowns, and each must be +1 or -1
        np.testing.assert_array_equal(found[index][0], again[index][0])
        assert not np.allclose(found[index][0], other[index][0])
    # six dimensions cannot name twelve signs, but a data set of fewer pairs than dimensions can
    small = random_streams(8, hidden=9)
    with made(small) as extraction:
        for vector in extraction.shuffled(6, seed=3):
            differences = small[0, 0::2] - small[0, 1::2]
            signs = np.linalg.lstsq(differences.T, 4 * vector[0], rcond=None)[0]
            np.testing.assert_allclose(np.abs(signs), 1, atol=1e-6)


def test_shuffled_sets_keep_their_sizes() -> None:
    streams = np.zeros((1, 5, 5))
    streams[0] = np.eye(5)
    activations = Activations(*streams.shape)
    for member in range(5):
        activations.put(member, streams[:, member].astype(np.float32))
    labels = [Label(str(m), m < 2, "") for m in range(5)]
    with Extraction(activations, labels, paired=False) as extraction:
        for vector in extraction.shuffled(7, seed=0):
            assert sorted(vector[0]) == pytest.approx([-1 / 3, -1 / 3, -1 / 3, 1 / 2, 1 / 2])


def layer_row(extraction: Extraction, layer: int = 0) -> dict[str, float]:
    vector = extraction.vector("v", "mean_diff" if extraction.paired else "dim")
    return diagnose.layer_table(extraction, vector)[layer]


def test_pair_agreement_is_the_mean_cosine_of_different_pairs() -> None:
    streams = random_streams(30)
    streams[:, 0::2] += 0.4
    with made(streams) as extraction:
        differences = [streams[0, i] - streams[0, i + 1] for i in range(0, 30, 2)]
        cosines = [
            a @ b / np.sqrt((a @ a) * (b @ b))
            for i, a in enumerate(differences)
            for j, b in enumerate(differences)
            if i != j
        ]
        assert layer_row(extraction)["pair_agreement"] == pytest.approx(np.mean(cosines), abs=1e-6)


def test_separation_and_split_half_of_classes_that_are_apart_and_that_are_not() -> None:
    apart, alike = random_streams(400), random_streams(400, seed=5)
    apart[:, 0::2, 0] += 4.0  # four standard deviations on one axis
    with made(apart) as extraction:
        row = layer_row(extraction)
        assert row["class_separation"] == pytest.approx(4.0, abs=0.4)
        assert row["split_half"] > 0.98
        assert row["norm"] == pytest.approx(4.0, abs=0.3)
        assert row["norm_over_stream"] == pytest.approx(row["norm"] / row["stream_norm"])
        assert row["depth"] == 0.5
    with made(alike) as extraction:
        row = layer_row(extraction)
        # held out: in sample, noise alone would look separated
        assert abs(row["class_separation"]) < 0.4
        assert abs(row["split_half"]) < 0.6
        assert abs(row["pair_agreement"]) < 0.05


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_is_the_error_that_rounded_sums_make(dtype: str, paired: bool) -> None:
    """A stream of sums as a model makes it, rounded and not: how far apart the differences of means are."""
    rng = np.random.default_rng(0)
    layers, members, hidden = 12, 60, 400
    exact = torch.from_numpy(rng.standard_normal((members, hidden)))
    exact[::2] += 0.05 * torch.from_numpy(rng.standard_normal(hidden))
    rounded = exact = exact.to(getattr(torch, dtype)).double()
    of_layer: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    for _ in range(layers):
        for _ in ("attention", "mlp"):
            added = torch.from_numpy(0.1 * rng.standard_normal((members, hidden)))
            exact = exact + added
            rounded = (rounded + added).to(getattr(torch, dtype)).double()
        of_layer.append((exact.numpy(), rounded.numpy()))
    with made(np.stack([found for _, found in of_layer]), paired=paired) as extraction:
        vector = extraction.vector("v", "mean_diff" if paired else "dim", Origin(dtype=dtype))
        rows = diagnose.layer_table(extraction, vector)
    for row, (true, _) in zip(rows, of_layer, strict=True):
        difference = true[::2].mean(axis=0) - true[1::2].mean(axis=0)
        error = np.linalg.norm(vector.directions[row["layer"]] - difference) / np.linalg.norm(difference)
        assert error / 2 < row["rounding"] < error * 2


def test_much_rounding_is_warned_of() -> None:
    table = [{"layer": layer, "rounding": share} for layer, share in enumerate((0.3, 0.86, 0.1, 0.09, None))]
    assert warning("warm", table, "bfloat16") == (
        "bfloat16's rounding may be 86% of the vector warm at layer 1 and 10% or more at layers 0, 2: "
        "the classes hardly differ there"
    )
    assert warning("warm", table[3:], "bfloat16") is None


@pytest.mark.parametrize(("balanced", "expected"), [(True, 0.0), (False, 1.0)])
def test_the_letters_share_of_a_direction(balanced: bool, expected: float) -> None:
    """The letter moves axis 1, the behaviour axis 0; where every positive answer is an A, they are one."""
    streams = np.zeros((1, 40, HIDDEN))
    letters = []
    for member in range(40):
        positive, pair = member % 2 == 0, member // 2
        a = positive if not balanced or pair % 2 == 0 else not positive
        letters.append("A" if a else "B")
        streams[0, member, 1] = 3.0 if a else -3.0
        if balanced:
            streams[0, member, 0] = 2.0 if positive else -2.0
    with made(streams, letters) as extraction:
        assert layer_row(extraction)["letter_share"] == pytest.approx(expected, abs=1e-9)


def test_principal_components_of_the_activations() -> None:
    rng = np.random.default_rng(2)
    streams = rng.standard_normal((1, 80, 20)) * 0.1
    streams[0, 0::2, 4] += 5.0
    streams[0, :, 7] += rng.standard_normal(80) * 1.5
    with made(streams) as extraction:
        rows = diagnose.pca_table(extraction)
    centred = streams[0] - streams[0].mean(axis=0)
    left, size, _ = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    for column, index in (("pc1", 0), ("pc2", 1)):
        found = np.array([row[column] for row in rows])
        expected = left[:, index] * size[index]
        assert abs(np.corrcoef(found, expected)[0, 1]) == pytest.approx(1, abs=1e-6)
        assert found.std() == pytest.approx(expected.std(), rel=1e-5)
    assert np.mean([row["pc1"] for row in rows if row["positive"]]) > 2


def test_cosines_between_layers() -> None:
    vector = SteeringVector(
        "v",
        {0: np.array([1, 0], np.float32), 3: np.array([1, 1], np.float32), 4: np.array([0, -2], np.float32)},
    )
    found = {(row["layer"], row["other_layer"]): row["cosine"] for row in diagnose.cosine_table(vector)}
    assert len(found) == 9
    assert found[0, 3] == pytest.approx(np.sqrt(0.5))
    assert found[3, 4] == pytest.approx(-np.sqrt(0.5))
    assert found[4, 4] == pytest.approx(1)


def test_a_member_that_is_missing_or_comes_twice_is_a_fault() -> None:
    with Activations(1, 2, 3) as activations:
        activations.put(0, np.zeros((1, 3), np.float32))
        with pytest.raises(SteeringFault, match="1 of 2 members"):
            list(activations.chunks(0))
        with pytest.raises(SteeringFault, match="came twice"):
            activations.put(0, np.zeros((1, 3), np.float32))


@pytest.mark.parametrize("text", ["", "first", "0", "3", "1.5"])
def test_a_token_is_a_word_or_a_negative_offset(text: str) -> None:
    with pytest.raises(UsageError, match="unknown token"):
        parse_token(text)


class Words:
    """A tokenizer whose tokens are words and brackets, and whose template is Llama 2's in shape."""

    chat_template = "chat"
    all_special_tokens = ("<s>",)

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def apply_chat_template(
        self, messages: Sequence[dict[str, str]], tokenize: bool, add_generation_prompt: bool
    ) -> str:
        text = " ".join(message["content"] for message in messages)
        return f"<s>[INST] {text} [/INST]"

    def __call__(self, text: str, **_: object) -> dict[str, list[object]]:
        found = list(re.finditer(r"\s?(?:[A-Za-z']+|<s>|[^\sA-Za-z]|\n)", text))
        ids = [self.known.setdefault(match.group(), len(self.known)) for match in found]
        return {"input_ids": list(ids), "offset_mapping": [match.span() for match in found]}


def pairs_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "pairs.json"
    path.write_text(text)
    return str(path)


def test_the_answers_letter_is_the_token_in_which_a_pair_differs(tmp_path: Path) -> None:
    path = pairs_file(
        tmp_path,
        '[{"question": "Rain?\\n\\nChoices:\\n(A) Yes\\n(B) No", "answer_matching_behavior": " (B)", '
        '"answer_not_matching_behavior": "(A)"}]',
    )
    tokenizer = Words()
    positive, negative = members(tokenizer, read_contrast(path), "answer")
    words = {number: word for word, number in tokenizer.known.items()}
    assert [words[member.prompt.token_ids[member.position]] for member in (positive, negative)] == ["B", "A"]
    assert (positive.letter, negative.letter) == ("B", "A")
    assert (positive.positive, negative.positive) == (True, False)
    # behind a header that ends in a bracket the answer stands after a space, as in the paper
    assert words[positive.prompt.token_ids[positive.position - 1]] == " ("
    assert positive.position == len(positive.prompt.token_ids) - 2
    last = [member.position for member in members(tokenizer, read_contrast(path), "last")]
    assert last == [positive.position + 1] * 2
    assert [m.position for m in members(tokenizer, read_contrast(path), -2)] == [positive.position] * 2


def test_answers_that_differ_in_more_than_one_token_need_another_token(tmp_path: Path) -> None:
    path = pairs_file(
        tmp_path, '{"prompt": "Rain?", "positive": "It rains now.", "negative": "It was dry then."}'
    )
    with pytest.raises(DataError, match=r"pairs.json, line 1: .* do not differ in one token"):
        list(members(Words(), read_contrast(path), "answer"))
    assert [m.positive for m in members(Words(), read_contrast(path), "last")] == [True, False]
    with pytest.raises(DataError, match="none at -400"):
        list(members(Words(), read_contrast(path), -400))


def test_a_token_before_the_members_differ_is_refused(tmp_path: Path) -> None:
    path = pairs_file(tmp_path, '{"prompt": "Rain?", "positive": "It rains.", "negative": "It pours."}')
    data = read_contrast(path)
    with pytest.raises(DataError, match=r"line 1: at the token -3 the two members have not begun to differ"):
        list(members(Words(), data, -3))
    assert len(list(members(Words(), data, -2))) == 2


def test_instructions_have_no_answer_token(tmp_path: Path) -> None:
    path = pairs_file(tmp_path, '{"positive": ["Do harm.", "Do more."], "negative": ["Do good."]}')
    with pytest.raises(UsageError, match="no answer token"):
        list(members(Words(), read_contrast(path), "answer"))
    assert [m.positive for m in members(Words(), read_contrast(path), "last")] == [True, True, False]
