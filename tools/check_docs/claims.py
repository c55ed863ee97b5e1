"""Refuses a speed or size claim that shows no evidence.

"3× faster", "twice the throughput" or "40 % slower" must have, in the same paragraph line, a number
that the build fills in (``{{ result: … }}``, ``{{ ratio: … }}``, ``{{ calc: … }}``,
``{{ constant: … }}``) or a link to a source. Formulas (``2 × 28``), shapes (``16×16``) and code are
no claims.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tools.check_docs.problem import Problem
from tools.markdown import lines, without_code_spans

_COMPARED = (
    r"(?:as\s+)?(?:faster|slower|quicker|more|less|fewer|smaller|larger|bigger|higher|lower|shorter|"
    r"longer|cheaper|better|worse|speed-?up|the\s+throughput|as\s+(?:fast|many|much|long|large|small))"
)
_BASE = r"(?:that\s+of|those\s+of|M\d(?:['’]s)?|vLLM['’]s|its)"
_NUMBER = r"\d[\d,]*(?:\.\d+)?(?:\s?[–-]\s?\d[\d,]*(?:\.\d+)?)?"
_WORDS = r"(?:two|three|four|five|six|seven|eight|nine|ten|a\s+hundred|hundreds\s+of|dozens\s+of)"
_CLAIMS = re.compile(
    rf"(?<![\w.×]){_NUMBER}[×x](?![\w(])(?!\s?\d)"  # 3×, not 16×16, 2×layers or 0x10
    rf"|(?<![\w.]){_NUMBER}\s+[×x]\s+{_COMPARED}\b"  # 3 × faster
    rf"|\b(?:{_NUMBER}|{_WORDS})\s+times\s+(?:{_COMPARED}|{_BASE})\b"  # three times faster, M3's
    rf"|\b(?:twice|thrice)\s+{_COMPARED}\b"
    rf"|(?<![\w.]){_NUMBER}\s?%\s+{_COMPARED}\b",  # 40 % slower
    re.IGNORECASE,
)
_MATHS = re.compile(r"\$\$?[^$]+\$\$?")
_TOKEN = re.compile(r"\{\{\s*(?:result|ratio|calc|constant):[^{}]*\}\}")
_CITATION = re.compile(r"\]\((?:https?://|[^)\s]*#(?:ref-|references))|\[\^[\w-]+\]|<https?://")


def check_claims(page: str, text: str) -> Iterator[Problem]:
    """Yield every line that claims a ratio without evidence on the same line."""
    display = False
    for line in lines(text):
        if line.in_code:
            continue
        if line.text.strip() == "$$":
            display = not display
        if display:
            continue
        prose = _MATHS.sub("", without_code_spans(line.text))
        if _TOKEN.search(prose) or _CITATION.search(prose):
            continue
        claim = _CLAIMS.search(prose)
        if claim:
            message = f"claim {claim[0]!r} without a measured number or a citation on its line"
            yield Problem(page, line.number, message)
