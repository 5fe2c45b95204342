"""Pictures on their way out of the noise, for the denoising strip and the animation."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from training.samplers import Step


class Frames:
    """Some pictures after `num_frames` of the steps, evenly spaced, the first and last too.

    `pictures` are their places among all that are drawn, in order; the others are not kept.
    """

    def __init__(self, num_frames: int, pictures: Sequence[int]) -> None:
        self._num_frames, self._pictures = num_frames, pictures
        self._of_picture: dict[int, list[Tensor]] = {picture: [] for picture in pictures}
        self._start, self._size = 0, 0  # of the batch that is being drawn
        self.timesteps: list[int] = []
        """The paper's t of each frame: T first, 1 last."""

    def add(self, step: "Step", num_steps: int, to_pictures: "Callable[[Tensor], Tensor]") -> None:
        """To be told every step of every batch, in order; `to_pictures` makes what is drawn, be it
        pixels or latents, pictures in [-1, 1]."""
        if step.index == 0:
            self._start += self._size
            self._size = len(step.x)
            self.timesteps.clear()
        if step.index in self._wanted(num_steps):
            self.timesteps.append(step.timestep + 1)
            for picture in range(self._start, self._start + self._size):
                if picture in self._of_picture:
                    place = picture - self._start
                    frame = to_pictures(step.x[place : place + 1])[0].cpu()
                    self._of_picture[picture].append(frame)

    def by_picture(self) -> "list[list[Tensor]]":
        """The frames of each picture, `[3, H, W]` in [-1, 1]."""
        return list(self._of_picture.values())

    def by_step(self) -> "list[tuple[Tensor, ...]]":
        """All pictures at each step."""
        return list(zip(*self.by_picture(), strict=True))

    def _wanted(self, num_steps: int) -> set[int]:
        num = min(self._num_frames, num_steps)
        return {round(i * (num_steps - 1) / max(num - 1, 1)) for i in range(num)}
