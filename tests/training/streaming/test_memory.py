from training.streaming.memory import PixelMemory

SHAPE = (2, 4, 4, 3)


def test_memory_is_used_again_once_nobody_holds_any_part_of_it() -> None:
    memory = PixelMemory()
    first = memory.take(SHAPE)
    place = first.data_ptr()
    row = first.permute(0, 3, 1, 2)[0]
    del first
    assert memory.take(SHAPE).data_ptr() != place
    array = row.numpy()[1]
    del row
    others = [memory.take(SHAPE) for _ in range(3)]
    assert place not in [other.data_ptr() for other in others]
    del array
    assert memory.take((1, 4, 4, 3)).data_ptr() == place


def test_what_is_too_small_is_not_given() -> None:
    memory = PixelMemory()
    memory.take((1, 2, 2, 3))
    larger = memory.take(SHAPE)
    assert larger.shape == SHAPE
    larger.fill_(7)
    assert memory.take((1, 2, 2, 3)).shape == (1, 2, 2, 3)
