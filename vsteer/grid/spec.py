"""A grid as it is checked and held: what to steer, with what, where, and what to ask.

It comes from a YAML file or from Python, and every unknown key is refused. Data files, vector files and the
model are looked at only when the grid is planned (`vsteer/plan/plan.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    Tag,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from vsteer.controls import CONTROL_VECTORS
from vsteer.datasets.builtin import CONTRASTS
from vsteer.engine.options import EngineOptions
from vsteer.evaluations.kinds import AnyKind, KindName
from vsteer.grid.axes import (
    Layers,
    Level,
    Replicas,
    parse_layers,
    parse_multipliers,
    parse_norms,
    parse_positions,
    parse_replicas,
    written_multipliers,
)
from vsteer.grid.names import Named, named_evaluations
from vsteer.grid.problems import GridError, Loc, Source
from vsteer.grid.values import OutOfBounds, plain
from vsteer.grid.when import When
from vsteer.grid.yaml_lines import read_yaml
from vsteer.models.adapters import adapted_name
from vsteer.operations import OPERATIONS, written_operation
from vsteer.protocol import Positions
from vsteer.validation import (
    AS_LIST,
    Name,
    Names,
    Strict,
    Text,
    Texts,
    did_you_mean,
    many,
    shortened,
    shown,
    wrong,
)
from vsteer.vectors.methods import MethodName

# vLLM's options that decide how a model runs and not what it answers, rounding apart. An option that changes
# outputs is a setting of the model, and so a part of every row's identity; those not listed here may do so.
_IN_VLLM = {
    "async_scheduling", "attention_backend", "compilation_config", "cpu_offload_gb",
    "cudagraph_capture_sizes", "disable_cascade_attn", "disable_custom_all_reduce",
    "disable_hybrid_kv_cache_manager",
    "distributed_executor_backend", "download_dir", "enable_chunked_prefill", "enable_expert_parallel",
    "max_cudagraph_capture_size", "max_parallel_loading_workers", "num_gpu_blocks_override",
    "scheduling_policy", "swap_space",
}  # fmt: skip
# Random weights: for benchmarks, never for rows.
_DUMMY = "dummy"


Norms = Annotated[tuple[str, ...], PlainValidator(parse_norms), AS_LIST]
Multipliers = Annotated[
    tuple[Level, ...], PlainValidator(parse_multipliers), PlainSerializer(written_multipliers)
]
PositionList = Annotated[tuple[Positions, ...], PlainValidator(many(parse_positions)), AS_LIST]
LayerChoice = Annotated[Layers, PlainValidator(parse_layers), PlainSerializer(lambda layers: layers.written)]
HowMany = Annotated[
    Replicas, PlainValidator(parse_replicas), PlainSerializer(lambda replicas: replicas.written)
]
Some = Annotated[int, Field(ge=0, le=1000)]
if TYPE_CHECKING:
    OperationName = str
    Where = str
else:
    OperationName = Literal[tuple(dict.fromkeys(one.written or one.name for one in OPERATIONS.values()))]
    Where = Literal[tuple(dict.fromkeys(one.where for one in OPERATIONS.values()))]


class EngineSpec(EngineOptions):
    """The engine's options as a grid may set them: none that changes an output; and how many engines."""

    replicas: HowMany = Replicas(1, 1)
    """How many engines share the work, each on devices of its own: a number, or between which two it may
    change while nodes come and go. More than one run on Ray, here or on a cluster: see
    [many machines](cluster.md)."""

    @model_validator(mode="after")
    def _leaves_outputs_alone(self) -> EngineSpec:
        if self.load_format == _DUMMY:
            raise wrong("load_format: dummy makes random weights", "leave it out", "load_format")
        for option in self.vllm:
            if option not in _IN_VLLM:
                hint = "set it of the model, or by the engine's own setting; some options are never proven"
                raise wrong(f"the option {shown(option)} can't be passed to vLLM here", hint, "vllm", option)
        if self.vllm.get("distributed_executor_backend", "mp") not in ("mp", "uni"):
            hint = "take the line out: an engine's devices are on one node, and `replicas` fills more nodes"
            message = "only vLLM's own processes (mp, uni) are proven to hold the ranks of an engine"
            raise wrong(message, hint, "vllm", "distributed_executor_backend")
        return self


