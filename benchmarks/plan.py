"""`carrara plan` against published runs: what it would have said, and by how much it errs.

    python -m benchmarks.plan

Every row but those marked "fitted" is of a run that no default rate was taken from. Seconds, no GPU
and no network; needs diffusers for the shape of Stable Diffusion 2's U-Net.
"""

import sys
from dataclasses import dataclass
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from infra.planning.encoders import encoder_cost
from infra.planning.fleet import Fleet, Machine
from infra.planning.rates import Rates
from infra.planning.scaling import step_of
from infra.planning.stages import download_demand, embed_demand, estimate
from infra.planning.workload import Workload
from infra.summary import Summary, print_summary

SOURCES = {
    "blog": "laion.ai/blog/laion-5b, 2022: 5.85 G pairs; ViT-L/14 in a week on 32 A100, 312 "
    "pictures/s each; 9 TB of embeddings of pictures",
    "recipe": "github.com/rom1504/img2dataset, README.md: 9,500 pairs/s on 10 machines for a week, "
    "1,350/s on one; dataset_examples/laion5B.md: machines of 16 cores, 64 threads a core",
    "clip": "github.com/rom1504/clip-retrieval, docs/distributed_clip_inference.md: 2,500 "
    "pictures/s of ViT-B/32 and 312 of ViT-L/14 on an A100",
    "mosaic": "github.com/mosaicml/diffusion, README.md: the U-Net alone, latents computed before, "
    "on 1,126,400,000 pictures of 256 px and 1,740,800,000 of 512, at $2 an A100-hour; "
    "yamls/hydra-yamls/SD-2-base-256.yaml: batches of 2,048",
    "mosaic3": "mosaicml.com/blog/stable-diffusion-part-3, 2023: trained for $47.7k",
    "anyscale": "anyscale.com/blog/scalable-and-cost-efficient-stable-diffusion-pre-training-with-"
    "ray, 2024; of it only the beginning could be read again (under $40,000, 3.7 times less than "
    "before), the hours are from notes of the whole",
}
"""Where each published figure is from; read in November 2026, but where it says otherwise."""

LAION_PAIRS = 5.85e9
IMG2DATASET = Rates(fetch_ms=4.0, resize_ms=7.1)
"""90 attempts a second and core, measured with photos of 180 KB on docs/download.md's machine: 11
ms, of which decoding, resizing and encoding with OpenCV take some 7."""
CAPTION_TOKENS = 77
"""clip-retrieval computes all of them."""
SD2_PARAMETERS = 866e6
SD2_BATCH = 2048
SD2_STEPS = {256: 550_000, 512: 850_000}
DOLLARS_PER_A100_HOUR = 2.0
"""MosaicML's price."""


@dataclass(frozen=True)
class Row:
    run: str
    what: str
    published: float
    predicted: float
    source: str
    """In `SOURCES`."""
    fitted: bool = False

    @property
    def error(self) -> float:
        return self.predicted / self.published - 1


def main() -> None:
    rows = [*laion_download(), *laion_embedding(), *mosaic_throughput(), *stable_diffusion_2()]
    table: list[dict[str, object]] = [
        {
            "run": row.run,
            "what": row.what,
            "published": f"{row.published:,.5g}",
            "predicted": f"{row.predicted:,.5g}",
            "error": f"{round(100 * row.error):+d}%" + (" (fitted)" if row.fitted else ""),
            "source": row.source,
        }
        for row in rows
    ]
    print_summary(
        Summary(
            stage="plan",
            num_in=len(rows),
            num_out=len(rows),
            unit="figures",
            outputs=SOURCES,
            table=table,
        ),
        as_json="--json" in sys.argv,
    )


def laion_download() -> list[Row]:
    return [
        Row("LAION-5B", "pairs/s on 10 x 16 cores", 9500, _pairs_per_s(10), "recipe"),
        Row("img2dataset", "pairs/s on 16 cores", 1350, _pairs_per_s(1), "recipe"),
    ]


def _pairs_per_s(num_machines: int) -> float:
    machine = Machine(count=num_machines, cores=16, memory_gb=32, network_gbps=10)
    work = _laion()
    demand = download_demand(work, IMG2DATASET)
    return work.num_pairs / estimate("download", demand, _fleet(machine), IMG2DATASET).seconds


