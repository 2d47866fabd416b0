"""Paired studies: models trained with one upsampler or another, with the same seeds.

The command line is ``tools/study.py``.
"""
