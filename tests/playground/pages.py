"""What the tests of the playground share: its folder, and its JavaScript in Node."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "playground"


def ask(*requests):
    """Return what driver.mjs answers to some requests, each a pair of its name and its arguments."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed: apt-get install nodejs")
    command = [node, str(Path(__file__).with_name("driver.mjs")), str(FOLDER)]
    ran = subprocess.run(command, input=json.dumps(requests), capture_output=True, text=True, encoding="utf-8")
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def encode(numbers):
    """Doubles as hexadecimal digits, 16 a number."""
    return np.asarray(numbers, ">f8").tobytes().hex()


def decode(text):
    return np.frombuffer(bytes.fromhex(text), ">f8").astype(np.float64)
