"""What a device can do at most: arithmetic, memory traffic, memory. Published figures of known chips.

A `Device` turns a `Cost` into a time: whichever of arithmetic and traffic takes longer, as if the other
were free behind it (Williams, Waterman and Patterson 2009, "Roofline", doi 10.1145/1498765.1498785).
That is a lower bound on the real time, never an estimate of it.
"""

from dataclasses import dataclass, field, replace

from minitransformer.roofline.costs import Cost
from minitransformer.roofline.dtypes import dtype_name


@dataclass(frozen=True)
class Device:
    """A chip, or several that work as one (`8 * DEVICES["H100"]`), by its limits.

    peak_flops       FLOP/s by number format of the arithmetic, the usual format first
    bandwidth        bytes/s read from memory
    memory_bytes     capacity
    price_per_hour   dollars, None where nobody rents it by the hour
    watts            board power
    source           where the figures come from
    copy_bandwidth, launch_overhead (s an operator), spread: known only of a measured device;
                     `spread` is how much slower the median run was than the fast ones, by figure
    """

    name: str
    peak_flops: dict[str, float] = field(hash=False)
    bandwidth: float
    memory_bytes: float
    price_per_hour: float | None = None
    watts: float | None = None
    source: str = ""
    copy_bandwidth: float | None = None
    launch_overhead: float | None = None
    spread: dict[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self):
        peaks = {dtype_name(dtype): peak for dtype, peak in self.peak_flops.items()}
        object.__setattr__(self, "peak_flops", peaks)
        if not peaks or min(*peaks.values(), self.bandwidth, self.memory_bytes) <= 0:
            raise ValueError(
                f"{self.name}: peak_flops {peaks}, bandwidth {self.bandwidth} and memory_bytes "
                f"{self.memory_bytes} must all be above zero"
            )

    @property
    def default_dtype(self) -> str:
        """The format that arithmetic runs in unless another is named: the first of `peak_flops`."""
        return next(iter(self.peak_flops))

    def peak(self, dtype=None) -> float:
        """FLOP/s at most in this format. Raises ValueError where the device has no figure for it."""
        name = self.default_dtype if dtype is None else dtype_name(dtype)
        if name not in self.peak_flops:
            raise ValueError(
                f"{self.name} has no peak for {name}, only for {', '.join(self.peak_flops)}; weights kept "
                "in a format that the device cannot multiply are widened first: name the wider one"
            )
        return self.peak_flops[name]

    def ridge(self, dtype=None) -> float:
        """FLOPs a byte at which both limits take equally long: below memory-bound, above compute-bound."""
        return self.peak(dtype) / self.bandwidth

    def compute_time(self, cost: Cost, dtype=None) -> float:
        """Seconds for the arithmetic alone."""
        return cost.flops / self.peak(dtype)

    def memory_time(self, cost: Cost) -> float:
        """Seconds for the memory traffic alone."""
        return cost.bytes / self.bandwidth

    def time(self, cost: Cost, dtype=None) -> float:
        """Seconds at least: the longer of arithmetic (done in `dtype`) and traffic."""
        return max(self.compute_time(cost, dtype), self.memory_time(cost))

    def bound(self, cost: Cost, dtype=None) -> str:
        """What decides the time: "compute" or "memory"."""
        return "compute" if self.compute_time(cost, dtype) > self.memory_time(cost) else "memory"

    def flops_at(self, intensity: float, dtype=None) -> float:
        """The roofline itself: FLOP/s that work of this intensity (FLOPs a byte) reaches at most."""
        return min(self.peak(dtype), intensity * self.bandwidth)

    def __mul__(self, count: int) -> "Device":
        """`count` of them with perfect division of work: `8 * device`. Real ones also talk."""
        if count < 1:
            raise ValueError(f"{count} x {self.name}: a group has at least one device")

        def times(value):
            return None if value is None else value * count

        return replace(
            self,
            name=self.name if count == 1 else f"{count}x {self.name}",
            peak_flops={dtype: peak * count for dtype, peak in self.peak_flops.items()},
            bandwidth=self.bandwidth * count,
            memory_bytes=self.memory_bytes * count,
            price_per_hour=times(self.price_per_hour),
            watts=times(self.watts),
            copy_bandwidth=times(self.copy_bandwidth),
        )

    __rmul__ = __mul__


