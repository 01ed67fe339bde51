"""Draw what `internal-policy scan` prints for the bundled Qwen3 model, for the README: python data/make_picture.py."""

import os
import re
from pathlib import Path

from internal_policy.__main__ import main
from internal_policy.cli.console import out
from internal_policy.scans import store

os.environ["TTY_COMPATIBLE"] = "1"  # Rich breaks lines as on a terminal
out.record, out.width = True, 76
main(["scan"])
drawn = out.export_svg(title="internal-policy scan")
drawn = re.sub(r"@font-face\s*\{[^}]*\}", "", drawn).replace(
    "Fira Code", "monospace"
)  # without requests to the network
drawn = re.sub(r' textLength="[^"]*"', "", drawn.replace(str(store.root()), "~/.cache/internal-policy"))
Path(__file__).with_name("scan.svg").write_text(drawn)
