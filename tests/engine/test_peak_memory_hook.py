import torch
from detectron2.utils.events import EventStorage
from lda_aqu.engine.peak_memory import PeakMemory


class Trainer:
    """What a hook sees of a trainer."""


def test_records_the_memory_of_the_models_gpu_in_mib(monkeypatch):
    allocated = {torch.device("cuda:1"): 3 * 2**30}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", allocated.get)
    hook = PeakMemory(torch.device("cuda:1"))
    hook.trainer = Trainer()
    with EventStorage() as hook.trainer.storage:
        hook.after_step()
        assert hook.trainer.storage.latest_with_smoothing_hint()["max_mem"] == (3072, 0)
