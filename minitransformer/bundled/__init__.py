"""The small model that the course ships: its text, its tokenizer, its training, its report card."""

from pathlib import Path

FOLDER = Path(__file__).parent / "weights"  # weights/main and weights/draft, ordinary checkpoint folders
