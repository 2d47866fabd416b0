"""What the results of a study say: means, paired differences, intervals and tests."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from .results import Result

LEAST_PAIRS = 3
"""With fewer, there is no interval and no test."""
CONFIDENCE = 0.95
EXACT_FLIPS = 2**16
"""Up to as many assignments of signs, 16 pairs, all are taken; beyond, as many at random."""

METRICS = {
    "bbox/AP": "box AP",
    "segm/AP": "mask AP",
    "sem_seg/mIoU": "mIoU",
    "sem_seg/BoundaryIoU": "boundary IoU",
    "panoptic_seg/PQ": "PQ",
}
"""Those that are compared, by their names in ``metrics.json`` without the dataset."""


@dataclass(frozen=True)
class Arm:
    """One upsampler by one metric.

    Args:
        metric: its name, and the dataset where there are several.
        upsampler: NAME or NAME:OPTION=VALUE,...
        values: of the runs, in percent, in the order of the seeds.
        differences: to the baseline, of the seeds that both have; empty for the baseline.
        interval: of the mean difference, Student's t; None with fewer than LEAST_PAIRS pairs.
        p: two-sided, of flipping the signs of the differences; None likewise.
        p_holm: ``p`` corrected for the number of upsamplers that are compared.
        seconds: of training, median.
        peak_memory: in MiB, median.
    """

    metric: str
    upsampler: str
    values: tuple[float, ...]
    differences: tuple[float, ...]
    interval: tuple[float, float] | None
    p: float | None
    p_holm: float | None
    seconds: float
    peak_memory: float

    @property
    def mean(self) -> float:
        """Of the values."""
        return statistics.fmean(self.values)

    @property
    def sd(self) -> float | None:
        """Sample standard deviation of the values; None of one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        """Mean of the differences, if there are any."""
        return statistics.fmean(self.differences) if self.differences else None


def compare(results: Sequence[Result]) -> list[Arm]:
    """Compare upsamplers with the baseline of their study, by each metric that the runs have.

    Runs of one seed make a pair. A run whose metric is no number counts in neither mean nor pairs.
    The baseline comes first.
    """
    baseline = results[0]["baseline"]
    names = dict.fromkeys([baseline, *(r["upsampler"] for r in results)])
    arms = []
    for key, metric in _metrics(results):
        values: dict[str, dict[int, float]] = {name: {} for name in names}
        for result in sorted(results, key=lambda r: r["seed"]):
            value = result["metrics"].get(key)
            if value is not None:
                values[result["upsampler"]][result["seed"]] = value
        found = [
            _arm(metric, name, values[name], values[baseline] if name != baseline else {}, results)
            for name in names
            if values[name]
        ]
        corrected = iter(holm([arm.p for arm in found if arm.p is not None]))
        arms += [replace(a, p_holm=next(corrected)) if a.p is not None else a for a in found]
    return arms


def _metrics(results: Sequence[Result]) -> Iterator[tuple[str, str]]:
    """Keys in the results' metrics and their names, in the order of METRICS."""
    present = dict.fromkeys(key for result in results for key in result["metrics"])
    for suffix, name in METRICS.items():
        for key in present:
            if f"/{key}".endswith(f"/{suffix}"):
                dataset = key.removesuffix(suffix).rstrip("/")
                yield key, f"{name}, {dataset}" if dataset else name


def _arm(
    metric: str,
    upsampler: str,
    values: dict[int, float],
    baseline: dict[int, float],
    results: Sequence[Result],
) -> Arm:
    differences = [value - baseline[seed] for seed, value in values.items() if seed in baseline]
    own = [r for r in results if r["upsampler"] == upsampler]
    enough = len(differences) >= LEAST_PAIRS
    return Arm(
        metric,
        upsampler,
        tuple(values.values()),
        tuple(differences),
        t_interval(differences) if enough else None,
        sign_flip_p(differences) if enough else None,
        None,
        statistics.median(r["seconds"] for r in own),
        statistics.median(r["peak_memory"] for r in own),
    )


def t_interval(differences: Sequence[float]) -> tuple[float, float]:
    """The CONFIDENCE interval of the mean, of Student's t distribution."""
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / len(differences) ** 0.5
    half = error * float(stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1))
    return mean - half, mean + half


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p of the mean, where either sign of each difference is as likely as the other.

    Of all assignments of signs, or of EXACT_FLIPS random ones, always the same.
    """
    test = stats.permutation_test(
        (np.asarray(differences),),
        np.mean,
        permutation_type="samples",
        n_resamples=EXACT_FLIPS,
        vectorized=True,
        batch=1024,
        rng=np.random.default_rng(0),
    )
    return float(test.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values corrected by Holm's step-down method (Holm, 1979), in the same order."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.maximum.accumulate(np.asarray(p_values)[order] * factors).clip(max=1)
    return corrected.tolist()
