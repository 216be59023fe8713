import threading

import numpy as np
import pytest
import torch

from bench.data import splits as module
from bench.data.augmentation import augment
from bench.data.raw import Raw, split_held_out, stratified_order
from bench.data.splits import Part, limit, split, to_float
from bench.data.streamed import StreamedImages
from tests.helpers.archives import pixels


class Counted:
    """Stored images that note which rows were read, and in which thread."""

    ndim, dtype = 4, np.dtype(np.uint8)

    def __init__(self, x: np.ndarray) -> None:
        self.x, self.shape, self.read, self.threads = x, x.shape, [], []

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        self.read.append(rows.tolist())
        self.threads.append(threading.current_thread())
        return self.x[rows]

    def fingerprint(self, rows: np.ndarray) -> bytes:
        return rows.tobytes()


def sets(n: int = 60) -> tuple[Counted, module.Parts, module.Parts]:
    x, y = pixels(n, 8, 8, 3), np.arange(n) % 3
    test, y_test = pixels(12, 8, 8, 3, seed=1), np.arange(12) % 3
    stored = Counted(x)
    far = split("toy", Raw(stored, y, Counted(test), y_test, "abc"), {})
    return stored, far, split("toy", Raw(x, y, test, y_test, "abc"), {})


def test_rows_are_those_of_the_tensor_and_nothing_else_is_read() -> None:
    stored, far, near = sets()
    assert far.image == near.image
    assert far.sizes == near.sizes
    assert stored.read == []
    rows = torch.tensor([5, 0, 5, 11])
    assert torch.equal(far.train.x[rows], near.train.x[rows])
    assert len(stored.read[0]) == 4
    floats = to_float(far.train.x)
    assert floats.dtype == torch.float32
    assert torch.equal(floats[rows], to_float(near.train.x)[rows])
    assert torch.equal(far.train.x[:7], near.train.x[:7])
    assert max(map(len, stored.read)) == 7


def test_limits_joins_and_devices_leave_images_unread() -> None:
    stored, far, near = sets()
    together = [p.train.concat(p.select, p.steer).to("cpu") for p in (far, near)]
    small = [limit(part, 17) for part in together]
    assert stored.read == []
    assert torch.equal(small[0].x[:], small[1].x)
    assert torch.equal(small[0].index, small[1].index)
    assert near.train.concat() is near.train


def test_the_next_batch_is_read_while_one_is_in_use() -> None:
    stored, far, near = sets()
    batches = torch.randperm(48, generator=torch.Generator().manual_seed(0)).split(10)
    for number, rows in enumerate(far.train.prefetch(batches)):
        if number == 1:
            continue  # a resumed epoch passes over what is done
        assert torch.equal(far.train.x[rows], near.train.x[rows])
    assert threading.main_thread() not in stored.threads
    assert sum(len(rows) for rows in stored.read) in (38, 48)
    assert list(near.train.prefetch(batches)) == list(batches)


def test_an_error_of_the_reader_arrives() -> None:
    def broken(rows: np.ndarray) -> torch.Tensor:
        raise OSError("unreadable")

    rows = StreamedImages(broken, torch.arange(4), (1, 8, 8), lambda rows: b"")
    with pytest.raises(OSError, match="unreadable"):
        list(rows.split(2))


def test_images_that_would_fill_the_device_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, near = sets()
    monkeypatch.setattr(module, "_fits_on", lambda x, device: False)
    part: Part = near.train.to("cpu")
    assert isinstance(part.x, StreamedImages)
    rows = torch.tensor([3, 1])
    assert torch.equal(part.x[rows], near.train.x[rows])
    assert torch.equal(part.take(rows).x[:], near.train.take(rows).x)
    assert part.x.fingerprint() != part.take(rows).x.fingerprint()


def test_a_gpu_takes_what_fills_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(10, 3, 8, 8, dtype=torch.uint8)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (2 * x.numel(), 1 << 40))
    assert module._fits_on(x, torch.device("cuda"))
    assert not module._fits_on(torch.cat([x, x[:1]]), torch.device("cuda"))
    assert module._fits_on(torch.cat([x, x]), torch.device("cpu"))


@pytest.mark.parametrize("counts", [(500, 50, 5), (40, 40, 40), (900, 3, 97)])
def test_a_rare_class_is_in_every_part(counts: tuple[int, ...]) -> None:
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(3), counts))
    n = len(y) // 10
    select, steer, train = split_held_out(y, n, n)
    assert sorted([*select, *steer, *train]) == list(range(len(y)))
    for rows in (select, steer, train):
        assert set(y[rows]) == {0, 1, 2}
    assert set(select) == set(stratified_order(y)[:n])
    if min(counts) == max(counts):  # with balanced classes nothing had to be moved
        assert set(steer) == set(stratified_order(y)[n : 2 * n])


def test_shifts_grow_with_the_image() -> None:
    for side, pad in ((8, 4), (32, 4), (96, 12), (224, 28)):
        x = torch.ones(64, 1, side, side)
        moved = augment(x, "crop", torch.Generator().manual_seed(0))
        rows = (moved.sum((1, 3)) == 0).sum(1)
        assert pad // 2 < rows.max() <= pad
        assert torch.equal(moved, augment(x, "crop", torch.Generator().manual_seed(0), pad=pad))
