"""YAML with the line of every value: what a file holds, and where.

PyYAML's own loader forgets where a value stood and silently lets the second of two equal keys win. Here a
file is composed into nodes, which know their places, and read from those; only safe tags are taken.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from vsteer.grid.problems import GridError, Loc, Source

# An alias stands for a whole tree, so a few nested ones can make more values than memory holds.
MOST_VALUES = 100_000
_PREFIX = "tag:yaml.org,2002:"
_MERGE = _PREFIX + "merge"


def read_yaml(path: str | Path) -> Source:
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise GridError(f"{path}: {error.strerror}", "name a YAML file that exists and can be read") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        message = f"expected UTF-8 text, found byte 0x{error.object[error.start]:02x}"
        raise _error(path, line, message, "save the file as UTF-8") from None
    reader = _Reader(path)
    node = reader.compose(text)
    if node is None:
        raise _error(path, 1, "expected a grid, found an empty file", "is it the file you meant?")
    try:
        value = reader.value(node, (), node)
    except RecursionError:
        reader.fail(node, "the values are nested too deeply", "a grid is a few levels deep")
    return Source(value, path.parent, path, reader.lines)


def _error(path: Path, line: int, message: str, hint: str) -> GridError:
    return GridError(f"{path}, line {line}: {message}", hint)


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[Loc, int] = {}
        self._open: set[int] = set()
        self._scalars = yaml.SafeLoader("")

    def compose(self, text: str) -> Node | None:
        try:
            node: Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 1
            reason = " ".join(part for part in (error.context, error.problem) if part)
            hint = "look at the indentation and the quotes"
            raise _error(self.path, line, f"not valid YAML: {reason}", hint) from None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            message = f"a character that YAML forbids: {error.character!r}"
            raise _error(self.path, line, message, "take it out") from None
        except RecursionError:
            message = "the values are nested too deeply"
            raise _error(self.path, 1, message, "a grid is a few levels deep") from None
        except (ValueError, IndexError, OverflowError) as error:  # such as the escape "\U7fffffff"
            hint = "look at escapes such as \\U in quoted texts"
            raise _error(self.path, 1, f"not valid YAML: {error}", hint) from None
        return node

    def value(self, node: Node, loc: Loc, key: Node) -> object:
        """The value of `node`, whose place in the file is that of `key`: its own, or of the key before it."""
        self.lines[loc] = key.start_mark.line + 1
        if len(self.lines) > MOST_VALUES:
            self.fail(key, f"aliases make more than {MOST_VALUES} values of this file", "write it out")
        if isinstance(node, ScalarNode):
            return self._scalar(node)
        if id(node) in self._open:
            self.fail(key, "an alias stands for something that it is itself a part of", "write it out")
        self._open.add(id(node))
        value: object
        if isinstance(node, MappingNode):
            value = self._mapping(node, loc)
        elif isinstance(node, SequenceNode) and node.tag == _PREFIX + "seq":
            value = [self.value(child, (*loc, n), child) for n, child in enumerate(node.value)]
        else:
            self.fail(node, f"the tag {node.tag} is not known here", "leave the tag out")
        self._open.remove(id(node))
        return value

    def _mapping(self, node: MappingNode, loc: Loc) -> dict[str, object]:
        if node.tag != _PREFIX + "map":
            self.fail(node, f"the tag {node.tag} is not known here", "leave the tag out")
        value: dict[str, object] = {}
        for key, child in node.value:
            if key.tag == _MERGE:
                continue
            name = self._scalar(key) if isinstance(key, ScalarNode) else None
            if not isinstance(name, str):
                self.fail(key, "expected the name of a setting", "put a key that is not a word in quotes")
            if name in value:
                first = self.lines[*loc, name]
                self.fail(
                    key, f"the key {name!r} stands twice, first on line {first}", "join them, or take one out"
                )
            value[name] = self.value(child, (*loc, name), key)
        for key, child in node.value:
            if key.tag == _MERGE:
                self._merge(child, loc, key, value)
        return value

    def _merge(self, node: Node, loc: Loc, key: Node, value: dict[str, object]) -> None:
        """`<<: *other` takes what the other mapping has and this one lacks."""
        others = node.value if isinstance(node, SequenceNode) else [node]
        for other in others:
            if not isinstance(other, MappingNode) or id(other) in self._open:
                self.fail(key, "expected the alias of a mapping after <<", "such as <<: *defaults")
            self._open.add(id(other))
            merged = self._mapping(other, (*loc, "<<"))
            self._open.remove(id(other))
            for name, held in merged.items():
                if name not in value:
                    value[name] = held
                    self._adopt((*loc, "<<", name), (*loc, name))

    def _adopt(self, old: Loc, new: Loc) -> None:
        """A merged value keeps the lines on which it was written."""
        for known, line in list(self.lines.items()):
            if known[: len(old)] == old:
                self.lines[*new, *known[len(old) :]] = line

    def _scalar(self, node: ScalarNode) -> object:
        kind = node.tag.removeprefix(_PREFIX)
        # Half a surrogate pair can't be hashed or printed, and a zero byte can't stand in a path.
        if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in node.value):
            self.fail(
                node, "expected Unicode text, found an escape that stands for no character", "replace it"
            )
        if kind in ("str", "timestamp", "value", "merge"):
            return node.value  # A date stays a text.
        if kind not in ("null", "bool", "int", "float"):
            self.fail(node, f"the tag {node.tag} is not known here", "leave the tag out")
        try:
            value: object = self._scalars.construct_object(node)
        except (ValueError, LookupError, OverflowError, yaml.YAMLError):
            self.fail(node, f"expected {_KINDS[kind]}, found {node.value[:60]!r}", "put a text in quotes")
        return value

    def fail(self, node: Node, message: str, hint: str) -> NoReturn:
        raise _error(self.path, node.start_mark.line + 1, message, hint)


_KINDS = {"null": "nothing", "bool": "true or false", "int": "a whole number", "float": "a number"}
