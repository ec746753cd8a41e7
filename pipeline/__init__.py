"""Beam jobs: preprocess, batch_score; readers of raw formats; data validation."""

from pipeline import quiet

quiet.start()
