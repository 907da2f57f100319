"""The manual: sphinx, furo, myst. Warnings are errors (`make docs`)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from sphinx.application import Sphinx

import tesserec
import tesserec.train.report  # be first: autodoc imports under TYPE_CHECKING, where no pydantic model builds

_CODE = r"(`[^`]+`)"

project = "Tesserec"
copyright = "2026, the Tesserec authors"
release = tesserec.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "Tesserec"
html_static_path = ["_static"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"


def _plain_docstring(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Docstrings are plain text: keep their lines as they are, escape what RST would read into them."""
    for i, line in enumerate(lines):
        lines[i] = f"| {''.join(map(_as_rst, re.split(_CODE, line)))}" if line.strip() else ""


def _as_rst(part: str) -> str:
    """Backticked code as a literal; in any other text, markup characters escaped."""
    return f"`{part}`" if re.fullmatch(_CODE, part) else re.sub(r"([*_|\\`])", r"\\\1", part)


def _write_cli_page(app: Sphinx) -> None:
    """`reference/cli.md`: what `--help` prints of every command, as Markdown by typer itself."""
    page = Path(app.srcdir) / "reference" / "cli.md"
    command = [sys.executable, "-m", "typer", "tesserec.cli", "utils", "docs", "--name", "tesserec"]
    subprocess.run([*command, "--title", "Command line", "--output", page], check=True, capture_output=True)


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", _write_cli_page)
    app.connect("autodoc-process-docstring", _plain_docstring)
