"""How training goes on with more GPUs: what each step computes, what it sends, what it waits for.

Data-parallel workers average their gradients every step. A ring sends 2 (n - 1) / n times the
gradients through each link (Patarasuk & Yuan 2009, "Bandwidth optimal all-reduce algorithms"):
within a machine between its GPUs, then between machines, where each GPU of a machine carries its
share of the gradients at its share of the network.
"""

from dataclasses import dataclass

from infra.planning.fleet import Machine

BACKWARD_SHARE = 2 / 3
"""Of a step's compute: the backward pass is twice the forward one."""


@dataclass(frozen=True)
class Step:
    """One optimizer step, in seconds."""

    compute_s: float
    communication_s: float
    overlap: float

    @property
    def exposed_s(self) -> float:
        """Communication that no compute hides."""
        hidden = self.overlap * BACKWARD_SHARE * self.compute_s
        return max(0.0, self.communication_s - hidden)

    @property
    def seconds(self) -> float:
        return self.compute_s + self.exposed_s

    @property
    def efficiency(self) -> float:
        """Against workers that need not talk."""
        return self.compute_s / self.seconds


def all_reduce_s(machine: Machine, num_machines: int, num_bytes: float) -> float:
    inside = between = 0.0
    if machine.gpus > 1:
        link = machine.gpu_link_gbps / 8 * 1e9
        inside = 2 * (machine.gpus - 1) / machine.gpus * num_bytes / link
    if num_machines > 1:
        network = machine.network_gbps / 8 * 1e9
        between = 2 * (num_machines - 1) / num_machines * num_bytes / network
    return inside + between


def step_of(
    machine: Machine,
    num_machines: int,
    flops_per_image: float,
    batch_size: int,
    gradient_bytes: float,
    flops_per_device: float,
    overlap: float,
) -> Step:
    """`flops_per_device`: what one GPU, or where there is none the machine's cores, really make."""
    num_devices = num_machines * (machine.gpus or 1)
    return Step(
        compute_s=flops_per_image * batch_size / num_devices / flops_per_device,
        communication_s=all_reduce_s(machine, num_machines, gradient_bytes),
        overlap=overlap,
    )
