"""Folders and files of the project that tests read."""

from pathlib import Path

PROJECT = Path(__file__).parents[2]
DEPLOY = PROJECT / "deploy"
DATA = PROJECT / "tests" / "data"
EVENTS = DATA / "segment_events.jsonl"
