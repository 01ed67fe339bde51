"""Build the documentation site: `sphinx-build -W --keep-going -b html docs docs/_build/html`."""

import sys
from pathlib import Path

from internal_policy import __version__

sys.path.insert(0, str(Path(__file__).parent))

project = "internal-policy"
author = "the authors of internal-policy"
version = release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton", "generated", "docstrings", "twins"]
exclude_patterns = ["_build", "_generated", "rooms.md"]

nb_execution_mode = "off"  # notebooks are shown with the outputs they were saved with
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

add_module_names = False
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
maximum_signature_line_length = 88

smartquotes = False  # it turns the -- of options into dashes

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = [("filter.js", {"defer": "defer"})]
html_title = "internal-policy"
html_copy_source = False
html_show_copyright = False
copybutton_exclude = ".linenos, .gp, .go"
