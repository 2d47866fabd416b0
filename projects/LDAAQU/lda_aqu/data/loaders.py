"""The data loaders of training and evaluation.

The training's can start at any batch, with no image loaded but those of the batches asked for.
Both name an image that cannot be read.
"""

import itertools
import logging
import multiprocessing
import os
import random
import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import InputError
from ..random_seeds import derive_seed, seeded
from .images import ImageMapper
from .label_files import UNREADABLE, UnreadableImageError, image_size
from .records import Record, load_records

logger = logging.getLogger(__name__)

Mapper = Callable[[Record], Record]

_MAX_REPLACEMENTS = 10  # for one unreadable image, before the data set is given up


class NamingMapper:
    """A mapper that returns an InputError, naming file and dataset, where another cannot read.

    It is returned, not raised, as a DataLoader's worker would bury it in a traceback.

    Args:
        mapper: from a dataset dict to the input of the model.
        dataset: name of the dataset, or of several.
    """

    def __init__(self, mapper: Mapper, dataset: str) -> None:
        self._mapper = mapper
        self._dataset = dataset

    def __call__(self, record: Record) -> Record | InputError:
        """The input of the model for a dataset dict, or the reason why there is none."""
        try:
            return self._mapper(record)
        except UNREADABLE as error:
            reason = " ".join(str(error).split())
            return InputError(
                f"dataset {self._dataset}: image file {record['file_name']!r} or its labels "
                f"cannot be read: {type(error).__name__}: {reason}"
            )


class _Draw(NamedTuple):
    """What a place in the stream of images gave, and the errors of images it stands in for."""

    content: Record | InputError
    skipped: list[InputError]


class _SeededDataset(Dataset):
    """Maps the image of index i at the place p of the stream, (i, p), with a seed of its own."""

    def __init__(
        self, records: Sequence[Record], mapper: NamingMapper, seed: int, skip_unreadable: bool
    ) -> None:
        self._records = records
        self._mapper = mapper
        self._seed = seed
        self._replacements = _MAX_REPLACEMENTS if skip_unreadable else 0

    def __getitem__(self, place: tuple[int, int]) -> _Draw:
        index, position = place
        skipped = []
        with seeded(derive_seed(self._seed, position)):
            content = self._mapper(self._records[index])
            while isinstance(content, InputError) and len(skipped) < self._replacements:
                skipped.append(content)
                content = self._mapper(self._records[random.randrange(len(self._records))])
        return _Draw(content, skipped)


class _Batches(Sampler[list[tuple[int, int]]]):
    """Batches of (index, place in the stream), each of one group, from the batch ``first`` on.

    They are what Detectron2's AspectRatioGroupedDataset makes, but before an image is read.
    """

    def __init__(
        self, indices: Iterable[int], groups: Sequence[int] | None, batch_size: int, first: int
    ) -> None:
        self._indices = indices
        self._groups = groups
        self._batch_size = batch_size
        self._first = first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return itertools.islice(self._all(), self._first, None)

    def _all(self) -> Iterator[list[tuple[int, int]]]:
        unfilled = defaultdict(list)
        # The processes draw in turn from one stream: so is each place counted in all of them.
        positions = itertools.count(comm.get_rank(), comm.get_world_size())
        for index, position in zip(self._indices, positions, strict=False):
            group = self._groups[index] if self._groups is not None else 0
            unfilled[group].append((index, position))
            if len(unfilled[group]) == self._batch_size:
                yield unfilled.pop(group)


