"""What GPUs compute at their best: dense products in bfloat16, from NVIDIA's datasheets.

The datasheets head with the figure for sparse matrices, twice as high, which nothing here computes.
"""

PEAK_TFLOPS = {
    "H200": 989.4,  # H200 datasheet: 1,979 with sparsity
    "H100 PCIe": 756.0,  # H100 datasheet: 1,513 with sparsity
    "H100 NVL": 835.0,  # the same: 1,671 with sparsity
    "H100": 989.4,  # the same, SXM: 1,979 with sparsity
    "A100": 312.0,  # A100 datasheet
    "L40S": 362.05,  # L40S datasheet: 733 with sparsity
    "L4": 121.0,  # L4 datasheet: 242 with sparsity
}
"""By words of the name that CUDA gives; the first that fits counts."""
