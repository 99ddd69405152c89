"""Headless Chromium for tests: a Node process that is sent commands and aborts every request."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
UI = ROOT / "ui"


def missing() -> str:
    """Why there is no browser here; empty where there is one."""
    if not shutil.which("node"):
        return "node is not installed"
    if not (UI / "node_modules" / "playwright-core").is_dir():
        return "ui/node_modules is missing; run: make ui"
    if not chromium():
        return "chromium is not installed"
    return ""


def chromium() -> str | None:
    """The browser's path."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One browser, one page at a time."""

    def __init__(self) -> None:
        command = ["node", "browser.mjs", str(chromium())]
        self.process = subprocess.Popen(command, cwd=UI, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, command: str, **options: Any) -> Any:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"command": command, **options}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the browser's process has ended"
        answer = json.loads(line)
        if "error" in answer:
            raise AssertionError(f"{command}: {answer['error']}")
        return answer["answer"]

    def canvas(self, selector: str, index: int = 0) -> np.ndarray:
        """The pixels of a canvas, [row, column, RGBA]."""
        code = f"""(() => {{
            const canvas = document.querySelectorAll({json.dumps(selector)})[{index}];
            const {{ data, width, height }} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            let text = "";
            for (let i = 0; i < data.length; i += 8192) text += String.fromCharCode(...data.subarray(i, i + 8192));
            return [width, height, btoa(text)];
        }})()"""
        width, height, data = self("evaluate", code=code)
        return np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4)

    def quiet(self) -> None:
        """Fails if the page asked the network for anything or reported an error."""
        report = self("report")
        assert report["requests"] == [], f"the page asked for {report['requests']}"
        assert report["errors"] == [], f"the page reported {report['errors']}"

    def close(self) -> None:
        """End the browser."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write('{"command": "quit"}\n')
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()
