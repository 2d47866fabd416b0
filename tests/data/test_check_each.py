import os
import re
import signal
import time

import pycocotools.mask as mask_util
import pytest
from lda_aqu.data.check_each import check_each
from lda_aqu.errors import InputError


def check(action, items=range(100), **limits) -> None:
    check_each("pets", "things", items, action, lambda item: f"thing {item}", **limits)


def test_every_item_is_checked(tmp_path):
    check(lambda item: (tmp_path / str(item)).touch())
    assert len(list(tmp_path.iterdir())) == 100
    check(lambda item: item, [])


def refuse(item: int) -> None:
    if item in (40, 70):
        raise InputError("it is odd")


@pytest.mark.parametrize(
    "action, message",
    [
        (lambda item: 1 / (item - 40), "1 of 100 .* first: thing 40: ZeroDivisionError: division"),
        (refuse, "2 of 100 things cannot be used, the first: thing 40: it is odd"),
        (
            lambda item: item == 40 and os.kill(os.getpid(), signal.SIGSEGV),
            r"thing 40: what reads it dies \(Segmentation fault\)",
        ),
        (lambda item: item == 40 and os._exit(3), r"thing 40: what reads it dies \(exit status 3"),
        (lambda item: item == 40 and bytearray(2**40), "thing 40: MemoryError"),
    ],
)
def test_an_item_at_fault_is_named(action, message, capfd):
    with pytest.raises(InputError, match=message):
        check(action)
    assert capfd.readouterr().err.strip() == ""


def test_memory_that_nobody_wrote_is_not_zero():
    truncated = {"size": [10, 10], "counts": "0"}
    with pytest.raises(InputError, match="thing 0: AssertionError"):
        check(lambda item: _assert_empty(mask_util.decode(truncated)), range(1))


def _assert_empty(mask) -> None:
    assert not mask.any()


def test_after_some_time_the_rest_is_left(caplog):
    with caplog.at_level("INFO"):
        check(lambda item: time.sleep(0.1), range(1000), seconds=0.5)
    assert re.search(r"Dataset pets: checked [1-9]\d? of 1000 things", caplog.text)