class TrainLoader:
    """Endless batches of training images, as lists of the mapper's outputs.

    A batch, augmentation included, is a function of the seed, its number and the process, whatever
    the number of workers.

    Attributes:
        batches_drawn: how many there were. Set before the first is drawn, it is where to start.
        file_names: of the images of the last batch drawn.
        skipped: number of unreadable images that another stood in for, in this process.

    Args:
        records: dataset dicts.
        mapper: from a dataset dict to the input of the model; it may use the global random
            generators.
        indices: endless, those of this process; the same in every iteration over it.
        groups: a number for each record; only images of the same are batched together.
        batch_size: images a batch, in this process.
        seed: of the random numbers of the mapper.
        num_workers: worker processes.
        skip_unreadable: put a random other image in the place of one that cannot be read.
    """

    def __init__(
        self,
        records: list[Record],
        mapper: NamingMapper,
        indices: Iterable[int],
        *,
        groups: Sequence[int] | None = None,
        batch_size: int,
        seed: int,
        num_workers: int = 0,
        skip_unreadable: bool = False,
    ) -> None:
        # Of Detectron2, so that the workers share its memory.
        stored = DatasetFromList(records, copy=False)
        self._dataset = _SeededDataset(stored, mapper, seed, skip_unreadable)
        self._indices = indices
        self._groups = groups
        self._batch_size = batch_size
        self._num_workers = num_workers
        self._draws: Iterator[list[_Draw]] = iter(())
        self.batches_drawn = 0
        self.file_names: list[str] = []
        self.skipped = 0

    def close(self) -> None:
        """End the worker processes, and with them the batches."""
        self._draws = iter(())

    def __iter__(self) -> Iterator[list[Record]]:
        """The batches from number ``batches_drawn`` on.

        Raises:
            InputError: an image cannot be read.
        """
        self._draws = iter(self._build_loader())
        while draws := next(self._draws, None):
            for draw in draws:
                for error in draw.skipped:
                    self.skipped += 1
                    logger.warning("Skipped, %d so far: %s", self.skipped, error)
                if isinstance(draw.content, InputError):
                    self.close()  # whoever keeps the error keeps this loader, too
                    raise draw.content
            batch = [draw.content for draw in draws]
            self.batches_drawn += 1
            self.file_names = [image["file_name"] for image in batch]
            yield batch

    def _build_loader(self) -> DataLoader:
        return DataLoader(
            self._dataset,
            batch_sampler=_Batches(
                self._indices, self._groups, self._batch_size, self.batches_drawn
            ),
            num_workers=self._num_workers,
            collate_fn=trivial_batch_collator,
            worker_init_fn=_obey_parent_alone,
            # Otherwise it would draw from torch's global generator, after a resume once more.
            generator=torch.Generator(),
        )


def _obey_parent_alone(worker: int) -> None:
    """Let a worker outlive a SIGTERM to all processes of a job: an iteration or evaluation ends.

    The process that has started it ends it with a SIGTERM, as Python does at its own end.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()  # not getppid(), a server's where that forks them
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)


def build_train_loader(cfg: CfgNode, mapper: Mapper, total_batch_size: int) -> TrainLoader:
    """The images of ``DATASETS.TRAIN`` in the order of ``DATALOADER.SAMPLER_TRAIN``.

    With a non-negative ``SEED`` it gives the same batches every time.

    Args:
        cfg: a config with this project's keys.
        mapper: from a dataset dict to the input of the model.
        total_batch_size: images a batch, over all processes.
    """
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    # Detectron2's samplers draw their seeds from the global generator.
    with seeded(derive_seed(seed)):
        arguments = build_detection_train_loader.from_config(cfg, mapper=mapper)
    records = arguments["dataset"]
    groups = None
    if arguments["aspect_ratio_grouping"]:
        groups = np.fromiter(map(_is_landscape, records), np.uint8, len(records))
    return TrainLoader(
        records,
        NamingMapper(mapper, ", ".join(cfg.DATASETS.TRAIN)),
        arguments["sampler"],
        groups=groups,
        batch_size=total_batch_size // comm.get_world_size(),
        seed=seed,
        num_workers=arguments["num_workers"],
        skip_unreadable=cfg.DATALOADER.SKIP_UNREADABLE,
    )


def _is_landscape(record: Record) -> bool:
    if "width" in record:
        return record["width"] > record["height"]
    try:
        width, height = image_size(record["file_name"])
    except UnreadableImageError:
        return False  # when its turn comes, it is named, or another stands in for it
    return width > height


class EvaluationLoader:
    """Detectron2's loader of a test dataset, one image a batch, which names an unreadable one.

    Args:
        cfg: a run's config.
        dataset_name: a registered dataset.
        limit: take the first so many images only.
    """

    def __init__(self, cfg: CfgNode, dataset_name: str, limit: int | None = None) -> None:
        self._loader = build_detection_test_loader(
            load_records(dataset_name)[:limit],
            mapper=NamingMapper(ImageMapper(cfg, is_train=False), dataset_name),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )
        self._loader.worker_init_fn = _obey_parent_alone  # for which Detectron2 has no argument

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[Record]]:
        """The batches.

        Raises:
            InputError: an image cannot be read.
        """
        for batch in self._loader:
            for image in batch:
                if isinstance(image, InputError):
                    raise image
            yield batch
