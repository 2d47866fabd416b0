"""Measuring upsamplers: time, memory, parameters and FLOPs, of the modules and of whole models.

The command lines are ``tools/benchmark.py`` and ``tools/compare_upsamplers.py``.
"""
