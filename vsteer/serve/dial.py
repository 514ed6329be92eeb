"""What steers a chat, and the commands that turn it while the chat goes on: `/layer 13`, `/times 1.5`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vsteer.errors import UsageError
from vsteer.serve.names import BASE, parse_name, spelled
from vsteer.validation import did_you_mean, shown

HELP = """\
/layer 13, /layer 10..16   where the vector acts
/times 1.5                 how often it is added
/vector NAME               another vector of the server's
/positions after_prompt    on which tokens it acts
/off, /on                  without it, and with it again
/project 20, /project off  colour tokens by the stream's component along it
/new                       begin the conversation anew
/quit                      as Ctrl-D does"""
_SETTINGS = {"/layer": "layers", "/times": "times", "/vector": "vector", "/positions": "positions"}
COMMANDS = (*_SETTINGS, "/off", "/on", "/project", "/new", "/quit", "/help")


@dataclass(frozen=True)
class Dial:
    vector: str
    layers: str
    times: str = "1"
    positions: str = "after_prompt"
    on: bool = True
    # behind which layer answers are projected
    project: int | None = None
    # the server's vectors and their layers
    known: Mapping[str, Sequence[int]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The model to ask for. A UsageError says what of it can't be read, or is not there."""
        if not self.on:
            return BASE
        steering = parse_name(f"{BASE}+{self.vector}@{self.layers}*{self.times}:{self.positions}")
        if self.vector not in self.known:
            names = f"the server has {', '.join(self.known) or 'none'}"
            raise UsageError(
                f"no vector is called {shown(self.vector)}", did_you_mean(self.vector, self.known, names)
            )
        for term in steering.terms:
            self._check(term.layer)
        return spelled(steering)

    def _layer(self, written: str) -> int:
        if not (written.isascii() and written.isdigit()):
            raise UsageError(
                f"expected a layer, found {shown(written)}", "such as /project 20, or /project off"
            )
        layer = int(written[:9])
        self._check(layer)
        return layer

    def _check(self, layer: int) -> None:
        layers = self.known[self.vector]
        if layer not in layers:
            raise UsageError(
                f"{self.vector} has no layer {layer}", f"it has {len(layers)}, {layers[0]} to {layers[-1]}"
            )

    def turned(self, line: str) -> Dial:
        """The dial after a command. A UsageError says what is wrong with it."""
        word, _, value = line.strip().partition(" ")
        if word in ("/on", "/off"):
            return replace(self, on=word == "/on")
        if word == "/project":
            return replace(self, project=None if value.strip() == "off" else self._layer(value.strip()))
        if word not in _SETTINGS:
            raise UsageError(f"no command is called {shown(word)}", did_you_mean(word, COMMANDS, "try /help"))
        setting: dict[str, Any] = {_SETTINGS[word]: value.strip()}
        turned = replace(self, on=True, **setting)
        assert turned.name
        return turned
