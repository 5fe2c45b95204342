import torch

from training.evaluating.alignment import is_own_caption_first, similarities

AXES = torch.eye(3)


def test_similarity_is_the_cosine_of_picture_and_caption() -> None:
    images = torch.stack([AXES[0], (AXES[0] + AXES[1]) / 2**0.5])
    assert torch.allclose(similarities(images, AXES[:2]), torch.tensor([1.0, 0.5**0.5]))


def test_a_picture_nearer_to_another_caption_is_a_miss_and_so_is_a_tie() -> None:
    images = torch.stack([AXES[0], AXES[0], (AXES[1] + AXES[2]) / 2**0.5])
    found = is_own_caption_first(images, AXES, ["a", "b", "c"])
    assert found.tolist() == [True, False, False]


def test_equal_captions_are_one() -> None:
    images, texts = AXES[[0, 0, 1]], AXES[[0, 0, 1]]
    assert is_own_caption_first(images, texts, ["cat", "cat", "dog"]).all()
