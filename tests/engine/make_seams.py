"""Makes vsteer/engine/seams.json anew from wheels of vLLM, one or several a version:

python -m tests.engine.make_seams WHEEL...
"""

from __future__ import annotations

import json
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vsteer.engine import vllm_compat as seams


def table_of(wheels: Iterable[Path]) -> dict[str, list[dict[str, Any]]]:
    """The table of these wheels, one or several a version."""
    forms: dict[str, dict[seams.Form, list[str]]] = {}
    for wheel in wheels:
        name = wheel.name.split("-")[1].partition("+")[0]
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [file for file in archive.namelist() if file.endswith(".py")])
            for upstream, form in seams.forms_of(
                Path(folder), (upstream for _, upstream in seams.declared())
            ).items():
                versions = forms.setdefault(upstream, {}).setdefault(form, [])
                if name not in versions:
                    versions.append(name)
    return {
        upstream: [
            {"versions": versions, "signature": form.signature, "content": form.content}
            for form, versions in of.items()
        ]
        for upstream, of in forms.items()
    }


if __name__ == "__main__":
    if not sys.argv[1:]:
        raise SystemExit(__doc__)
    seams.TABLE.write_text(json.dumps(table_of(map(Path, sys.argv[1:])), indent=1) + "\n")