class Model(Strict):
    id: Text
    """A named model that needs no hub (`vsteer models list`), a folder, or a hub id."""
    revision: Text | None = None
    """The hub's branch, tag or commit; by default the newest."""
    adapter: Text | None = None
    """A folder with a LoRA as peft saves it, merged into the model: another model, whose name in results is
    `id + adapter`."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """The type of the weights and of the stream."""
    quantization: Text | None = None
    """As vLLM names it."""
    kv_cache_dtype: Text = "auto"
    """The type of keys and values, as vLLM names it."""
    layers: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """The number of decoder blocks, for planning where the model isn't here."""
    engine: EngineSpec | None = None
    """What differs for this model from the grid's `engine`."""

    @property
    def name(self) -> str:
        """As results have it."""
        return adapted_name(self.id, self.adapter)


class DataVector(Strict):
    """A vector to be made from contrast data, once for each norm."""

    data: Text
    """A built-in behaviour, or a file of contrast data."""
    negative: Text | None = None
    """A second file, where `data` is the positive one of two unpaired sets."""
    method: MethodName | None = None
    """How a direction is made of the data. By default `mean_diff` for pairs, `dim` for two unpaired sets."""
    norm: Norms = ("raw",)
    """How long the stored vector is, or several such lengths, each a vector."""
    token: Literal["answer", "last"] | Annotated[int, Field(ge=-1000, le=-1)] | None = None
    """Which token is read: the answer's letter, the last one, or one counted from the end. By default
    `answer` where all answers are letters, and `last` elsewhere."""
    system: Text | None = None
    """A system prompt in front of every text."""
    heads: Annotated[int, Field(ge=1)] | None = None
    """How many attention heads `iti` chooses; by default 48."""


class FileVector(Strict):
    """A vector that lies in a file, taken as it is stored there."""

    file: Text
    """The vector's file, taken as it is stored."""


class FileDirection(Strict):
    """One direction of a file that holds many, such as a sparse autoencoder's decoder."""

    file: Text
    """A safetensors file or an `.npz` archive. Of a large one the direction alone is read."""
    key: Text
    """The tensor's name in it, such as `W_dec`: one direction, or a matrix of directions."""
    index: Annotated[int, Field(ge=0)] | None = None
    """Which direction of the matrix, counted from 0; needed where it has more than one."""
    axis: Literal[0, 1] | None = None
    """Along which axis directions are counted: 0 where they are rows, 1 where they are columns. Needed where
    both sides are as long as the model is wide, which else tells them apart."""
    layer: Annotated[int, Field(ge=0, le=9_999)]
    """The layer whose stream it was learned on, which is where it acts. What was learned on the input of
    layer L is behind layer L - 1."""
    where: Where = "layer"
    """`attention`: it was learned on the stream behind the layer's attention, and blocks add it there."""
    norm: Norms = ("raw",)
    """`raw` is the file's length, `unit` 1. The others are measured over contrast data, of which there is
    none."""

    @model_validator(mode="after")
    def _norms_are_known(self) -> FileDirection:
        for n, norm in enumerate(self.norm):
            if norm not in ("raw", "unit"):
                message = f"the norm {norm} is measured over contrast data, and a file's direction has none"
                hint = (
                    "raw counts multipliers in the file's own length, unit makes them absolute: work out "
                    "other units, and write them as multipliers"
                )
                raise wrong(message, hint, "norm", n)
        return self


