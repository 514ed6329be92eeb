"""Configurations: everything that changes an output but the item and the sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from vsteer.errors import SteeringFault
from vsteer.evaluations.evaluation import Evaluation
from vsteer.evaluations.prompt_spec import PromptSpec
from vsteer.grid.axes import Dose, Group, Level
from vsteer.grid.problems import Loc
from vsteer.grid.spec import Axis, Grid
from vsteer.identity import VERSION, derived_seed, identify
from vsteer.operations import OPERATIONS
from vsteer.plan.doses import PlannedDose, planned_doses
from vsteer.plan.exclusions import Exclusion, at_layers, at_multiplier, at_positions
from vsteer.plan.left_out import EXCLUDED, NO_NORM, OTHER_POSITIONS, OTHER_VECTORS, UNSTEERED
from vsteer.plan.vector_sources import STORED, VectorSource, norm_recipe
from vsteer.protocol import Positions, Steering, Term
from vsteer.validation import shortened
from vsteer.vectors.recipe import Recipe

# of an evaluation; and of all evaluations together, before anything is excluded
MOST_CONFIGS, MOST_LISTED = 200_000, 5_000_000


@dataclass(frozen=True)
class VectorUse:
    """One set of directions, one for each layer: its key in the engine's `Vectors`, and its source."""

    key: str
    source: VectorSource
    norm: str
    control: str  # "", random, shuffled, unrelated
    index: int | None  # which of the controls
    # A control is drawn from it: one for each random vector, and one for all shuffles of a vector. A control
    # has its vector's norm.
    seed: int | None
    recipe: Mapping[str, Any]
    other: Recipe | None = None  # what an unrelated vector is made from

    @property
    def name(self) -> str:
        return self.source.name


@dataclass(frozen=True)
class Condition:
    """What must hold on a prompt for a configuration to steer it: see `vsteer/grid/when.py`."""

    name: str  # the vector's
    layer: int
    token: str  # mean, last
    side: str  # above, below
    threshold: float
    vector: VectorUse = field(compare=False, repr=False)  # only its direction counts

    def holds(self, cosine: float) -> bool:
        return cosine > self.threshold if self.side == "above" else cosine < self.threshold

    @property
    def stream(self) -> str:
        """What is compared: `harm at layer 8, mean`."""
        return f"{self.name} at layer {self.layer}, {self.token}"

    def __str__(self) -> str:
        return f"{self.stream} {self.side} {self.threshold!r}"

    def identity(self) -> dict[str, Any]:
        vector = self.vector.source.identity()
        return {"vector": vector, "layer": self.layer, "token": self.token, self.side: self.threshold}


