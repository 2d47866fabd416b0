import json

from lda_aqu.engine.metrics_file import set_aside_metrics, truncate_metrics


def records(path) -> list[int]:
    return [json.loads(line)["iteration"] for line in path.read_text().splitlines()]


def write(path, iterations, tail: str = "") -> None:
    lines = (json.dumps({"iteration": i, "total_loss": 1.0}) + "\n" for i in iterations)
    path.write_text("".join(lines) + tail)


def test_truncated_metrics_end_before_the_resumed_iteration(tmp_path):
    path = tmp_path / "metrics.json"
    write(path, [19, 39, 59, 79], tail='{"iteration": 99, "lo')
    with path.open("a") as writer:
        truncate_metrics(str(tmp_path), 60, 200)
        writer.write('{"iteration": 60}\n')
    assert records(path) == [19, 39, 59, 60]


def test_an_unfinished_line_is_dropped(tmp_path):
    path = tmp_path / "metrics.json"
    write(path, [19, 39], tail='{"iteration": 59, "lo')
    truncate_metrics(str(tmp_path), 100, 200)
    assert records(path) == [19, 39]


def test_what_a_run_that_resumes_between_two_records_writes_again_is_dropped(tmp_path):
    """A run that ended on SIGTERM after iteration 49 has written what was there."""
    path = tmp_path / "metrics.json"
    write(path, [19, 39, 49])
    truncate_metrics(str(tmp_path), 50, 200)
    assert records(path) == [19, 39]


def test_only_an_evaluation_is_repeated_where_nothing_else_is_left_to_do(tmp_path):
    path = tmp_path / "metrics.json"
    write(path, [19, 39, 49])
    with path.open("a") as file:
        file.write('{"iteration": 50, "segm/AP": 4.0}\n')  # which is evaluated again
    truncate_metrics(str(tmp_path), 50, 50)
    assert records(path) == [19, 39, 49]


def test_the_last_evaluation_of_a_run_that_is_prolonged_is_kept(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 89, "total_loss": 1.0}\n{"iteration": 90, "segm/AP": 4.0}\n')
    truncate_metrics(str(tmp_path), 90, 200)
    assert records(path) == [89, 90]


def test_no_metrics_to_truncate(tmp_path):
    truncate_metrics(str(tmp_path), 10, 20)
    assert not list(tmp_path.iterdir())


def test_metrics_of_an_earlier_run_are_kept_apart(tmp_path):
    write(tmp_path / "metrics.json", [19])
    set_aside_metrics(str(tmp_path))
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith("metrics-") and records(kept) == [19]