class Axis(Strict):
    """One block of the grid: every combination of what it lists."""

    vector: Names | None = None
    """One of `vector` and `vectors`: what to steer with."""
    vectors: Names | None = None
    """One of `vector` and `vectors`: what to steer with."""
    layers: LayerChoice
    """Where the vector acts."""
    multipliers: Multipliers | None = None
    """What the stored vector is multiplied by, or how far the steering is to move the model: `{kl: 0.2}`.
    `add` and `clamp` need them, and ablations have none."""
    positions: PositionList = ("all",)
    """Which tokens are steered."""
    operation: OperationName = "add"
    """What is done with the vector."""
    where: Where = "layer"
    """`attention`: `add` adds behind a layer's attention, in front of its MLP, and not behind the layer."""
    when: When | None = None
    """A condition on the prompt; where it doesn't hold, the block's configurations are the baseline."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Axis:
        if (self.vector is None) == (self.vectors is None):
            raise wrong("expected vector or vectors, one of them", "such as vector: refusal")
        return self

    @model_validator(mode="after")
    def _multipliers_where_needed(self) -> Axis:
        if written_operation(self.operation, self.where) is None:
            message = f"the operation {self.operation} does not act behind the {self.where} alone"
            raise wrong(message, "take the line out", "where")
        operation = OPERATIONS[self.does]
        if operation.has_multiplier and self.multipliers is None:
            raise wrong("multipliers is missing", "such as multipliers: [-1, 1]")
        if operation.acts_at_zero and 0 in (self.multipliers or ()):
            message = f"multiplier 0 of {operation.name} takes the component out: that is no baseline"
            raise wrong(message, "take 0 out, and add a block with operation: ablate", "multipliers")
        if not operation.has_multiplier and self.multipliers is not None:
            message = f"the operation {operation.name} has no multipliers"
            raise wrong(message, "take the line out", "multipliers")
        groups = self.layers.groups or ()
        if operation.every_layer and (self.layers.together or any(len(group) > 1 for group in groups)):
            hint = "a layer says whose direction it is: list single layers"
            raise wrong(f"one direction at a time can be {operation.done} everywhere", hint, "layers")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return self.vector or self.vectors or ()

    @property
    def does(self) -> str:
        """The operation's own name."""
        return written_operation(self.operation, self.where) or self.operation


class SystemPrompts(Strict):
    positive: Text | None = None
    """A system prompt that asks for the behaviour."""
    negative: Text | None = None
    """A system prompt that asks for its opposite."""


def _unrelated(value: Any) -> int | tuple[str, ...]:
    if isinstance(value, int):
        most = len(CONTRASTS)
        if isinstance(value, bool) or not 0 <= value <= most:
            hint = "a list names other behaviours and files of pairs: [language, other.jsonl]"
            raise wrong(f"expected at most {most} built-in contrasts, found {shown(value)}", hint)
        return value
    return many(_data)(value)


