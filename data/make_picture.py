"""Draw what commands print, for the README and the documentation: python data/make_picture.py [FOLDER].

`scan.svg` is `internal-policy scan` on the bundled Qwen3 model. `lens.svg` is drawn too,
of the model in FOLDER, which is SmolLM2-135M-Instruct in the README.
"""

import os
import re
import sys
from pathlib import Path

from internal_policy.__main__ import main
from internal_policy.cli.console import out
from internal_policy.scans import store

TEXT = "The capital of France is"


def picture(command: list[str], width: int) -> str:
    """What a command prints as SVG, in the reader's own monospace font: nothing is fetched from outside."""
    out.width = width
    main(command)
    drawn = out.export_svg(title=f"internal-policy {command[0]}" + (f' "{TEXT}"' if TEXT in command else ""))
    drawn = re.sub(r"@font-face\s*\{[^}]*\}", "", drawn).replace("Fira Code", "monospace")
    return re.sub(r' textLength="[^"]*"', "", drawn.replace(str(store.root()), "~/.cache/internal-policy"))


if __name__ == "__main__":
    os.environ["TTY_COMPATIBLE"] = "1"  # Rich breaks lines as on a terminal
    out.record = True
    here = Path(__file__).parent
    if sys.argv[1:]:
        (here / "lens.svg").write_text(picture(["lens", TEXT, "--model", sys.argv[1]], width=72))
    (here / "scan.svg").write_text(picture(["scan"], width=76))
