from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from infra.errors import ConfigError
from training.config import Config, UNetConfig, UViTConfig
from training.layers import Backbone
from training.network import compiled, flops_per_image, make_network

TEXT_WIDTH, NUM_TOKENS = 12, 5
SMALL = {
    "unet": UNetConfig(
        channels=16, channel_mults=(1, 2), num_res_blocks=1, attention_resolutions=(16,)
    ),
    "uvit": UViTConfig(channels=(16, 24), num_res_blocks=2, width=64, num_layers=2, head_width=16),
}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

both_networks = pytest.mark.parametrize("network", ["unet", "uvit"])


def make_config(network: str, **changes: Any) -> Config:
    settings = {"network": network, "image_size": 16, network: SMALL[network]}
    return Config(root="corpus", run="run", **(settings | changes))


def trained(config: Config) -> Backbone:
    """A network whose zeroed layers have moved, as after some training."""
    torch.manual_seed(0)
    network = make_network(config, TEXT_WIDTH).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


def inputs(num: int = 3, height: int = 16, width: int = 16) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(NUM_TOKENS).expand(num, -1) < 3
    x_t = torch.randn(num, 3, height, width, generator=generator)
    tokens = torch.randn(num, NUM_TOKENS, TEXT_WIDTH, generator=generator)
    return x_t.contiguous(memory_format=torch.channels_last), torch.arange(num) * 100, tokens, mask


def gradients(network: Backbone, *given: Tensor) -> list[Tensor]:
    network.zero_grad()
    network(*given).square().mean().backward()
    return [
        parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None
    ]


@both_networks
def test_new_network_puts_out_zeros(network: str) -> None:
    assert not make_network(make_config(network), TEXT_WIDTH)(*inputs()).any()


@both_networks
def test_output_depends_on_picture_time_and_text_but_not_on_what_is_masked(network: str) -> None:
    module = trained(make_config(network))
    x_t, t, tokens, mask = inputs()
    output = module(x_t, t, tokens, mask)
    assert output.shape == x_t.shape
    for changed in ((x_t + 0.1, t, tokens), (x_t, t + 50, tokens), (x_t, t, -tokens)):
        assert (module(*changed, mask) - output).abs().max() > 1e-3
    hidden = torch.where(mask[..., None], tokens, 99.0)
    torch.testing.assert_close(module(x_t, t, hidden, mask), output)
    nothing = module(x_t, t, tokens, torch.zeros_like(mask))
    assert nothing.isfinite().all()
    torch.testing.assert_close(module(x_t, t, -tokens, torch.zeros_like(mask)), nothing)


@both_networks
def test_rows_of_a_batch_do_not_meet(network: str) -> None:
    module, given = trained(make_config(network)), inputs()
    alone = module(*(one[1:2] for one in given))
    torch.testing.assert_close(module(*given)[1:2], alone, atol=1e-4, rtol=1e-4)


@both_networks
def test_pictures_need_not_be_square(network: str) -> None:
    module = trained(make_config(network))
    x_t, t, tokens, mask = inputs(height=8, width=24)
    assert module(x_t, t, tokens, mask).shape == x_t.shape
    turned = module(x_t.transpose(2, 3), t, tokens, mask)
    assert (turned - module(x_t, t, tokens, mask).transpose(2, 3)).abs().max() > 1e-3


@both_networks
@pytest.mark.parametrize("text", [{}, {"trained": True, "width": 16, "num_layers": 1}])
def test_every_parameter_is_reached_by_the_gradient(network: str, text: dict[str, Any]) -> None:
    module = trained(make_config(network, text=text))
    x_t, t, tokens, mask = inputs()
    if text:
        tokens = torch.randint(0, 49408, mask.shape)
    module(x_t, t, tokens, mask).square().sum().backward()
    unreached = [
        name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()
    ]
    assert unreached == []


@both_networks
@pytest.mark.parametrize("device", DEVICES)
def test_activation_checkpointing_leaves_the_gradients_as_they_are(
    network: str, device: str
) -> None:
    dropping = SMALL[network].model_copy(update={"dropout": 0.2})
    config = make_config(network, **{network: dropping}, checkpoint_activations=True)
    module = trained(config).to(device).train()
    given = [one.to(device) for one in inputs()]
    torch.manual_seed(1)
    computed_twice = gradients(module, *given)
    module.checkpoint_activations = False
    torch.manual_seed(1)
    for ours, kept in zip(computed_twice, gradients(module, *given), strict=True):
        assert torch.equal(ours, kept)


@both_networks
def test_activation_checkpointing_keeps_less(network: str) -> None:
    def kept_bytes(config: Config) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        module = trained(config)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = module(*inputs(8))
        output.sum().backward()
        return sum(sizes.values())

    kept = kept_bytes(make_config(network))
    assert kept_bytes(make_config(network, checkpoint_activations=True)) < 0.5 * kept


@both_networks
@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_answers_nearly_as_float32_and_in_float32(network: str, device: str) -> None:
    module = trained(make_config(network)).to(device)
    given = [one.to(device) for one in inputs()]
    with torch.no_grad():
        exact = module(*given)
        with torch.autocast(device, torch.bfloat16):
            rounded = module(*given)
    assert rounded.dtype == torch.float32
    error = (rounded - exact).square().mean() / exact.square().mean()
    assert 0 < error < 1e-3