@dataclass(frozen=True)
class Config:
    """One configuration. Unsteered: no vector, no layers, multiplier 0, positions None."""

    config_id: str
    model: str
    spec: PromptSpec
    vector: VectorUse | None = None
    layers: Group = ()
    multiplier: float | None = 0.0  # None: an operation that has none, or a dose's is not found
    positions: Positions | None = None
    operation: str = "add"
    when: Condition | None = None
    control: str = ""  # "", random, shuffled, unrelated, system
    system: str = ""  # the system prompt's name
    layer_count: int | None = None  # the model's, for depths
    dose: PlannedDose | None = None  # what its multiplier is found by
    unreachable: str = ""  # why no multiplier has the dose: its rows fail

    @property
    def level(self) -> Level | None:
        """What the grid lists: a multiplier or a dose."""
        return self.dose.asked if self.dose else self.multiplier

    @property
    def unfound(self) -> bool:
        return self.dose is not None and self.multiplier is None

    @property
    def terms(self) -> tuple[Term, ...]:
        if self.unfound:
            raise SteeringFault(f"the multiplier of {self.config_id} was never found")
        return self.terms_at(1.0 if self.multiplier is None else self.multiplier)

    def terms_at(self, multiplier: float) -> tuple[Term, ...]:
        if self.vector is None:
            return ()
        return tuple(Term(self.vector.key, n, multiplier, self.operation) for n in self.layers)

    @property
    def steering(self) -> Steering | None:
        """What the engine loads; a row's requests have the span as absolute positions."""
        return Steering(self.terms, self.positions) if self.positions is not None else None

    @property
    def condition_met(self) -> bool | None:
        """What its rows say that an engine computes: where its condition doesn't hold, none does."""
        return None if self.when is None else True

    def identity(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """What is hashed into the id. `model` is the model's part, with its template (`plan.py`)."""
        steering = None
        if self.vector is not None:
            steering = {
                "vector": self.vector.recipe,
                "layers": list(self.layers),
                "operation": self.operation,
                "multiplier": self.dose.identity() if self.dose else self.multiplier,
                "positions": list(self.positions) if isinstance(self.positions, tuple) else self.positions,
            }
            if self.when is not None:
                steering["when"] = self.when.identity()
        return {"version": VERSION, "model": dict(model), "ask": self.spec.identity(), "steering": steering}

    def axes(self) -> dict[str, Any]:
        """What a configuration varies, in the plain values of the tables; the run adds the vector's hash."""
        vector, positions = self.vector, self.positions
        layer = self.layers[0] if len(self.layers) == 1 else None
        spans = f"[{positions[0]}, {positions[1]})" if isinstance(positions, tuple) else positions or ""
        return {
            "model": self.model,
            "vector": vector.name if vector else "",
            "norm": vector.norm if vector else "",
            "control": self.control,
            "control_index": vector.index if vector else None,
            "layers": list(self.layers),
            "layer": layer,
            "depth": None if layer is None or self.layer_count is None else (layer + 1) / self.layer_count,
            "operation": self.operation if vector else "",
            "multiplier": self.multiplier,
            "positions": spans if self.when is None else f"{spans} when {self.when}",
            "system": self.system,
        }


class _Parts(NamedTuple):
    """What the axes combine."""

    vector: str
    norm: str
    layers: Group
    level: Level | None
    positions: Positions
    operation: str
    when: Condition | None


class ConfigExpander:
    """The steered configurations of one model: what the axes list, less what is excluded."""

    def __init__(
        self, grid: Grid, model: int, layers: int | None, sources: Mapping[str, VectorSource]
    ) -> None:
        self.grid, self.model, self.layer_count, self.sources = grid, model, layers, dict(sources)
        self.layers = [
            resolve_layers(grid, ("grid", n, "layers"), axis.layers, layers)
            for n, axis in enumerate(grid.grid)
        ]
        self.exclusions = [Exclusion.made(n, entry, layers) for n, entry in enumerate(grid.exclude)]
        self.excluded = [0] * len(grid.exclude)  # how many configurations each entry left out
        # How many configurations of the product aren't there, by evaluation and reason.
        self.left_out: Counter[tuple[str, str]] = Counter()
        self._uses: dict[str, VectorUse] = {}
        self.conditions = [self._conditions(n, axis) for n, axis in enumerate(grid.grid)]
        self._doses = planned_doses(grid)

    def baseline(self, spec: PromptSpec, control: str, system: str) -> Config:
        model = self.grid.model[self.model].name
        return Config("", model, spec, control=control, system=system, layer_count=self.layer_count)

    def check_count(self, evaluations: Iterable[int]) -> None:
        """Refuse a product that is too large, before any of it is made; exclusions are not looked at.

        `evaluations` are places in the grid's list, each as often as it is asked.
        """
        total = most = largest = 0
        for place in evaluations:
            vectors = self.grid.evaluations[place].vectors
            for n, axis in enumerate(self.grid.grid):
                names = [one for one in axis.names if vectors is None or one in vectors]
                norms = sum(len(self._norms(axis, one)) for one in names)
                positions = len(self._positions(n, axis, place))
                count = norms * len(self.layers[n]) * len(axis.multipliers or (None,)) * positions
                count *= len(self.conditions[n])
                total += count
                if count > most:
                    most, largest = count, n
        if total > MOST_LISTED:
            message = (
                f"the grid lists {total:,} configurations, and at most {MOST_LISTED:,} are looked through; "
                f"this block lists {most:,} for an evaluation"
            )
            raise self.grid.error(("grid", largest), message, "take fewer layers, multipliers or positions")

    def configs(self, evaluation: int, name: str, baseline: Config) -> Iterator[tuple[Config, Loc]]:
        """Configurations without their ids, in the grid's order, each with the place of its positions."""
        found = list(self._listed(evaluation, name, baseline.spec.evaluation))
        controls = baseline.spec.evaluation.has_controls
        count = sum(
            1 + (self.beside(parts.vector) if controls else 0) for parts in {parts for parts, _ in found}
        )
        if count >= MOST_CONFIGS:
            message = (
                f"{count:,} configurations of {shortened(name)}, and at most {MOST_CONFIGS:,} are planned"
            )
            raise self.grid.error(("grid",), message, "take fewer layers, norms or controls")
        for parts, place in found:
            config = replace(
                baseline,
                vector=self.use(parts.vector, parts.norm),
                layers=parts.layers,
                multiplier=None if isinstance(parts.level, Dose) else parts.level,
                dose=self._doses[parts.level] if isinstance(parts.level, Dose) else None,
                positions=parts.positions,
                operation=parts.operation,
                when=parts.when,
            )
            yield config, place

    def _listed(self, evaluation: int, name: str, spec: Evaluation) -> Iterator[tuple[_Parts, Loc]]:
        """What the axes list and no exclusion leaves out; everything else is counted under its reason."""
        excluded: Counter[tuple[int, int]] = Counter()
        for n, axis in enumerate(self.grid.grid):
            positions = self._positions(n, axis, evaluation)
            multipliers, conditions = axis.multipliers or (None,), self.conditions[n]
            for vector in axis.names:
                family = 1 + self.beside(vector)  # a steered configuration and the controls beside it
                steered = len(self.layers[n]) * len(multipliers) * len(conditions) * family
                written, norms = len(self.sources[vector].norms), self._norms(axis, vector)
                if spec.vectors is not None and vector not in spec.vectors:
                    self.left_out[name, OTHER_VECTORS] += written * steered * len(axis.positions)
                    continue
                self.left_out[name, NO_NORM] += (written - len(norms)) * steered * len(axis.positions)
                if elsewhere := len(axis.positions) - len(positions):
                    _, setting = spec.only_positions or ("", "")
                    reason = OTHER_POSITIONS.format(setting=setting, positions=positions[0][1])
                    self.left_out[name, reason] += len(norms) * steered * elsewhere
                # Multiplier 0 is the baseline, which every evaluation has.
                unsteered = sum(multiplier == 0 for multiplier in multipliers) * len(positions)
                unsteered *= len(conditions)
                self.left_out[name, UNSTEERED] += len(norms) * len(self.layers[n]) * unsteered * family
                for norm in norms:
                    exclusions = self._exclusions(name, spec, vector, norm)
                    for group in self.layers[n]:
                        here = at_layers(exclusions, group)
                        for multiplier in multipliers:
                            if multiplier == 0:
                                continue
                            there = at_multiplier(here, multiplier)
                            for place, where in positions:
                                if (entry := at_positions(there, where)) is not None:
                                    excluded[entry, family] += len(conditions)
                                    continue
                                for when in conditions:
                                    parts = _Parts(vector, norm, group, multiplier, where, axis.does, when)
                                    yield parts, place
        for (entry, family), count in excluded.items():
            self.excluded[entry] += count
            self.left_out[name, EXCLUDED.format(place=self.grid.at(("exclude", entry)))] += count * family

    def _conditions(self, n: int, axis: Axis) -> list[Condition | None]:
        """The conditions of a block; one without any has None."""
        when = axis.when
        if when is None:
            return [None]
        at: Loc = ("grid", n, "when")
        if self.layer_count is not None and when.layer >= self.layer_count:
            message = f"layer {when.layer} does not exist: the model has layers 0 to {self.layer_count - 1}"
            raise self.grid.error((*at, "layer"), message, "layer L is the output of decoder block L")
        source = self.sources[when.vector]
        use = self.use(when.vector, source.norms[0])
        side, token = when.side, when.token
        return [Condition(when.vector, when.layer, token, side, one, use) for one in when.thresholds]

    def beside(self, vector: str) -> int:
        """How many control vectors stand beside each steered one."""
        return sum(map(len, self._controls(vector).values()))

    def _controls(self, vector: str) -> dict[str, Collection[int]]:
        """The numbers of its control vectors of each kind."""
        return {
            "random": range(self.grid.controls.random_vectors),
            "shuffled": range(self.grid.controls.shuffled_labels),
            "unrelated": self.sources[vector].unrelated.keys(),
        }

    def controls(self, steered: Config, name: str) -> Iterator[Config]:
        """The control vectors beside one steered configuration, of the same norm."""
        assert steered.vector is not None
        vector, norm = steered.vector.name, steered.vector.norm
        for control, indices in self._controls(vector).items():
            entries = self._exclusions(name, steered.spec.evaluation, vector, norm, control)
            here = at_multiplier(at_layers(entries, steered.layers), steered.level)
            if here and (entry := at_positions(here, steered.positions)) is not None:
                self.excluded[entry] += len(indices)
                self.left_out[name, EXCLUDED.format(place=self.grid.at(("exclude", entry)))] += len(indices)
                continue
            for index in indices:
                use = self.use(vector, norm, control, index)
                yield replace(steered, vector=use, control=control)

    def use(self, name: str, norm: str, control: str = "", index: int | None = None) -> VectorUse:
        key = ":".join([name, norm, *([control, str(index)] if control else [])])
        if key not in self._uses:
            source = self.sources[name]
            recipe: dict[str, Any] = source.identity() | {"norm": norm_recipe(norm, self.sources)}
            seed = other = None
            if control == "unrelated":
                assert index is not None
                other = source.unrelated[index]
                recipe = {"control": control, "index": index, "made_from": other.identity(), "of": recipe}
            elif control:
                # The vector's norm has no part in it, so that one random direction is compared at every norm.
                seed = derived_seed(
                    self.grid.seed, control, source.identity(), index if control == "random" else 0
                )
                recipe = {"control": control, "index": index, "seed": seed, "of": recipe}
            self._uses[key] = VectorUse(key, source, norm, control, index, seed, recipe, other)
        return self._uses[key]

    def _norms(self, axis: Axis, vector: str) -> tuple[str, ...]:
        """An operation without a multiplier takes a direction, whatever its norm: once, at length 1."""
        source = self.sources[vector]
        as_they_are = OPERATIONS[axis.does].has_multiplier or source.norms == STORED
        return source.norms if as_they_are else ("unit",)

    def _positions(self, n: int, axis: Axis, evaluation: int) -> list[tuple[Loc, Positions]]:
        at: Loc = ("grid", n, "positions")
        only = self.grid.evaluations[evaluation].only_positions
        places: list[tuple[Loc, Positions]] = [((*at, k), where) for k, where in enumerate(axis.positions)]
        if only is None:
            return places
        wanted, setting = only
        if "positions" not in axis.model_fields_set:
            return [(at, wanted)]
        taken = [one for one in places if one[1] == wanted]
        if not taken:
            place = self.grid.place(("evaluations", evaluation))
            message = f"{setting} ({place}) steers {wanted}, and this block has other positions"
            raise self.grid.error(at, message, f"add {wanted} to the positions, or leave them out")
        return taken

    def _exclusions(
        self, name: str, spec: Evaluation, vector: str, norm: str, control: str = ""
    ) -> list[Exclusion]:
        model = self.grid.model[self.model].name
        return [one for one in self.exclusions if one.concerns(model, name, spec, vector, norm, control)]


def with_id(config: Config, model: Mapping[str, Any]) -> Config:
    return replace(config, config_id=identify(config.identity(model)))


def resolve_layers(grid: Grid, loc: Loc, chosen: Any, layers: int | None) -> tuple[Group, ...]:
    try:
        return tuple(chosen.resolve(layers))
    except ValueError as error:
        hint = "layer L is the output of decoder block L, counted from 0"
        if layers is None:
            hint = "the model is not at hand: add layers: N to it, its number of decoder blocks"
        raise grid.error(loc, str(error), hint) from None
