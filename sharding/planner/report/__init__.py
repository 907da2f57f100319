"""The page that shows a plan: one file of HTML that needs no network. `render` makes it from the document in
`planner/result.py` and computes nothing about plans.
"""

from __future__ import annotations

from tesserec.sharding.planner.report.page import render

__all__ = ["render"]
