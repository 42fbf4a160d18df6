"""The devices that `lightrft plan` plans for."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rates:
    """Peak rates of a device, and the share of them that is reached. The defaults are those of an H100 SXM."""

    teraflops: float = 989.0
    """Matrix products in the type of the model, 10^12 operations a second."""
    memory: float = 3350.0
    """Reading its own memory, 10^9 bytes a second."""
    link: float = 450.0
    """Sending to other devices of its machine, 10^9 bytes a second."""
    network: float = 50.0
    """Sending to other machines, 10^9 bytes a second."""
    host: float = 64.0
    """Between a device and host memory in one direction, 10^9 bytes a second; for strategy.offload."""
    efficiency: float = 0.5
    """Share of all these that is reached."""

    def between(self, devices: int, per_node: int) -> float:
        """Bytes a second that each of so many neighbouring devices can send to the others."""
        return 1e9 * self.efficiency * (self.link if devices <= per_node else self.network)


@dataclass(frozen=True)
class Hardware:
    """The devices that a run is planned for."""

    devices: int = 8
    memory_gib: float = 80.0
    """Memory of each device."""
    per_node: int = 8
    """Devices of one machine."""
    reserve: float = 0.1
    """Share of the memory that is left free: the device's own programs, and gaps between blocks."""
    rates: Rates = field(default_factory=Rates)

    @property
    def usable(self) -> int:
        """Bytes of a device that may be filled."""
        return int(self.memory_gib * 2**30 * (1 - self.reserve))
