"""Short runs of the project's own steps, which tell what this machine's cores and GPU get done.

Reads nothing; writes a shard into a temporary folder and removes it

Each step runs for a few seconds on photo-like pictures of 640 x 480. On a CPU it has one core, and
the core's seconds are counted rather than the clock's, so that a busy machine spoils little. What
cores lose to each other where all of them compute is not seen.
"""

import io
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch.utils.flop_counter import FlopCounterMode

from infra.errors import ConfigError
from infra.planning.encoders import EncoderCost, encoder_cost
from infra.planning.gpus import PEAK_TFLOPS
from infra.planning.rates import Rates
from pipeline.corpus import ROW_SCHEMA, write_shard
from pipeline.fetching.fetch import Fetcher
from pipeline.fetching.fetch_settings import Fetched, FetchSettings
from pipeline.pixels.resizer import Picture, PictureResizer, PixelSettings
from pipeline.sample import Sample, sample_uid
from retrieval.encoding.encoder import load_encoder
from training.config import Config
from training.diffusion import make_objective
from training.ema import EMA
from training.network import flops_per_image, make_network
from training.streaming.pixels import decode_sample, set_up_decoding
from training.watching.peak import measured_flops, peak_flops

STEP_S = 3.0
"""Of each measurement."""
NUM_PHOTOS = 16
ENCODE_BATCH = 32
TEXT_WIDTH, NUM_TOKENS = 512, 32
SERVER = "from http.server import *; import sys; ThreadingHTTPServer.request_queue_size = 128; "
SERVER += "SimpleHTTPRequestHandler.log_message = lambda *a: None; "
SERVER += "server = ThreadingHTTPServer(('127.0.0.1', 0), SimpleHTTPRequestHandler); "
SERVER += "print(server.server_port, flush=True); server.serve_forever()"


def calibrate(encoder: str, train: Config, image_size: int, say: Callable[[str], None]) -> Rates:
    """`train`: the network that is to be trained, at its size."""
    photos = [_photo(seed) for seed in range(NUM_PHOTOS)]
    say("fetching")
    with tempfile.TemporaryDirectory(prefix="carrara-plan-") as folder:
        fetch_ms = _fetch_ms(Path(folder), photos)
        say("resizing, writing, decoding")
        resizer = PictureResizer(PixelSettings(image_size=image_size))
        resize_ms = _cpu_ms(lambda number: resizer(photos[number % NUM_PHOTOS]))
        stored = [
            picture.data for photo in photos if isinstance(picture := resizer(photo), Picture)
        ]
        write_ms = _write_ms(folder, stored)
    decode_ms = _decode_ms(stored) * (256 / image_size) ** 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with _on_one_core():
        say(f"encoding with {encoder}")
        encode_flops = _encode_flops(encoder, device)
        say(f"training {train.network}")
        train_flops = _train_flops(_short(train, device), device)
        matmul_flops = measured_flops(torch.device("cpu"), torch.float32)
    return Rates(
        fetch_ms=fetch_ms,
        resize_ms=resize_ms,
        resize_size=image_size,
        write_ms=write_ms,
        decode_ms=decode_ms,
        matmul_core_gflops=matmul_flops / 1e9,
        machine=f"{_processor()}, {os.cpu_count()} cores, {_device_name(device)}",
        **_of_device("encode", encode_flops, device),
        **_of_device("train", train_flops, device),
    )


def _of_device(step: str, flops: float, device: torch.device) -> dict[str, float]:
    """What was measured, and of the other kind of device the default."""
    if device.type == "cuda":
        return {f"{step}_mfu": flops / _peak_flops(device)}
    return {f"{step}_core_gflops": flops / 1e9}


def _peak_flops(device: torch.device) -> float:
    known = peak_flops(device, torch.bfloat16)
    if known is None:
        raise ConfigError(
            f"--calibrate on {torch.cuda.get_device_name(device)}: no peak of it is known, which a "
            f"share can be of; expected one of {', '.join(PEAK_TFLOPS)}; hide it "
            "(CUDA_VISIBLE_DEVICES=) to calibrate the cores alone"
        )
    return known[0]


@contextmanager
def _on_one_core() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fetch_ms(folder: Path, photos: list[bytes]) -> float:
    """CPU of this process alone: the server is another one."""
    for number, photo in enumerate(photos):
        (folder / f"{number}.jpg").write_bytes(photo)
    settings = FetchSettings(allow_hosts=("127.0.0.1",), opt_outs=(), connections_per_host=32)
    with _serving(folder) as port:
        fetcher = Fetcher(settings)
        num, began, used = 0, time.monotonic(), time.process_time()
        while time.monotonic() - began < STEP_S:
            urls = [(i, f"http://127.0.0.1:{port}/{i % NUM_PHOTOS}.jpg") for i in range(256)]
            num += sum(isinstance(answer, Fetched) for _, answer in fetcher.fetch_all(urls))
        spent = time.process_time() - used
        fetcher.close()
    assert num, "nothing was fetched from this machine's own server"
    return 1e3 * spent / num


