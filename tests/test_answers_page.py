"""The page on answers: its program prints what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_program_prints_what_the_page_says() -> None:
    pytest.importorskip("llguidance")
    page = (ROOT / "docs" / "answers.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    expected = re.findall(r"^# (.*\n)", program, re.MULTILINE)
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (run.stderr, run.stdout) == ("", "".join(expected))
