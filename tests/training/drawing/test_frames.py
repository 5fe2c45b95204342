import torch

from training.drawing.frames import Frames
from training.samplers import Step


def show(frames: Frames, num_steps: int, batches: list[int]) -> None:
    """Every step of every batch; each picture's frame holds its place and the step's index."""
    place = 0
    for size in batches:
        for index in range(num_steps):
            rows = torch.arange(place, place + size)
            x = torch.stack([rows, torch.full_like(rows, index)], 1)
            frames.add(Step(index, num_steps - 1 - index, x, x), num_steps, lambda x: x)
        place += size


def test_chosen_pictures_are_kept_whatever_batches_they_came_in() -> None:
    kept = []
    for batches in ([6], [1, 2, 3], [4, 2]):
        frames = Frames(3, [0, 3, 5])
        show(frames, 5, batches)
        kept.append([[x.tolist() for x in frame] for frame in frames.by_picture()])
        assert frames.timesteps == [5, 3, 1]
    assert kept[0] == kept[1] == kept[2]
    assert kept[0] == [[[place, index] for index in (0, 2, 4)] for place in (0, 3, 5)]


def test_by_step_the_pictures_of_each_moment_lie_together() -> None:
    frames = Frames(2, [1, 2])
    show(frames, 4, [3])
    assert [[x.tolist() for x in step] for step in frames.by_step()] == [
        [[1, 0], [2, 0]],
        [[1, 3], [2, 3]],
    ]


def test_none_are_kept_where_none_are_asked_for() -> None:
    frames = Frames(0, [0])
    show(frames, 4, [2])
    assert frames.by_picture() == [[]]
