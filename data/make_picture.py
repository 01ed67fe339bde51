"""Draw what `internal-policy scan` prints for the bundled Qwen3 model, for the README: python data/make_picture.py."""

import os
import re
import tempfile
from pathlib import Path

from rich.console import Console

from internal_policy import show
from internal_policy.__main__ import main

picture = Path(__file__).with_name("scan.svg").absolute()
show.out = Console(record=True, width=76, highlight=False)
with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    os.environ["INTERNAL_POLICY_CACHE"] = "~/.cache/internal-policy"  # a folder called ~ here, so that it is a new scan
    main(["scan"])
drawn = show.out.export_svg(title="internal-policy scan")
local = re.sub(r"@font-face\s*\{[^}]*\}", "", drawn).replace(
    "Fira Code", "monospace"
)  # nothing is fetched from outside
picture.write_text(local)