def laion_embedding() -> list[Row]:
    large = encoder_cost("ViT-L-14")
    assert large is not None
    bytes_of_pictures = _laion().num_pairs * 2 * large.dim
    large_per_s = _encoded_per_s("ViT-L-14")
    days = _laion().num_pairs / (32 * large_per_s) / 86_400
    return [
        Row("LAION-5B", "TB of embeddings, ViT-L/14", 9, bytes_of_pictures / 1e12, "blog"),
        Row("LAION-5B", "days of embedding, ViT-L/14, 32 A100", 7, days, "blog"),
        Row("LAION-5B", "pictures/s of ViT-L/14 on an A100", 312, large_per_s, "clip"),
        Row(
            *("clip-retrieval", "pictures/s of ViT-B/32 on an A100", 2500),
            *(_encoded_per_s("ViT-B-32"), "clip"),
        ),
    ]


def _encoded_per_s(encoder: str) -> float:
    machine = _a100s(1, gpus=1)
    cost = encoder_cost(encoder)
    assert cost is not None
    work, rates = _laion(), Rates()
    demand = embed_demand(work, rates, machine, cost.flops(CAPTION_TOKENS), cost.dim)
    return work.num_pictures / estimate("embed", demand, _fleet(machine), rates).seconds


def mosaic_throughput() -> list[Row]:
    """With communication in full, and all of it hidden: what is published lies between."""
    published = {(256, 1): 1100, (256, 16): 11_600, (512, 1): 290, (512, 16): 4590}
    rows = []
    for (side, num_machines), per_s in published.items():
        for overlap in (0.0, 1.0):
            what = f"pictures/s, {side} px, {8 * num_machines} A100, overlap {overlap:g}"
            predicted = _trained_per_s(side, num_machines, overlap)
            # The default rate is the 28% that theirs at 512 px come to.
            rows.append(Row("MosaicML SD2", what, per_s, predicted, "mosaic", fitted=side == 512))
    return rows


def stable_diffusion_2() -> list[Row]:
    """Most of the work is at 512 px, of which the default rate was taken."""
    alone, many = _a100_hours(1), _a100_hours(16)
    dollars = many * DOLLARS_PER_A100_HOUR
    return [
        Row("MosaicML SD2", "days of the U-Net, 8 A100", 81.33, alone / 8 / 24, "mosaic", True),
        Row("MosaicML SD2", "days of the U-Net, 128 A100", 5.51, many / 128 / 24, "mosaic", True),
        Row("MosaicML SD2", "dollars, in all", 47_700, dollars, "mosaic3"),
        Row("Anyscale SD2", "A100-hours", 13_165, many, "anyscale"),
    ]


def _a100_hours(num_machines: int) -> float:
    return sum(
        8 * num_machines * num_steps * SD2_BATCH / _trained_per_s(side, num_machines, 0.0) / 3600
        for side, num_steps in SD2_STEPS.items()
    )


def _trained_per_s(side: int, num_machines: int, overlap: float) -> float:
    machine, rates = _a100s(num_machines), Rates()
    flops_per_device = machine.peak_flops * rates.train_mfu
    gradient_bytes = 4 * SD2_PARAMETERS
    step = step_of(
        machine,
        num_machines,
        sd2_training_flops(side),
        SD2_BATCH,
        gradient_bytes,
        flops_per_device,
        overlap,
    )
    return SD2_BATCH / step.seconds


@cache
def sd2_training_flops(side: int) -> float:
    """Three times a forward pass of its U-Net, counted on the shapes alone."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64,
            attention_head_dim=(5, 10, 20, 20),
            cross_attention_dim=1024,
            use_linear_projection=True,
        )
        latents, text = torch.empty(1, 4, side // 8, side // 8), torch.empty(1, 77, 1024)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            unet(latents, torch.zeros(1), text)
    num_parameters = sum(parameter.numel() for parameter in unet.parameters())
    assert abs(num_parameters / SD2_PARAMETERS - 1) < 0.01
    return 3.0 * float(counter.get_total_flops())


def _laion() -> Workload:
    return Workload(
        num_pairs=LAION_PAIRS,
        live_share=1.0,
        image_size=256,
        fetched_bytes=180e3,
        samples_per_shard=10_000,
        kept_share=1.0,
    )


def _a100s(count: int, gpus: int = 8) -> Machine:
    """With eight NICs of 200 gigabits a second, as MosaicML's."""
    return Machine(count=count, cores=96, memory_gb=1000, network_gbps=1600, gpus=gpus, gpu="A100")


def _fleet(machine: Machine) -> Fleet:
    return Fleet(machines={"machine": machine})


if __name__ == "__main__":
    main()