def _data(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise wrong(f"expected a behaviour or a file, found {shown(value)}", "such as language")
    return value


Unrelated = Annotated[
    int | tuple[str, ...],
    PlainValidator(_unrelated),
    PlainSerializer(lambda value: value if isinstance(value, int) else list(value)),
]


class Controls(Strict):
    random_vectors: Some = 0
    """How many random vectors of the vector's length stand beside it at each layer."""
    shuffled_labels: Some = 0
    """How many vectors of the same data with shuffled labels stand beside it."""
    unrelated: Unrelated = 0
    """Vectors of other behaviours, made in the same way and as long as the vector at each layer: how many of
    the built-in contrasts, or a list of behaviours and files."""
    system_prompts: SystemPrompts = SystemPrompts()
    """What a system prompt does by itself, unsteered."""


def _control(value: Any) -> str:
    if value not in CONTROL_VECTORS:
        known = " or ".join([", ".join(CONTROL_VECTORS[:-1]), CONTROL_VECTORS[-1]])
        raise wrong(f"expected {known}, found {shown(value)}", "the controls that are vectors")
    return str(value)


ControlNames = Annotated[tuple[str, ...], PlainValidator(many(_control)), AS_LIST]


class Exclude(Strict):
    """The configurations to leave out: those that agree with everything named here."""

    model: Texts | None = None
    """Ids of models; `id + adapter` for one with an adapter."""
    vector: Names | None = None
    """Names of vectors."""
    norm: Norms | None = None
    """Norms, written as those of a vector."""
    layers: LayerChoice | None = None
    """Layers; several that are steered at once are named together."""
    multipliers: Multipliers | None = None
    """Multipliers, or doses."""
    positions: PositionList | None = None
    """Positions."""
    evaluation: Texts | None = None
    """Names of evaluations, as `vsteer plan` lists them."""
    kind: KindName | None = None
    """A kind of evaluation. `choice` takes `refusal_tokens` along, whose rows are stored as choices;
    `refusal_tokens` leaves `choice` alone."""
    control: ControlNames | None = None
    """These controls alone, and not the vectors beside which they stand. Without it an exclusion of a vector
    takes its controls along."""

    @model_validator(mode="after")
    def _says_something(self) -> Exclude:
        if not self.model_fields_set:
            raise wrong("an exclusion that names nothing leaves nothing over", "take it out")
        return self


def _kind_of_vector(value: Any) -> str:
    """The tag is no possible key, since pydantic puts it into the location of an error."""
    if not isinstance(value, dict):
        kinds = {FileVector: "<file>", FileDirection: "<direction>"}
        return next((tag for kind, tag in kinds.items() if isinstance(value, kind)), "<data>")
    if value.keys() & {"key", "index", "axis", "layer"}:
        return "<direction>"
    return "<file>" if "file" in value else "<data>"


def _as_model(value: Any) -> Any:
    return {"id": value} if isinstance(value, str) else value


def _as_models(value: Any) -> Any:
    return tuple(map(_as_model, value)) if isinstance(value, list) else (_as_model(value),)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


VectorSpec = Annotated[
    Annotated[DataVector, Tag("<data>")]
    | Annotated[FileVector, Tag("<file>")]
    | Annotated[FileDirection, Tag("<direction>")],
    Discriminator(_kind_of_vector),
]


class Grid(Strict):
    version: Literal[1]
    """The version of this form."""
    name: Name
    """The run's folder is `runs/<name>` beside the grid."""
    model: Annotated[tuple[Model, ...], BeforeValidator(_as_models), Field(min_length=1)]
    """One model or several, run one after another. A plain text is its id."""
    engine: EngineSpec = EngineSpec()
    """How the engine runs. Nothing in it changes a row's identity."""
    vectors: dict[Name, VectorSpec] = Field(default_factory=dict)
    """The vectors, by names of your own."""
    grid: Annotated[tuple[Axis, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
    """The blocks: each is the product of everything that it lists."""
    controls: Controls = Controls()
    """What the vectors are compared with."""
    evaluations: Annotated[tuple[AnyKind, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
    """What the models are asked."""
    exclude: Annotated[tuple[Exclude, ...], BeforeValidator(_as_tuple)] = ()
    """Configurations to leave out."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """What random vectors, shuffled labels and samples are drawn from."""

    _source: Source = PrivateAttr()
    _first_names: dict[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _references_hold(self, info: ValidationInfo) -> Grid:
        given = info.context
        self._source = given if isinstance(given, Source) else Source(self.model_dump(mode="json"), Path())
        _check_references(self)
        return self

    @property
    def folder(self) -> Path:
        """Where the files that the grid names are looked for, and where its runs lie."""
        return self._source.folder

    @property
    def written(self) -> object:
        """The grid in plain values, as it was given."""
        return self._source.value

    def error(self, loc: Loc, message: str, hint: str) -> GridError:
        """An error about the value at `loc`, with its place in the file or in the grid."""
        return self._source.error(loc, message, hint)

    def place(self, loc: Loc) -> str:
        """`line 26` or `evaluations[1]`, for an error about something else."""
        return self._source.place(loc)

    def at(self, loc: Loc) -> str:
        """`on line 26` or `at evaluations[1]`."""
        return self._source.at(loc)

    def engine_for(self, model: Model) -> EngineSpec:
        """The grid's engine settings, with those that this model has of its own."""
        if model.engine is None:
            return self.engine
        differs = {name: getattr(model.engine, name) for name in model.engine.model_fields_set}
        return self.engine.model_copy(update=differs)

    def named_evaluations(self) -> list[Named]:
        """Every evaluation of every data set: its name, its data, and its place in the list."""
        return named_evaluations(self.evaluations, self._first_names)

    def with_names(self, first: Mapping[str, str]) -> Grid:
        """The grid with the names that its run's first start gave to the evaluations."""
        grid = self.model_copy()
        grid._first_names = dict(first)
        return grid


def read_grid(path: str | Path) -> Grid:
    return _validated(read_yaml(path))


def as_grid(grid: Grid | Mapping[str, Any] | str | Path, folder: str | Path = ".") -> Grid:
    """A grid from its file, from a dictionary, or as it is.

    `folder` is where the files that a dictionary names are looked for; by default the current directory.
    """
    if isinstance(grid, Grid):
        return grid
    if isinstance(grid, str | Path):
        return read_grid(grid)
    try:
        return _validated(Source(plain(grid), Path(folder)))
    except OutOfBounds as error:
        raise Source(grid, Path(folder)).error(error.loc, str(error), error.hint) from None


def _validated(source: Source) -> Grid:
    try:
        return Grid.model_validate(source.value, context=source)
    except ValidationError as error:
        raise source.explained(error) from None


def _check_references(grid: Grid) -> None:
    """Every name that the grid uses is one that it defines, and no two things share a name."""
    known = grid.vectors
    for n, axis in enumerate(grid.grid):
        _check_vectors(grid, ("grid", n), axis.vector, axis.vectors, known=known)
        if axis.when is not None:
            _check_known(grid, ("grid", n, "when", "vector"), [axis.when.vector], known, "vector")
    for n, evaluation in enumerate(grid.evaluations):
        _check_vectors(grid, ("evaluations", n), None, evaluation.vectors, known=known)
    names: dict[str, int] = {}
    for name, _, n in grid.named_evaluations():
        if name in names:
            first = grid.at(("evaluations", names[name]))
            message = f"two evaluations are called {shown(name)}, the first {first}"
            raise grid.error(("evaluations", n), message, "give each a name of its own, or take one out")
        names[name] = n
    ids = {model.name for model in grid.model}
    for n, exclude in enumerate(grid.exclude):
        _check_vectors(grid, ("exclude", n), exclude.vector, None, known=known)
        _check_known(grid, ("exclude", n, "evaluation"), exclude.evaluation or (), names, "evaluation")
        _check_known(grid, ("exclude", n, "model"), exclude.model or (), ids, "model")
    models: dict[object, int] = {}
    for n, model in enumerate(grid.model):
        key = (model.name, model.revision, model.dtype, model.quantization, model.kv_cache_dtype)
        if key in models:
            raise grid.error(("model", n), f"the model {shortened(model.name)} stands twice", "take one out")
        models[key] = n


def _check_vectors(
    grid: Grid, at: Loc, one: Names | None, several: Names | None, known: Collection[str]
) -> None:
    _check_known(grid, (*at, "vector"), one or (), known, "vector")
    _check_known(grid, (*at, "vectors"), several or (), known, "vector")


def _check_known(grid: Grid, at: Loc, names: Sequence[str], known: Collection[str], what: str) -> None:
    for n, name in enumerate(names):
        if name not in known:
            hint = did_you_mean(name, known, f"the grid has {shortened(', '.join(known), 150) or 'none'}")
            raise grid.error((*at, n), f"no {what} is called {shown(name)}", hint)