@both_networks
def test_compiled_network_computes_the_same_in_one_graph(network: str) -> None:
    # The compiler's own backend takes minutes; whether it can see the whole network does not.
    module, given = trained(make_config(network)), inputs()
    torch._dynamo.reset()
    whole = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(whole(*given), module(*given), atol=1e-4, rtol=1e-4)


def test_nothing_is_compiled_on_a_cpu_unless_asked_for() -> None:
    config, cpu = make_config("unet"), torch.device("cpu")
    module = make_network(config, TEXT_WIDTH)
    assert compiled(module, config, cpu) is module
    assert compiled(module, make_config("unet", compile="yes"), cpu) is not module
    assert compiled(module, config, torch.device("cuda")) is not module
    assert compiled(module, make_config("unet", compile="no"), torch.device("cuda")) is module


@pytest.mark.parametrize(
    "changes",
    [
        {"network": "unet"},
        {"network": "unet", "unet": SMALL["unet"].model_copy(update={"patch_size": 2})},
        {"network": "uvit"},
        {"network": "uvit", "text": {"trained": True, "width": 16, "num_layers": 2}},
        {"network": "uvit", "space": {"upscale_from": 4}},
    ],
)
def test_flops_agree_with_torchs_counter(changes: dict[str, Any]) -> None:
    config = make_config(**changes)
    module = trained(config)
    x_t, t, tokens, mask = inputs(1)
    if config.text.trained:
        tokens = torch.zeros(1, NUM_TOKENS, dtype=torch.int64)
    if config.space.upscale_from:
        x_t = torch.randn(1, 7, 16, 16)
    with FlopCounterMode(display=False) as counter:
        output = module(x_t, t, tokens, mask)
    flops = flops_per_image(config, TEXT_WIDTH, NUM_TOKENS)
    assert flops.forward == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    # Attention's kernel computes the scores again; of the first layers no one asks the gradient.
    assert flops.training == pytest.approx(flops.forward + counter.get_total_flops(), rel=0.05)


@pytest.mark.parametrize(
    ("network", "size", "num_parameters", "training_gflops"),
    [
        ("unet", "S", 31e6, 56),
        ("unet", "B", 123e6, 220),
        ("unet", "L", 276e6, 494),
        ("unet", "XL", 490e6, 876),
        ("uvit", "S", 42e6, 53),
        ("uvit", "B", 219e6, 259),
        ("uvit", "L", 609e6, 694),
        ("uvit", "XL", 1498e6, 1649),
    ],
)
def test_sizes_are_as_documented(
    network: str, size: str, num_parameters: float, training_gflops: float
) -> None:
    config = Config(root="corpus", run="run", network=network, size=size, image_size=64)
    with torch.device("meta"):
        module = make_network(config, 512)
    assert module.num_parameters == pytest.approx(num_parameters, rel=0.02)
    assert flops_per_image(config).training == pytest.approx(training_gflops * 1e9, rel=0.01)


def test_settings_given_count_on_top_of_a_named_size() -> None:
    config = Config(root="corpus", run="run", size="B", unet={"dropout": 0.2})
    assert (config.unet.channels, config.unet.num_heads, config.unet.dropout) == (128, 8, 0.2)
    assert config.unet.channel_mults == (1, 2, 4, 4)
    recorded = Config.model_validate_json(config.model_dump_json())
    assert recorded == config
    assert recorded.digest() == config.digest()


def test_settings_that_do_not_fit_are_named() -> None:
    with pytest.raises(ConfigError, match=r"image_size is 20: expected a multiple of 8.*uvit"):
        make_network(make_config("uvit", image_size=20), TEXT_WIDTH)
    odd = SMALL["uvit"].model_copy(update={"width": 72})
    with pytest.raises(ConfigError, match=r"uvit.width is 72: expected a multiple of uvit.head_w"):
        make_network(make_config("uvit", uvit=odd), TEXT_WIDTH)
    with pytest.raises(ConfigError, match=r"text.width is 15: expected a multiple of text.num_he"):
        make_network(make_config("unet", text={"trained": True, "width": 15}), TEXT_WIDTH)


Maker = Callable[..., Config]


@both_networks
def test_network_learns_in_the_loop(network: str, tiny_config: Maker) -> None:
    from training.log import read_metrics
    from training.train import run

    tiny_uvit = UViTConfig(channels=(16,), num_res_blocks=1, width=32, num_layers=1, head_width=16)
    text = {"trained": network == "uvit", "width": 16, "num_layers": 1, "num_heads": 2}
    config = tiny_config(
        network=network, uvit=tiny_uvit, text=text, num_steps=40, checkpoint_every=40,
        learning_rate=5e-3, log_every=10, prediction="eps", weighting="uniform",
    )  # fmt: skip
    run(config)
    losses = [line["loss"] for line in read_metrics(config.run)]
    assert losses[0] > 0.8
    assert losses[-1] < 0.7 * losses[0]


def test_size_on_the_command_line_gives_way_to_what_stands_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import carrara

    given: list[Config] = []
    monkeypatch.setattr(carrara, "execute", lambda _, config, **__: given.append(config))
    words = "train corpus run --network uvit --size B --uvit.num-layers 3 --text.trained"
    assert carrara.run_command(words.split()) == 0
    (config,) = given
    assert (config.uvit.width, config.uvit.num_layers) == (768, 3)
    assert config.text.trained
