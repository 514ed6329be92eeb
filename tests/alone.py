"""How a test invokes a command of vsteer by itself, without the group that turns its errors into text."""

from __future__ import annotations

from typing import Any

# click keeps a command's help option from its first use on, which the pages made from the code then show.
AS_IN_MAIN: dict[str, Any] = {"help_option_names": ["-h", "--help"]}
