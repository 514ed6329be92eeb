"""A kind of evaluation is one class: its settings in a grid, its prompts, its requests and its records.

The plan and the run know no kind by name. A new kind is a subclass in a file of its own, an entry in
`kinds.py`, and a query for its rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from vsteer.datasets.builtin import find_data
from vsteer.datasets.records import Source
from vsteer.evaluations.rendered_prompt import AnyItem, Order, RenderedPrompt, Rendering
from vsteer.protocol import Positions, Prompt, Request, Result, Steering
from vsteer.validation import Count, Names, Strict, Systems, Text, Texts

Question = tuple[AnyItem, Order]
Numbers = dict[str, tuple[float | None, str | None]]
# How a row is stored: with the log-probabilities of given answers, or with a text.
RowKind = Literal["choice", "open_ended"]
# Without a tokenizer: English text has about four characters a token, and a chat template adds some tokens.
CHARACTERS_A_TOKEN, TEMPLATE_TOKENS = 4, 20


# Why questions of a data set aren't asked, as a plan says it.
REPEATED = "stand in the data again and are asked once"
BEYOND_LIMIT = "lie beyond the limit"


class CannotAsk(ValueError):
    """Why an item can't be asked this way. The plan adds where the item stands, or the setting at fault."""

    def __init__(self, message: str, hint: str = "fix the item", setting: str | None = None) -> None:
        super().__init__(message)
        self.hint, self.setting = hint, setting


class CannotScore(ValueError):
    """Why a row's results say nothing: the row failed."""


@dataclass(frozen=True)
class Questions:
    """What an evaluation asks of one data set, each question once, and how many it leaves out, by reason."""

    questions: tuple[Question, ...]
    data_sha256: str
    left_out: Mapping[str, int]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, questions: Sequence[Question], source: Source, left_out: Mapping[str, int]) -> Questions:
        counted = {why: count for why, count in left_out.items() if count}
        return cls(tuple(questions), source.sha256, counted)


@dataclass(frozen=True)
class Sampling:
    """How many tokens a request generates, how they are drawn, and how many samples a question has."""

    max_tokens: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1


class Evaluation(Strict, ABC):
    """One entry of `evaluations:` in a grid."""

    # How its rows are stored.
    row_kind: ClassVar[RowKind]
    # What is asked where the grid names a built-in behaviour without one of its parts.
    builtin_part: ClassVar[str]
    # Whether random and shuffled-label vectors are run beside each steered configuration.
    has_controls: ClassVar[bool]
    # The setting that names its data sets.
    data_setting: ClassVar[str] = "data"
    # Whether its questions stand in the model's chat template, where the model has one.
    in_template: ClassVar[bool] = True

    kind: str
    """Which kind of evaluation it is."""
    name: Text | None = None
    """What results call it. By default its kind and the stem of its file, behind as many folders as make it
    unique; with several data sets the name is followed by each one's."""
    limit: Count | None = None
    """Ask only the first so many items."""
    system: Systems = (None,)
    """The system prompt, or several; `null` is none."""
    answer_prefix: Annotated[str, Field(min_length=1)] | None = None
    """Text with which every answer is forced to begin, as it is written."""
    vectors: Names | None = None
    """Ask only about these vectors of the grid; by default about all."""

    @property
    def data_sets(self) -> tuple[str, ...]:
        """A name for each of the data sets that it asks about."""
        named: tuple[str, ...] = getattr(self, self.data_setting)
        return named

    @property
    def sampling(self) -> Sampling:
        return Sampling()

    @property
    def wants_perplexity(self) -> bool:
        """Whether the run works out the perplexity of each text under the unsteered model."""
        return False

    @property
    def only_positions(self) -> tuple[Positions, str] | None:
        """The positions to which its recipe is bound, and the setting that says so."""
        return None

    @property
    def own_scores(self) -> dict[str, Any] | None:
        """What the numbers of `score` are made of, if it has a scoring of its own beside its columns."""
        return None

    def score(self, item_id: str, text: str, choice_logprobs: Sequence[float]) -> Numbers:
        """What its own scoring says of a stored row, each number with a note on it where there is one."""
        raise NotImplementedError

    @abstractmethod
    def identity(self, seed: int) -> dict[str, Any]:
        """What changes an output besides the system prompt and the forced prefix; `seed` is the run's."""

    def ask(self, data: str, beside: Path) -> tuple[Evaluation, Questions]:
        """The questions of one of its data sets, and the evaluation as it asks these."""
        return self, self.questions(find_data(data, self.builtin_part, beside))

    @abstractmethod
    def questions(self, path: Path) -> Questions:
        """The questions of a data file."""

    @abstractmethod
    def render(self, tokenizer: Any, item: AnyItem, system: str | None) -> Rendering:
        """The item in the model's tokens. Raises CannotAsk."""

    @abstractmethod
    def estimate(self, item: AnyItem, system: str | None) -> Rendering:
        """The item in about as many tokens as a model would make of it, while no tokenizer is here."""

    def sure_without_tokenizer(self, item: AnyItem) -> bool:
        """Whether `estimate` has the right number of tokens in each answer."""
        return True

    def labels(self, rendered: RenderedPrompt) -> tuple[str, ...]:
        """How results name the given answers; empty where there are none."""
        return ()

    def matching(self, rendered: RenderedPrompt) -> int | None:
        """Which of the labels matches the behaviour; None where there are no given answers."""
        return None

    @abstractmethod
    def requests(
        self, row_id: str, rendered: RenderedPrompt, steering: Steering | None, seed: int
    ) -> tuple[Request, ...]:
        """What an engine must answer for one row, named `row_id.0`, `row_id.1`, ..., the prompt alone first.

        `steering` has an absolute span, so that a forced answer can't move it.
        """

    @abstractmethod
    def columns(self, rendered: RenderedPrompt, results: Sequence[Result]) -> dict[str, Any]:
        """The row's columns that hold what was answered, from all results of `requests` in their order.

        Raises CannotScore.
        """

    def estimated_prompt(self, text: str, system: str | None) -> Prompt:
        characters = len(system or "") + len(text) + len(self.answer_prefix or "")
        return Prompt.plain([0] * (TEMPLATE_TOKENS + characters // CHARACTERS_A_TOKEN))


class DataEvaluation(Evaluation):
    """A kind that asks about data sets of vsteer's own forms."""

    data: Texts
    """A built-in behaviour, a file, or a list of them."""
