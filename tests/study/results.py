"""Results of studies that nobody has run."""

from typing import Any


def result(upsampler: str, seed: int, **changes: Any) -> dict[str, Any]:
    metrics = {"bbox/AP": 40.0, "bbox/AP50": 60.0} | changes.pop("metrics", {})
    return {
        **{"seed": seed, "upsampler": upsampler, "options": {}, "metrics": metrics},
        **{"seconds": 10.0 * seed, "peak_memory": 100.0 + seed, "baseline": "Nearest"},
        "config": {"file": "a/b.yaml", "options": [], "compared": ["MODEL.FPN.UPSAMPLER"]},
        **{"device": "a CPU", "threads": 1, "jobs": 2, "commit": "abc"},
        "versions": {"torch": "2", "cuda": None},
        **changes,
    }