@contextmanager
def _serving(folder: Path) -> Iterator[int]:
    command = [sys.executable, "-c", SERVER]
    server = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    with server:
        try:
            assert server.stdout is not None
            yield int(server.stdout.readline())
        finally:
            server.terminate()


def _cpu_ms(step: Callable[[int], object]) -> float:
    """Of one call, whose number it is given."""
    step(0)
    num, began, used = 0, time.monotonic(), time.process_time()
    while time.monotonic() - began < STEP_S:
        step(num)
        num += 1
    return 1e3 * (time.process_time() - used) / num


def _write_ms(folder: str, stored: list[bytes]) -> float:
    num_samples = 1000
    samples, rows = [], []
    for number in range(num_samples):
        key, url = f"00000{number:04d}", f"http://example.com/{number}.jpg"
        uid = sample_uid(url, "a caption")
        row = {"key": key, "uid": uid, "url": url, "caption": "a caption", "status": "success"}
        rows.append({name: row.get(name) for name in ROW_SCHEMA.names})
        picture = stored[number % len(stored)]
        samples.append(Sample(key, uid, "a caption", picture, "jpg", row))
    import pyarrow as pa

    table = pa.Table.from_pylist(rows, schema=ROW_SCHEMA)
    used = time.process_time()
    write_shard(folder, "00000", samples, table, {})
    return 1e3 * (time.process_time() - used) / num_samples


def _decode_ms(stored: list[bytes]) -> float:
    set_up_decoding()
    pixels = np.empty((256, 256, 3), np.uint8)
    return _cpu_ms(lambda number: decode_sample(pixels, "", stored[number % len(stored)]))


def _encode_flops(name: str, device: torch.device) -> float:
    """Operations a second of one core, or of the GPU, pictures alone."""
    encoder = load_encoder(name, str(device), "auto")
    seen = encoder.preprocess
    pixels = np.zeros((ENCODE_BATCH, seen.height, seen.width, 3), np.uint8)
    per_second = _calls_per_second(lambda: encoder.encode_pixels(pixels), device)
    return per_second * ENCODE_BATCH * cost_of(name).image_flops


def _train_flops(config: Config, device: torch.device) -> float:
    """Forward, backward, optimizer and average, on noise: data is another stage's."""
    torch.manual_seed(0)
    network = make_network(config, TEXT_WIDTH).to(device)
    objective = make_objective(config, device)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    ema = EMA(network, config.ema_decay)
    size = config.batch_size
    x_0 = torch.randn(size, 3, config.image_size, config.image_size, device=device)
    tokens = torch.randn(size, NUM_TOKENS, TEXT_WIDTH, device=device)
    mask = torch.ones(size, NUM_TOKENS, dtype=torch.bool, device=device)
    t = torch.randint(config.num_timesteps, (size,), device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            losses = objective.per_sample_loss(
                lambda x_t, t: network(x_t, t, tokens, mask), x_0, t, torch.randn_like(x_0)
            )
        torch.autograd.backward(losses.weighted.mean())
        optimizer.step()
        ema.update(network)

    flops = flops_per_image(config, TEXT_WIDTH, NUM_TOKENS).training
    return _calls_per_second(step, device) * size * flops


def cost_of(name: str) -> EncoderCost:
    """Of any encoder of retrieval's: by formula, or else counted on the model itself; raises
    InputError where there is no such encoder."""
    if cost := encoder_cost(name):
        return cost
    encoder = load_encoder(name)
    seen = encoder.preprocess
    with FlopCounterMode(display=False) as image:
        encoder.encode_pixels(np.zeros((1, seen.height, seen.width, 3), np.uint8))
    with FlopCounterMode(display=False) as text:
        encoder.encode_texts(["cat"])
    num_tokens = 3  # start, word, end
    return EncoderCost(encoder.dim, image.get_total_flops(), text.get_total_flops() / num_tokens)


def _short(config: Config, device: torch.device) -> Config:
    """On a CPU a step of a large network takes minutes; a small one makes as many operations a
    second."""
    if device.type == "cuda":
        return config.model_copy(update={"batch_size": 64})
    places = {"root": config.root, "run": config.run}
    return Config(**places, network=config.network, size="S", image_size=32, batch_size=2)


def _calls_per_second(call: Callable[[], object], device: torch.device) -> float:
    """Of the GPU by the clock, of one core by the seconds that it had."""
    on_gpu = device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    call()
    if on_gpu:
        torch.cuda.synchronize(device)
    num, began = 0, clock()
    while num < 2 or clock() - began < STEP_S:
        call()
        if on_gpu:
            torch.cuda.synchronize(device)
        num += 1
    return num / (clock() - began)


def _photo(seed: int) -> bytes:
    """Shapes of every size under a little grain: some 60 KB, as pictures of the web have."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (15, 20, 3), np.uint8))
    fine = Image.fromarray(random.integers(0, 256, (120, 160, 3), np.uint8))
    size = (640, 480)
    photo = Image.blend(
        coarse.resize(size, Image.Resampling.BICUBIC),
        fine.resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1)),
        0.3,
    )
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=88)
    return file.getvalue()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