TERA, GIGA = 1e12, 1e9


def _published(name, peaks, *, gb_per_s, memory_gb, price, watts, source) -> Device:
    """Peaks in TFLOP/s. Dense figures: datasheets often print twice as much, for 2:4 sparse weights."""
    return Device(
        name,
        {dtype: tera * TERA for dtype, tera in peaks.items()},
        bandwidth=gb_per_s * GIGA,
        memory_bytes=memory_gb * GIGA,
        price_per_hour=price,
        watts=watts,
        source=source,
    )


# Prices are on-demand list prices of one chip in spring 2026, rounded. They differ several-fold between
# providers and fall with the years: `dataclasses.replace(device, price_per_hour=...)` puts in your own.
DEVICES = {
    device.name: device
    for device in [
        _published(
            "A100",
            {"bf16": 312, "fp16": 312, "tf32": 156, "fp32": 19.5, "int8": 624, "int4": 1248},
            gb_per_s=2039,
            memory_gb=80,
            price=1.5,
            watts=400,
            source="NVIDIA A100 80GB SXM datasheet",
        ),
        _published(
            "H100",
            {"bf16": 989.4, "fp16": 989.4, "tf32": 494.7, "fp32": 66.9, "fp8": 1978.9, "int8": 1978.9},
            gb_per_s=3350,
            memory_gb=80,
            price=3.0,
            watts=700,
            source="NVIDIA H100 SXM5 datasheet and Hopper architecture white paper",
        ),
        _published(
            "H200",
            {"bf16": 989.4, "fp16": 989.4, "tf32": 494.7, "fp32": 66.9, "fp8": 1978.9, "int8": 1978.9},
            gb_per_s=4800,
            memory_gb=141,
            price=3.5,
            watts=700,
            source="NVIDIA H200 SXM datasheet",
        ),
        _published(
            "B200",
            {"bf16": 2250, "fp16": 2250, "tf32": 1100, "fp32": 75, "fp8": 4500, "int8": 4500, "fp4": 9000},
            gb_per_s=8000,
            memory_gb=180,
            price=5.9,
            watts=1000,
            source="NVIDIA DGX B200 datasheet, an eighth of the system, halved where it counts sparsity",
        ),
        _published(
            "L4",
            {"bf16": 121, "fp16": 121, "tf32": 60, "fp32": 30.3, "fp8": 242.5, "int8": 242.5},
            gb_per_s=300,
            memory_gb=24,
            price=0.7,
            watts=72,
            source="NVIDIA L4 datasheet, halved where it counts sparsity",
        ),
        _published(
            "T4",
            {"fp16": 65, "fp32": 8.1, "int8": 130, "int4": 260},  # Turing multiplies no bf16
            gb_per_s=320,
            memory_gb=16,
            price=0.35,
            watts=70,
            source="NVIDIA T4 datasheet",
        ),
        _published(
            "RTX 4090",
            {"bf16": 165.2, "fp16": 165.2, "tf32": 82.6, "fp32": 82.6, "fp8": 330.3, "int8": 660.6},
            gb_per_s=1008,
            memory_gb=24,
            price=0.7,
            watts=450,
            source="NVIDIA Ada GPU architecture white paper, appendix A, sums kept in fp32",
        ),
        _published(
            "MI300X",
            {"bf16": 1307.4, "fp16": 1307.4, "tf32": 653.7, "fp32": 163.4, "fp8": 2614.9, "int8": 2614.9},
            gb_per_s=5300,
            memory_gb=192,
            price=2.5,
            watts=750,
            source="AMD Instinct MI300X datasheet",
        ),
        _published(
            "TPU v5e",
            {"bf16": 197, "int8": 393},
            gb_per_s=819,
            memory_gb=16,
            price=1.2,
            watts=None,  # not published
            source="docs.cloud.google.com/tpu/docs/v5e",
        ),
        # All memory is on the chip: the bandwidth of 25 H100s, and room for 0.3 % of what one holds.
        _published(
            "Groq LPU",
            {"fp16": 188, "int8": 750},
            gb_per_s=80_000,
            memory_gb=0.23,
            price=None,  # sold as tokens, not by the hour
            watts=300,
            source="GroqCard product brief; Abts et al., ISCA 2022, doi 10.1145/3470496.3527405",
        ),
    ]
}
