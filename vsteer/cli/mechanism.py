"""`vsteer mechanism`: why a steering works, on the Hugging Face side; models that fit one device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vsteer.cli.options import COUNT, DEVICE, DTYPE
from vsteer.cli.plain_table import number, plain_table
from vsteer.cli.progress_bar import counting
from vsteer.cli.project import project
from vsteer.errors import UsageError
from vsteer.terminal import echo

if TYPE_CHECKING:
    from vsteer.mechanism.folder import Settings
    from vsteer.mechanism.texts import Text

_PATH = click.Path(path_type=Path)
FOLDER = click.argument("folder", type=_PATH)


@click.group()
def mechanism() -> None:
    """Look into why a steering works: which heads and MLPs carry it, through what, in which dimensions.

    It works with transformers, eager attention and autograd, so the model must fit one device. `attribute`
    makes a folder for one vector at one layer, and the other commands go on from that folder. A folder
    RUN/mechanism/NAME is seen by `vsteer sql` and `vsteer report`, beside the run's rows.

    \b
    Example:
      vsteer mechanism attribute smollm2-135m-instruct sentiment.safetensors --layer 12 sentiment
    """


@mechanism.command(short_help="Attribute a steering's effect to the edges between heads, MLPs and layers.")
@click.argument("model")
@click.argument("vector", type=_PATH)
@click.argument("data")
@click.option("--layer", type=click.IntRange(min=0), required=True, help="Behind which layer it is added.")
@click.option("--multiplier", type=float, default=1.0, show_default=True)
@click.option("--positions", default="all", show_default=True, help="Where it is added, as in a grid.")
@click.option("-o", "--out", type=_PATH, help="The folder; by default mechanism/VECTOR-LAYER.")
@click.option("--limit", type=COUNT, help="Take the first so many prompts of DATA.")
@click.option("--max-tokens", type=COUNT, default=64, show_default=True, help="The longest text to write.")
@click.option("--system", help="System prompt in front of every text.")
@click.option("--steps", type=COUNT, default=10, show_default=True, help="Of integrated gradients.")
@click.option(
    "--behind-norms",
    is_flag=True,
    help="Take gradients behind the norm in front of a reader, as the paper's code does by default.",
)
@click.option(
    "--controls", type=COUNT, default=1, show_default=True, help="Random vectors of the same length."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--exact",
    type=COUNT,
    metavar="EDGES",
    help="Patch so many edges exactly: half those with the largest |score|, half at random.",
)
@click.option("--batch", type=COUNT, default=5, show_default=True, help="Passes at once; memory follows it.")
@DEVICE
@DTYPE
@click.option("--revision", help="Revision of a hub model.")
def attribute(
    model: str,
    vector: Path,
    data: str,
    layer: int,
    multiplier: float,
    positions: str,
    out: Path | None,
    limit: int | None,
    max_tokens: int,
    system: str | None,
    steps: int,
    behind_norms: bool,
    controls: int,
    seed: int,
    exact: int | None,
    batch: int,
    device: str,
    dtype: str,
    revision: str | None,
) -> None:
    """Attribute what VECTOR does to MODEL to the edges between what writes to the stream and what reads it.

    DATA is a file of texts, JSON Lines of {prompt, response, written: steered or unsteered}; or prompts (a
    built-in behaviour or a file), to which vLLM then writes both a steered and an unsteered text, greedily.
    What counts are the positions of responses where the steered and the unsteered model hold another token
    most likely; positions.parquet lists them. The same command goes on with a folder that was interrupted.

    \b
    Example:
      vsteer mechanism attribute smollm2-135m-instruct sentiment.safetensors --layer 12 sentiment --limit 16
    """
    from vsteer.mechanism.analysis import Analysis, settings_of
    from vsteer.mechanism.attribution import chosen_edges, rank_correlation
    from vsteer.mechanism.edge_tables import write_edge_tables
    from vsteer.mechanism.folder import Folder
    from vsteer.protocol import Prompt

    # what is wrong with the positions is said before anything is loaded
    Prompt.plain([0]).span(positions)
    settings = settings_of(
        model,
        revision,
        vector,
        layer,
        dtype=dtype,
        multiplier=multiplier,
        positions=positions,
        system=system,
        steps=steps,
        behind_norms=behind_norms,
        controls=controls,
        seed=seed,
    )
    folder = Folder.begin(out or Path("mechanism") / f"{settings.vector_name}-{layer}", settings)
    if not folder.has_texts:
        folder.put_texts(_texts(settings, data, limit, max_tokens))
    texts = folder.texts()
    echo(f"... loading {model} through transformers", err=True)
    analysis = Analysis.load(folder, device)
    with counting("attributing", len(texts)) as step:
        scores = analysis.attribute(batch, step)
    mean = scores.mean(0)
    effects: dict[tuple[int, int], float] = {}
    if exact:
        edges = chosen_edges(analysis.graph, mean, exact, seed)
        with counting(f"patching {len(edges)} edges", len(texts)) as step:
            effects = dict(zip(edges, analysis.patch(edges, scores, batch, step).tolist(), strict=True))
    write_edge_tables(analysis, scores, effects)
    used = sum(len(found.positions) > 0 for found in scores.found)
    echo(f"{folder.path}")
    echo(f"texts       {len(texts)}, {used} with positions that count; {scores.positions} positions")
    total, attributed = float(scores.mean(0, "effects")), float(mean[0].sum())
    echo(f"effect      {number(total)} on the steered token's logit less the unsteered one's, a position")
    echo(f"attributed  {number(attributed)} to the edges that leave the injection")
    for n in range(1, controls + 1):
        echo(f"random {n}    effect {number(float(scores.mean(n, 'effects')))} at the same positions")
    if effects:
        pairs = [(float(mean[edge]), effect) for edge, effect in effects.items()]
        half = len(pairs) // 2
        for words, part in (("all", pairs), ("largest", pairs[:half]), ("random", pairs[half:])):
            found = rank_correlation(*zip(*part, strict=True)) if len(part) > 2 else float("nan")
            echo(f"exact       rank correlation {number(found)} over {len(part)} edges ({words})")
    echo(f"next: vsteer mechanism circuit {folder.path}")


@mechanism.command(short_help="Measure how much of the effect a few edges carry, beside random ones.")
@FOLDER
@click.argument("others", type=_PATH, nargs=-1, metavar="[OTHER...]")
@click.option("--sizes", help="Numbers of edges, such as 100,200,400; by default the paper's, 100 to 1500.")
@DEVICE
def circuit(folder: Path, others: tuple[Path, ...], sizes: str | None, device: str) -> None:
    """Measure the circuits of the attribution in FOLDER, and how alike they are to those of OTHER folders.

    A circuit has the edges with the largest |score| that lie on whole paths, chosen on the texts of every
    other prompt and measured on the rest. Every other edge carries its unsteered value. Beside it stand
    circuits of as many edges drawn at random, and beside an overlap the vectors' cosine.

    \b
    Example:
      vsteer mechanism circuit mechanism/sentiment-12
    """
    from vsteer.mechanism.analysis import Analysis, stored_scores
    from vsteer.mechanism.circuit_tables import SIZES, write_circuits, write_overlaps
    from vsteer.mechanism.folder import Folder

    wanted = _sizes(sizes) if sizes else SIZES
    opened, compared = Folder.open(folder), [Folder.open(other) for other in others]
    scores = stored_scores(opened)
    analysis = Analysis.load(opened, device)
    with counting("measuring", len(scores.halves[1].texts)) as step:
        rows = write_circuits(analysis, scores, wanted, step)
    overlaps = write_overlaps(opened, analysis.graph, compared, wanted)
    measures = ("same_token", "kl_from_steered", "kl_to_steered", "logprob")
    _print(rows, ("control", "edges", "share", *measures))
    echo()
    _print(overlaps, ("other", "size", "overlap", "random_overlap", "cosine"))


@mechanism.command(short_help="Freeze attention weights, values or MLPs, and see what is left of the effect.")
@FOLDER
@click.option("--questions", help="Questions with given answers: a built-in behaviour or a file.")
@click.option("--prompts", help="Prompts to write to: a built-in behaviour or a file.")
@click.option("--limit", type=COUNT, help="Take the first so many of each.")
@click.option("--max-tokens", type=COUNT, default=64, show_default=True, help="The longest text to write.")
@click.option("--system", help="System prompt in front of every question and prompt.")
@DEVICE
def freeze(
    folder: Path,
    questions: str | None,
    prompts: str | None,
    limit: int | None,
    max_tokens: int,
    system: str | None,
    device: str,
) -> None:
    """See what is left of the steering of FOLDER where a part of the model is the unsteered one's.

    Frozen are attention weights, values, MLPs' outputs, or all of them, from the injection on; or the vector
    is taken out of every value's or every MLP's input. Measured are the log-odds of the matching answers of
    questions, and whether texts that are written refuse. A random vector has the same done to it.

    \b
    Example:
      vsteer mechanism freeze mechanism/sentiment-12 --questions sentiment --limit 24
    """
    from vsteer.datasets.builtin import find_data
    from vsteer.mechanism.analysis import Analysis
    from vsteer.mechanism.folder import Folder
    from vsteer.mechanism.freezing import CONDITIONS
    from vsteer.mechanism.freezing_tables import Freezing, costs, prompts_of, questions_of, write_freezing

    if questions is None and prompts is None:
        raise UsageError("nothing is asked", "give --questions, --prompts, or both")
    asked = questions_of(find_data(questions, "questions", Path()), limit) if questions else ()
    written = prompts_of(find_data(prompts, "open", Path()), limit) if prompts else ()
    opened = Folder.open(folder)
    if asked and opened.settings.positions == "generated":
        raise UsageError(
            "a steering of generated tokens moves no given answer, whose first token comes before them",
            "leave --questions out, or attribute with other --positions",
        )
    analysis = Analysis.load(opened, device)
    freezing = Freezing(analysis, CONDITIONS, system)
    rows: list[dict[str, Any]] = []
    if asked:
        with counting("asking", len(asked)) as step:
            rows += freezing.log_odds(asked, step)
    if written:
        with counting("writing", len(written)) as step:
            rows += freezing.texts(written, max_tokens, step)
    write_freezing(analysis, rows)
    columns = ("measure", "condition", "items", "steered_effect", "effect", "se", "cost")
    _print(costs(folder), (*columns, "random_effect", "random_steered"))


@mechanism.command(short_help="Read each head's steering value vector in words.")
@FOLDER
@click.option("--tokens", type=COUNT, default=20, show_default=True, help="How many tokens of each head.")
@click.option("--show", type=COUNT, default=10, show_default=True, help="How many heads are printed.")
@DEVICE
def values(folder: Path, tokens: int, show: int, device: str) -> None:
    """Read in words what each head writes when it attends to the steering of FOLDER alone.

    The longest value vectors are printed, each beside that of a random vector at the same head; all of them
    are in head_values.parquet.

    \b
    Example:
      vsteer mechanism values mechanism/sentiment-12
    """
    from vsteer.mechanism.analysis import Analysis
    from vsteer.mechanism.folder import Folder
    from vsteer.mechanism.value_tables import write_values
    from vsteer.terminal import on_one_line

    analysis = Analysis.load(Folder.open(folder), device)
    layers = (1 + analysis.settings.controls) * (analysis.model.layers - analysis.graph.first)
    with counting("reading heads", layers) as step:
        rows = write_values(analysis, tokens, step)
    heads: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        heads.setdefault((row["control_index"], row["layer"], row["head"]), []).append(row)
    own = sorted((key for key in heads if key[0] is None), key=lambda key: -heads[key][0]["length"])
    lines = []
    for _, layer, head in own[:show]:
        for index, words in ((None, ""), (0, "random")):
            of = heads[index, layer, head]
            said = " ".join(on_one_line(row["token"].strip()) for row in of[:8])
            lines.append([str(layer), str(head), words, number(of[0]["length"]), said])
    echo(plain_table(["LAYER", "HEAD", "CONTROL", "LENGTH", "TOKENS"], lines))


@mechanism.command(short_help="Write vectors with few dimensions left, and the grid that sweeps them.")
@FOLDER
@click.option("--ratios", help="Thresholds, such as 0.5,1,2; by default the paper's, 0.1 to 2.5.")
@click.option("--data", default="sentiment", show_default=True, help="What the grid asks: questions.")
@click.option("--limit", type=COUNT, help="Ask only the first so many.")
@click.option("--system", help="System prompt in front of every question.")
@click.option("--grid", type=_PATH, help="The grid's file; by default sparsity.yaml in FOLDER.")
def sparsify(
    folder: Path, ratios: str | None, data: str, limit: int | None, system: str | None, grid: Path | None
) -> None:
    """Write sparse vectors by the attribution in FOLDER, and by three baselines with as many dimensions.

    A dimension stays where its share of the attributed effect is at least RATIO times its share of the
    vector; what is left is as long as the whole vector was. The grid that is written sweeps them all beside
    the whole vector and random ones. RUN.yaml for a FOLDER RUN/mechanism/NAME makes one run of both.

    \b
    Example:
      vsteer mechanism sparsify mechanism/sentiment-12
    """
    from vsteer.mechanism.folder import Folder
    from vsteer.mechanism.sparse_files import GRID, write_sparse
    from vsteer.mechanism.sparsify import RATIOS

    opened = Folder.open(folder)
    asked = {"kind": "choice", "data": data, "limit": limit, "system": system}
    given = {name: value for name, value in asked.items() if value is not None}
    grid = grid or folder / GRID
    wanted = _numbers(ratios, "--ratios") if ratios else RATIOS
    with counting("writing vectors", len(wanted)) as step:
        rows = write_sparse(opened, wanted, given, grid, step)
    _print(rows, ("method", "ratio", "dimensions", "share", "cosine"))
    echo(f"next: vsteer run {grid}")


def _texts(settings: Settings, data: str, limit: int | None, max_tokens: int) -> list[Text]:
    """The texts of a file, or those that vLLM writes to prompts: steered ones, then unsteered ones."""
    from vsteer.datasets.builtin import find_data
    from vsteer.datasets.readers import read_prompts
    from vsteer.mechanism.texts import Text, holds_texts, read_texts
    from vsteer.vectors.files import load

    path = find_data(data, "open", Path())
    if holds_texts(path):
        found = read_texts(path)
        prompts = list(dict.fromkeys(text.prompt for text in found))[:limit]
        return [text for text in found if text.prompt in prompts]
    from vsteer.api.engine import Engine

    prompts = list(dict.fromkeys(prompt.text for prompt in read_prompts(path).prompts))[:limit]
    steering = load(settings.vector).at(settings.layer, settings.multiplier)
    echo("... starting vLLM to write the texts", err=True)
    texts = []
    dtype = "float32" if settings.dtype == "float64" else settings.dtype
    with Engine(settings.model, revision=settings.revision, dtype=dtype, enforce_eager=True) as engine:
        for written, steer in (("steered", steering), ("unsteered", None)):
            responses = engine.generate(
                prompts,
                steer=steer,
                positions=settings.positions,
                system=settings.system,
                max_tokens=max_tokens,
            )
            texts += [
                Text(prompt, response, written)
                for prompt, response in zip(prompts, responses, strict=True)
                if response.strip()
            ]
    return texts


def _print(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    cells = [[number(row[name]) for name in columns] for row in rows]
    echo(plain_table([name.replace("_", " ").upper() for name in columns], cells))


def _sizes(text: str) -> list[int]:
    found = _numbers(text, "--sizes")
    if any(value != int(value) or value < 1 for value in found):
        raise UsageError("--sizes are whole numbers of edges", "such as --sizes 100,200,400")
    return [int(value) for value in found]


def _numbers(text: str, option: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or any(not 0 < value < 1e9 for value in found):
        raise UsageError(f"{option} is a list of positive numbers", f"such as {option} 1,2")
    return found


mechanism.add_command(project)
