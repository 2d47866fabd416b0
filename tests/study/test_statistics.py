import itertools
import random

import numpy as np
import pytest
from lda_aqu.study.statistics import compare, holm, sign_flip_p, t_interval
from results import result
from scipy import stats


@pytest.mark.parametrize("pairs", [3, 5, 10])
def test_interval_and_p_of_differences(pairs):
    rng = np.random.default_rng(pairs)
    a, b = rng.normal(0.6, 1, pairs), rng.normal(0, 1, pairs)
    interval = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert t_interval(list(a - b)) == pytest.approx((interval.low, interval.high))

    flips = [abs(np.dot(signs, a - b)) for signs in itertools.product((1, -1), repeat=pairs)]
    exact = np.mean(np.array(flips) >= abs(np.sum(a - b)) - 1e-12)
    assert sign_flip_p(a - b) == pytest.approx(exact)


def test_p_of_many_pairs_is_drawn_and_always_the_same():
    differences = np.random.default_rng(0).normal(0.3, 1, 30)
    p = sign_flip_p(differences)
    assert p == sign_flip_p(differences)
    assert p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.02)


def test_no_difference_at_all():
    assert sign_flip_p([0.0] * 4) == 1
    assert t_interval([0.5] * 4) == (0.5, 0.5)


def test_holm():
    # Holm's own step down: 0.01 * 4, 0.02 * 3, max(0.06, 0.03 * 2), max(0.06, 0.9)
    assert holm([0.03, 0.9, 0.01, 0.02]) == pytest.approx([0.06, 0.9, 0.04, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_runs_of_one_seed_are_pairs_whatever_their_order():
    results = [
        result(name, seed, metrics={"bbox/AP": base + seed + gain * (seed != 2)})
        for name, base, gain in (("Nearest", 40, 0), ("LDAAQU", 41, 0.5), ("CARAFE", 39, 0))
        for seed in range(1, 5)
        if (name, seed) != ("LDAAQU", 4)
    ]
    results[1]["metrics"]["bbox/AP"] = None  # nearest, seed 2
    random.Random(0).shuffle(results)
    arms = {arm.upsampler: arm for arm in compare(results)}
    assert next(iter(arms)) == "Nearest"
    assert arms["Nearest"].values == (41, 43, 44) and arms["Nearest"].differences == ()
    assert arms["LDAAQU"].values == (42.5, 43, 44.5)
    assert arms["LDAAQU"].differences == (1.5, 1.5)  # of the seeds 1 and 3
    assert arms["LDAAQU"].interval is None and arms["LDAAQU"].p_holm is None
    assert arms["CARAFE"].differences == (-1, -1, -1)
    assert arms["CARAFE"].p == 0.25 == arms["CARAFE"].p_holm  # the only one that is tested
    assert arms["CARAFE"].seconds == 25 and arms["CARAFE"].peak_memory == 102.5


def test_metrics_of_each_dataset():
    values = {"one/sem_seg/mIoU": 1.0, "two/sem_seg/mIoU": 2.0, "two/sem_seg/BoundaryIoU": 3.0}
    results = [result(name, 1, metrics=values) for name in ("Nearest", "LDAAQU")]
    for item in results:
        del item["metrics"]["bbox/AP"]
    found = [(arm.metric, arm.mean) for arm in compare(results) if arm.upsampler == "LDAAQU"]
    assert found == [("mIoU, one", 1), ("mIoU, two", 2), ("boundary IoU, two", 3)]
