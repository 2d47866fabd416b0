import json

from lda_aqu.engine.metrics_file import read_metrics, truncate_metrics


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


def test_damaged_lines_are_dropped_and_kept_aside(tmp_path, caplog):
    """As a power cut may leave them; the file is that of a writer which has it open."""
    path = tmp_path / "metrics.json"
    write(path, [19, 39, 59, 79])
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = b"".join(
        [lines[0], b"\n", b"\x00" * 9 + b"\n", b"[1]\n", lines[1][:9] + b"\n", *lines[2:]]
    )
    path.write_bytes(damaged)
    assert [record["iteration"] for record in read_metrics(str(tmp_path))] == [19, 59, 79]
    with path.open("a") as writer:
        truncate_metrics(str(tmp_path), 60, 200)
        writer.write('{"iteration": 61}\n')
    assert records(path) == [19, 59, 61]
    (kept,) = tmp_path.glob("metrics-*.json")
    assert kept.read_bytes() == damaged and "4 lines" in caplog.text
