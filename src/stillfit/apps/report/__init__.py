"""`summary.json` as one self-contained page for people, and the season's picture on its own."""

from stillfit.apps.report.headline import on_hold, paragraphs
from stillfit.apps.report.page import render, season_svg

__all__ = ["on_hold", "paragraphs", "render", "season_svg"]
