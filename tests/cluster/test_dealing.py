"""Who has which work, without Ray: nothing is lost, doubled or kept from an engine that is ready."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from vsteer.cluster.dealing import AT_ONCE, BLOCKS, SUSPECT, Dealing, grouped
from vsteer.cluster.member import Member, Unit
from vsteer.cluster.wire import Answers, Packing, Table, Unpacking
from vsteer.errors import SteeringFault
from vsteer.protocol import Block, BlockScores, Prompt, Request, Result, Steering, Term

STEERINGS = tuple(Steering((Term("v", 0, m / 8),), "all") for m in range(1, 9))


def members(count: int) -> list[Member]:
    return [Member(number, state="up") for number in range(count)]


def request(name: str, *tokens: int) -> Request:
    return Request(name, Prompt.plain(tokens))


def blocks(count: int) -> list[Block]:
    return [Block(f"b{n}", Prompt.plain((n,)), (((), (1, 2)),), (None, *STEERINGS)) for n in range(count)]


def scored(block: Block) -> BlockScores:
    count = len(block.steerings)
    return BlockScores(np.zeros((count, 2)), np.zeros(count, int), np.zeros(count, int))


def answers(member: Member, dry: bool = False, most: int = 10**9) -> Answers:
    """What an engine has under way, done, or the first of it."""
    results: list[tuple[int, Result | BlockScores]] = []
    for number, unit in member.under_way.items():
        for part in unit.left.values():
            results.append((number, scored(part) if isinstance(part, Block) else Result(part.id, "ok")))
    return Answers(1, tuple(results[:most]), dry, len(results))


def test_a_prompts_requests_go_together_in_parts() -> None:
    many = [request(f"a{n}", 1, 2) for n in range(AT_ONCE + 1)]
    more = [request("b", 1, 2, 3), request("c", 1, 3), request("d", 1, 3, 4)]
    groups = [[one.id for one in group] for group in grouped([*many, *more], AT_ONCE)]
    assert [len(group) for group in groups] == [AT_ONCE, 2, 2]
    assert groups[1:] == [[f"a{AT_ONCE}", "b"], ["c", "d"]]


def test_work_is_dealt_evenly_and_an_engine_that_runs_dry_gets_more() -> None:
    some = members(2)
    dealing = Dealing(some, requests=8)
    units = dealing.of_blocks(iter(blocks(100)))
    assert dealing.deal(units)
    assert [member.weight for member in some] == [BLOCKS, BLOCKS]
    done = list(dealing.take(some[0], answers(some[0], dry=True), 0.0))
    assert [block.id for block, _ in done] == ["b0", "b2", "b4", "b6"]
    dealing.deal(units)
    assert [member.weight for member in some] == [2 * BLOCKS, BLOCKS]


def test_a_prompt_stays_on_one_engine() -> None:
    some = members(3)
    dealing = Dealing(some, requests=AT_ONCE)
    asked = [request(f"{p}.{n}", p, 7) for p in range(5) for n in range(2 * AT_ONCE)]
    units = dealing.of_requests(asked)
    homes: dict[str, set[int]] = {}
    while dealing.deal(units) or dealing.given:
        for member in some:
            for unit in member.under_way.values():
                homes.setdefault(next(iter(unit.left)).split(".")[0], set()).add(member.number)
            list(dealing.take(member, answers(member), 0.0))
    assert {len(found) for found in homes.values()} == {1}
    assert len(set.union(*homes.values())) == 3


def test_every_answer_comes_once_whatever_dies() -> None:
    """Some hundred steps of a few engines that answer, run dry, die and come back in any order."""
    rng = np.random.default_rng(0)
    some = members(4)
    dealing = Dealing(some, requests=4)
    asked = blocks(1500)
    units, came, more, deaths = dealing.of_blocks(iter(asked)), list[str](), True, 0
    while more or dealing.given:
        more = dealing.deal(units)
        member = some[rng.integers(4)]
        if rng.random() < 0.05:
            deaths += 1
            # as when nodes are taken away
            dealing.take_back(member, "gone", its_own_death=False)
        else:
            some_of_it = answers(member, dry=bool(rng.integers(2)), most=int(rng.integers(6)))
            came += [block.id for block, _ in dealing.take(member, some_of_it, 0.0)]
    assert deaths > 20
    assert sorted(came) == sorted(block.id for block in asked)


def test_what_engines_die_of_fails_alone() -> None:
    """Of 40 blocks one kills whichever engine takes it."""
    some = members(2)
    dealing = Dealing(some, requests=4)
    units, came, deaths, more = dealing.of_blocks(iter(blocks(40))), dict[str, BlockScores](), 0, True
    while more or dealing.given:
        more = dealing.deal(units)
        for member in some:
            if any("b13" in unit.left for unit in member.under_way.values()):
                deaths += 1
                dealing.take_back(member, "asked to", its_own_death=True)
            else:
                came |= {block.id: result for block, result in dealing.take(member, answers(member), 0.0)}
        came |= {block.id: result for block, result in dealing.failed()}
    assert deaths == SUSPECT + 1
    assert len(came) == 40
    assert [name for name, result in came.items() if result.errors] == ["b13"]
    assert came["b13"].errors == dict.fromkeys(range(9), f"{deaths} engines died of it: asked to")


def test_requests_that_engines_die_of_fail_with_their_prompt() -> None:
    (only,) = some = members(1)
    dealing = Dealing(some, requests=2)
    units = dealing.of_requests([request("good", 1), request("bad", 2), request("bad too", 2, 3)])
    came: dict[str, Result] = {}
    while dealing.deal(units) or dealing.given:
        if any("bad" in unit.left for unit in only.under_way.values()):
            dealing.take_back(only, "asked to", its_own_death=True)
        else:
            came |= {result.id: result for result in dealing.take(only, answers(only), 0.0)}
        came |= {result.id: result for result in dealing.failed()}
    assert {name: result.status for name, result in came.items()} == {
        "good": "ok",
        "bad": "error",
        "bad too": "error",
    }


def test_what_was_not_asked_is_refused() -> None:
    some = members(2)
    dealing = Dealing(some, requests=4)
    dealing.deal(dealing.of_blocks(iter(blocks(8))))
    of_other = answers(some[1])
    with pytest.raises(SteeringFault, match="not given"):
        list(dealing.take(some[0], of_other, 0.0))
    (number, *_), (unit, *_) = some[0].under_way, some[0].under_way.values()
    (block,) = unit.left.values()
    assert isinstance(block, Block)
    short = Block(block.id, block.prompt, block.asked, block.steerings[1:])
    with pytest.raises(SteeringFault, match="another block"):
        list(dealing.take(some[0], Answers(1, ((number, scored(short)),), False, 1), 0.0))
    dealing.clear()
    twice = dealing.of_blocks([blocks(1)[0], blocks(1)[0]])
    with pytest.raises(SteeringFault, match="both named"):
        list(twice)


def test_a_block_travels_by_the_places_of_its_steerings() -> None:
    packing, unpacking = Packing(STEERINGS), Unpacking(Table(1, {}, STEERINGS).steerings)
    other = Steering((Term("w", 1),), (3, 5))

    def through(*chosen: Steering | None) -> tuple[Steering | None, ...]:
        block = Block("b", Prompt.plain((1,)), (((), (1,)),), chosen, divergence=len(chosen) == 1)
        packed = Unit(0, block, {"b": block}).sent(packing).work
        assert not isinstance(packed, tuple)
        assert isinstance(packed.steerings, tuple) == (other in chosen)
        found = unpacking.block(packed)
        assert (found.id, found.prompt, found.asked) == (block.id, block.prompt, block.asked)
        assert found.divergence == block.divergence
        return found.steerings

    every = (None, *STEERINGS)
    for chosen in (every, every, STEERINGS[2:5], (None,), (other, None), every[::-1], ()):
        assert through(*chosen) == chosen
    assert iterates_once(every, unpacking, packing)


def iterates_once(every: tuple[Steering | None, ...], unpacking: Unpacking, packing: Packing) -> bool:
    """Whether blocks with the same steerings share one tuple there, as they do here."""
    made: Iterator[Block] = (Block(str(n), Prompt.plain((n,)), (), every) for n in range(2))
    first, second = (unpacking.block(packing.packed(block)) for block in made)
    return first.steerings is second.steerings


def test_an_engine_without_work_takes_over_what_another_has_not_begun() -> None:
    some = members(3)
    some[1].state = some[2].state = "starting"
    dealing = Dealing(some, requests=8)
    dealing.window = some[0].window = 100
    units = dealing.of_blocks(iter(blocks(20)))
    some[0].window = 100
    assert not dealing.deal(units)
    assert some[0].weight == 20
    assert list(dealing.heirs()) == []
    some[1].state, some[1].window = "up", 4
    ((giver, heir, count),) = dealing.heirs()
    assert (giver, heir, count) == (some[0], some[1], 10)
    giver.heir = heir
    # nobody is asked twice, and nobody inherits twice
    assert list(dealing.heirs()) == []
    newest = list(giver.under_way)[-3:]
    # one of them was answered before the question came
    done = giver.under_way[newest[0]]
    left = Answers(1, ((newest[0], scored(done.content)),), False, 1)  # type: ignore[arg-type]
    assert len(list(dealing.take(giver, left, 0.0))) == 1
    dealing.pass_on(giver, newest)
    assert [unit.number for unit in heir.under_way.values()] == newest[1:]
    assert (giver.weight, heir.weight) == (17, 2)
    assert not any(unit.is_sent for unit in heir.under_way.values())
    found = [block.id for member in some for block, _ in dealing.take(member, answers(member), 1.0)]
    assert len(found) == len(set(found)) == 19
    assert not dealing.given


def test_what_comes_back_for_an_engine_that_died_is_dealt_again() -> None:
    some = members(2)
    dealing = Dealing(some, requests=8)
    units = dealing.of_blocks(iter(blocks(6)))
    some[0].window, some[1].state = 100, "starting"
    assert not dealing.deal(units)
    some[0].heir = some[1]
    dealing.pass_on(some[0], list(some[0].under_way)[3:])
    assert (some[0].weight, some[1].weight) == (3, 0)
    assert not dealing.deal(units)
    assert some[0].weight == 6
    # an engine that has begun everything is not asked again until it is given more
    some[1].state, some[1].window, some[0].heir = "up", 4, some[1]
    dealing.pass_on(some[0], ())
    assert list(dealing.heirs()) == []
