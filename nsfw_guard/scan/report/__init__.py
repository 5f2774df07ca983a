"""The page about a scan, ``nsfw-guard report``: one HTML file that needs nothing else, and what reviewers decide on it.

``latest`` says which rows count, ``tally`` and ``folders`` count them, ``gallery`` picks what is shown, ``thumbnails``
makes its pictures small, ``page`` puts the HTML together, and ``decisions`` reads what the page exports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...lazy import lazily

if TYPE_CHECKING:
    from .decisions import Decision, read_decisions
    from .write import Report, write_report

__all__ = ["Decision", "Report", "read_decisions", "write_report"]

# The command line imports this package each time it starts.
__getattr__ = lazily(__name__, {"decisions": ("Decision", "read_decisions"), "write": ("Report", "write_report")})
